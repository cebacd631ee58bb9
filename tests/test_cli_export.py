"""The command `export` as a user runs it: every format, data sets from views, and what is refused."""

import json
import re
import sys
from pathlib import Path
from unittest.mock import Mock

import av
import numpy as np
import pytest
import torch
import trimesh
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sv4d2_core.__main__ import main
from sv4d2_core.cameras import Cameras
from sv4d2_core.data.reader import read_dataset
from sv4d2_core.data.views_folder import write_views
from sv4d2_core.export import scene_export
from sv4d2_core.scene.config import GaussiansConfig, RefineConfig
from sv4d2_core.scene.dynerf.dynerf import DyNeRF
from sv4d2_core.scene.gaussians.gaussians import CanonicalGaussians, Gaussians
from sv4d2_core.scene.geometry.hull import Occupancy
from sv4d2_core.scene.tracking.track import Tracked
from sv4d2_core.world import make_creature, render_views

CAMERAS = Cameras((0, 0, 20), (0, 100, 200))
BOX = torch.tensor([[-0.4, -0.4, -0.4], [0.4, 0.4, 0.4]])
FRAMES, FPS = 3, 4.0
COLOUR = (0.8, 0.4, 0.2)
SMALL = ("--resolution", 24, "--faces", 600)


def block_scene() -> DyNeRF:
    """A block of one colour that moves along x by a cell per frame."""
    config = RefineConfig(features=2, plane_sizes=(4, 8), hidden=8, samples=48, hull_size=16)
    cells = torch.zeros(FRAMES, 16, 16, 16, dtype=torch.bool)
    for t in range(FRAMES):
        cells[t, 4:12, 4:12, 3 + t : 11 + t] = True
    times = torch.linspace(0, 1, FRAMES).tolist()
    scene = DyNeRF(Occupancy(cells, BOX), CAMERAS, FPS, times, config)
    decoder = scene.field.field.decoder
    with torch.no_grad():
        for parameter in scene.field.parameters():
            parameter.zero_()
        decoder.density.bias.fill_(1 + torch.tensor(200.0 / decoder.density_scale).expm1().log())
        decoder.colour[2].bias.copy_(torch.tensor(COLOUR).logit())
    return scene


def ball_scene() -> Gaussians:
    """A still ball of Gaussians of one colour."""
    means = torch.nn.functional.normalize(
        torch.randn(120, 3, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    canonical = CanonicalGaussians(0.25 * means, 0.04, 0.9, torch.tensor([COLOUR]).expand(120, 3))
    config = GaussiansConfig(count=120, features=4, plane_sizes=(8,), hidden=8)
    times = torch.linspace(0, 1, FRAMES).tolist()
    return Gaussians(canonical, BOX, (1e-3, 0.1), CAMERAS, FPS, times, config)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("scenes")
    places = {"block": folder / "block.safetensors", "ball": folder / "ball.SAFETENSORS"}
    block_scene().save(places["block"])
    ball_scene().save(places["ball"])
    return places


@pytest.fixture(scope="module")
def views(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("views") / "views"
    write_views(folder, render_views(make_creature(5), CAMERAS, FRAMES, 16))
    return folder


def export(source: Path, out: Path, kind: str, *more: object) -> int:
    return main([str(word) for word in ("export", source, "--out", out, "--format", kind, *more)])


def refused(capsys, *arguments: object) -> str:
    assert export(*arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_glb_moves_as_the_scene_does(scenes, tmp_path, capsys):
    assert export(scenes["block"], tmp_path / "block.glb", "glb", *SMALL) == 0
    loaded = trimesh.load(tmp_path / "block.glb", force="mesh")
    # Cells are 0.05 wide: the first frame reaches from -0.25 to 0.15.
    np.testing.assert_allclose(loaded.bounds[:, 0], [-0.25, 0.15], atol=0.04)
    assert [path.name for path in tmp_path.iterdir()] == ["block.glb"]
    said = capsys.readouterr().err
    assert "follows the frames' own meshes to" in said and "3 frames, 0.50 s" in said and "MB" in said
    assert re.search(r"Acceleration: .* [\d.]+ % at most; .* meshes by [\d.]+ %\.", said)
    assert export(scenes["block"], tmp_path / "two.glb", "glb", *SMALL, "--frames", 2) == 0
    said = capsys.readouterr().err
    assert "follows the frames' own meshes to" in said and "Acceleration" not in said


def test_a_glb_that_becomes_a_sequence_replaces_nothing(scenes, tmp_path, capsys, monkeypatch):
    assert export(scenes["block"], tmp_path / "walk", "obj", *SMALL, "--times", 0) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "walk").iterdir()}
    monkeypatch.setattr(Tracked, "follows", property(lambda self: False))
    capsys.readouterr()
    monkeypatch.setattr(scene_export, "atlas_package", lambda width: None)
    textured = (*SMALL, "--texture", 64)
    assert export(scenes["block"], tmp_path / "walk.glb", "glb", *textured, "--overwrite") == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "walk").iterdir()} == before
    assert len([*(tmp_path / "walk_00001").glob("mesh_*.glb")]) == FRAMES
    assert "walk_00001 holds one per frame instead, with colours at the vertices." in capsys.readouterr().err
    assert not (tmp_path / "walk.glb").exists()


def test_an_export_that_was_killed_while_it_took_its_place_can_be_run_again(scenes, tmp_path):
    out, new = tmp_path / "out", tmp_path / "out/.partial/new"
    assert export(scenes["ball"], out, "splat-ply") == 0
    names = [path.name for path in out.iterdir()]
    for folder in (new, new.with_name("old")):
        folder.mkdir(parents=True)
    new.with_name("swap.json").write_text(json.dumps(names))
    (out / "sequence.json").rename(new / "sequence.json")  # the last to be moved in
    assert export(scenes["ball"], out, "splat-ply") == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(names)


@pytest.mark.parametrize("kind", ["glb", "obj", "turntable", "splat-ply"])
def test_what_may_not_be_replaced_is_said_before_any_work(scenes, tmp_path, capsys, monkeypatch, kind):
    (tmp_path / "a").mkdir()
    for mine in ("mesh_00000.obj", "splat_00000.ply", "00000.png"):
        (tmp_path / "a" / mine).write_text("mine")
    (tmp_path / "a.glb").write_text("mine")
    monkeypatch.setattr("sv4d2_core.commands.export.load_scene", None)
    error = refused(capsys, scenes["ball"], tmp_path / ("a.glb" if kind == "glb" else "a"), kind)
    assert "exists already" in error or "never replaced" in error


@pytest.mark.parametrize("kind", ["glb-sequence", "obj", "ply"])
def test_sequences_hold_a_mesh_per_frame(scenes, tmp_path, kind):
    assert export(scenes["block"], tmp_path / "out", kind, *SMALL) == 0
    suffix = kind.partition("-")[0]
    meshes = [trimesh.load(tmp_path / f"out/mesh_{t:05d}.{suffix}", force="mesh") for t in range(FRAMES)]
    middles = [mesh.bounds.mean(0)[0] for mesh in meshes]
    np.testing.assert_allclose(np.diff(middles), 0.05, atol=0.02)
    assert all(mesh.is_watertight and mesh.volume > 0 for mesh in meshes)
    sequence = json.loads((tmp_path / "out/sequence.json").read_text())
    assert sequence["fps"] == FPS and sequence["times"] == [0, 0.5, 1]
    assert export(scenes["block"], tmp_path / "at", kind, *SMALL, "--times", 0, 0.5, "--fps", 10) == 0
    sequence = json.loads((tmp_path / "at/sequence.json").read_text())
    assert sequence["fps"] == 10 and sequence["times"] == [0, 0.5]


def test_gaussians_become_a_sequence_or_one_file_and_trajectories(scenes, tmp_path):
    assert export(scenes["ball"], tmp_path / "splats", "splat-ply") == 0
    assert len([*(tmp_path / "splats").glob("splat_*.ply")]) == FRAMES
    assert export(scenes["ball"], tmp_path / "one.ply", "splat-ply", "--times", 0.5) == 0
    assert len(trimesh.load(tmp_path / "one.ply").vertices) == 120
    assert export(scenes["ball"], tmp_path / "one.splat", "splat", "--times", 0.5) == 0
    assert (tmp_path / "one.splat").stat().st_size == 32 * 120
    assert export(scenes["ball"], tmp_path / "one.glb", "splat-glb", "--times", 0.5) == 0
    assert b"KHR_gaussian_splatting" in (tmp_path / "one.glb").read_bytes()
    assert export(scenes["ball"], tmp_path / "ball.npz", "npz", "--frames", 5) == 0
    with np.load(tmp_path / "ball.npz") as arrays:
        assert arrays["means"].shape == (5, 120, 3)


def test_meshes_of_gaussians_have_their_shape_and_colour(scenes, tmp_path):
    assert export(scenes["ball"], tmp_path / "ball", "ply", "--times", 0.5, *SMALL) == 0
    mesh = trimesh.load(tmp_path / "ball/mesh_00000.ply", force="mesh")
    radius = np.linalg.norm(mesh.vertices, axis=-1)
    assert 0.25 < np.median(radius) < 0.36
    np.testing.assert_allclose(mesh.visual.vertex_colors[:, :3].mean(0) / 255, COLOUR, atol=0.02)


def test_smoothing_rounds_the_corners(scenes, tmp_path):
    volumes = []
    for iterations in (0, 40):
        out = tmp_path / str(iterations)
        more = ("--times", 0, "--smoothing", iterations)
        assert export(scenes["block"], out, "ply", *SMALL, *more) == 0
        mesh = trimesh.load(out / "mesh_00000.ply", force="mesh")
        volumes.append(mesh.volume / mesh.bounding_box.volume)
    assert volumes[1] < volumes[0] - 0.01


@pytest.mark.parametrize("kind", ["dataset", "colmap"])
def test_pictures_of_a_scene_become_a_data_set(scenes, tmp_path, kind):
    assert export(scenes["block"], tmp_path / "out", kind, "--size", 16) == 0
    if kind == "dataset":
        read = read_dataset(tmp_path / "out/transforms_train.json")
        assert read.images.shape == (FRAMES, 3, 16, 16, 3) and read.cameras.n_views == 2
    else:
        points = (tmp_path / "out/frame_00000/sparse/0/points3D.txt").read_text().splitlines()[1:]
        places = np.array([line.split()[1:4] for line in points], float)
        assert np.abs(places).max() < 0.3 and len(points) > 50


def test_turntable_is_a_video_of_as_many_pictures(scenes, tmp_path):
    assert export(scenes["block"], tmp_path / "turn.mp4", "turntable", "--frames", 6, "--size", 16) == 0
    with av.open(str(tmp_path / "turn.mp4")) as container:
        assert len([*container.decode(video=0)]) == 6
    assert export(scenes["block"], tmp_path / "turn", "turntable", "--frames", 2, "--size", 16) == 0
    assert export(scenes["block"], tmp_path / "cat.v2", "turntable", "--frames", 2, "--size", 16) == 0
    for folder in ("turn", "cat.v2"):
        assert sorted(path.suffix for path in (tmp_path / folder).iterdir()) == [".json", ".png", ".png"]


@pytest.mark.parametrize("kind", ["dataset", "colmap"])
def test_views_need_no_scene(views, tmp_path, kind):
    assert export(views, tmp_path / "out", kind) == 0
    assert (tmp_path / f"out/{kind}.json").is_file()


def test_what_cannot_be_is_refused_in_words(scenes, views, tmp_path, capsys):
    block, out = scenes["block"], tmp_path / "out"
    (tmp_path / "block.obj").touch()
    assert "ends in .glb" in refused(capsys, block, tmp_path / "block.obj", "glb")
    assert "ends in .ply" in refused(capsys, scenes["ball"], tmp_path / "a.splat", "splat-ply")
    assert "ends in .mp4" in refused(capsys, block, tmp_path / "a.GLB", "turntable")
    assert "from 64 to 8192" in refused(capsys, block, tmp_path / "a.glb", "glb", "--texture", 16384)
    assert "made of Gaussians" in refused(capsys, block, out, "splat-ply")
    assert "needs a scene" in refused(capsys, views, tmp_path / "block.glb", "glb")
    assert "not both" in refused(capsys, block, out, "obj", "--frames", 2, "--times", 0)
    assert "times that rise" in refused(capsys, block, out, "obj", "--times", 1, 0)
    assert "from 0 to 1" in refused(capsys, block, out, "obj", "--times", 0, 2)
    assert "one time" in refused(capsys, scenes["ball"], tmp_path / "all.ply", "splat-ply")
    assert [*tmp_path.iterdir()] == [tmp_path / "block.obj"]


@pytest.mark.parametrize(
    ("source", "name", "kind", "words", "idle"),
    [
        ("ball", "a.npz", "npz", "--fps 9", "--fps"),
        ("ball", "a.ply", "splat-ply", "--times 0 --fps 9 --faces 9", "--faces, --fps"),
        ("ball", "a", "splat-ply", "--fps 9 --sh-degree 0", ""),
        ("ball", "a", "splat", "--sh-degree 0", "--sh-degree"),
        ("block", "a.glb", "glb", "--size 16 --cameras c.json --texture 64", "--cameras, --size"),
        ("block", "a", "obj", "--texture 64 --smoothing 2", "--texture"),
        ("block", "a.mp4", "turntable", "--times 0 --fps 9 --frames 4", "--times"),
        ("block", "a", "dataset", "--input-view 1 --fps 9", "--input-view"),
        ("views", "a", "dataset", "--input-view 1 --device cpu --fps 9", "--device, --fps"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    scenes, views, tmp_path, capsys, monkeypatch, source, name, kind, words, idle
):
    for work in ("load_scene", "read_any_views"):
        monkeypatch.setattr(f"sv4d2_core.commands.export.{work}", Mock(side_effect=ValueError("the work")))
    place = {**scenes, "views": views}[source]
    error = refused(capsys, place, tmp_path / name, kind, *words.split())
    assert f"{idle} would do nothing for a " in error if idle else "the work" in error


def test_nothing_is_overwritten_unless_asked(views, scenes, tmp_path, capsys):
    file = tmp_path / "ball.npz"
    assert export(scenes["ball"], file, "npz") == 0
    before = file.read_bytes()
    assert "exists" in refused(capsys, scenes["ball"], file, "npz", "--frames", 2)
    assert file.read_bytes() == before
    assert export(scenes["ball"], file, "npz", "--frames", 2, "--overwrite") == 0
    assert file.read_bytes() != before
    assert export(views, tmp_path / "data", "dataset") == 0
    assert "already" in refused(capsys, views, tmp_path / "data", "dataset")


def test_an_empty_scene_and_one_of_nan_leave_nothing_behind(scenes, tmp_path, capsys):
    bias = "field.field.decoder.density.bias"
    for name, value, words in (("cells", 0, "is empty"), (bias, torch.nan, "finite numbers")):
        tensors = load_file(scenes["block"])
        tensors[name].fill_(value)
        spoilt = tmp_path / "spoilt.safetensors"
        with safe_open(scenes["block"], "pt") as file:
            header = json.loads(file.metadata()["sv4d2.scene"])
        del header["checksum"]
        save_file(tensors, spoilt, {"sv4d2.scene": json.dumps(header)})
        assert words in refused(capsys, spoilt, tmp_path / "out", "obj", *SMALL)
        assert words in refused(capsys, spoilt, tmp_path / "out.glb", "glb", *SMALL)
        assert [path.name for path in tmp_path.iterdir()] == ["spoilt.safetensors"]


@pytest.mark.parametrize(
    ("name", "changes", "error"),
    [
        ("a.gif", dict(fps=60.0), r"at most 50 frames per second"),
        ("a.mp4", dict(size=31), r"even height and width; got 96 of 31 x 31"),
        ("a.webm", dict(), r"libvpx-vp9"),
        ("a.usdc", dict(), r"usd-core"),
        ("a.mov", dict(), r"ends in .mp4 or .webm or .gif for turntable; got 'a.mov'"),
        ("a", dict(size=31), r"even size .* 31 x 31"),
        ("a.glb", dict(texture=1024), r"xatlas"),
        ("a.glb", dict(texture=32), r"64 to 8192"),
        (
            "a",
            dict(times=tuple(i / 4000 for i in range(4000))),
            r"frame rate from 0.1 to 1000; got fps = 8000",
        ),
    ],
)
def test_what_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch, name, changes, error):
    for work in ("turntable", "track", "surface_level"):
        monkeypatch.setattr(scene_export, work, lambda *_, **__: pytest.fail("the work began"))
    monkeypatch.setattr(DyNeRF, "render", lambda *_, **__: pytest.fail("the work began"))
    monkeypatch.setattr(av, "codecs_available", set())
    for package in ("pxr", "pxr.Usd", "xatlas"):
        monkeypatch.setitem(sys.modules, package, None)
    kind = {".usdc": "usd", ".glb": "glb", "": "dataset"}.get(name[1:], "turntable")
    settings = scene_export.ExportSettings(**changes)
    with pytest.raises((ValueError, ModuleNotFoundError), match=error):
        scene_export.export_scene(block_scene(), tmp_path / name, kind, settings)
    assert not [*tmp_path.iterdir()]
