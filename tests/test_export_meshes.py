"""Meshes in files (GLB, numbered, USD): what other programs read and show, and what is refused."""

import io
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pygltflib
import pytest
import torch
import trimesh
import viewer
from accessors import read_accessor
from bending import bending_ball
from PIL import Image
from silhouettes import overlap, silhouette

from sv4d2_core.cameras import Cameras
from sv4d2_core.export.glb import ANIMATION_NAME, glb_bytes, write_animated_glb
from sv4d2_core.export.sequences import write_mesh_sequence, write_usd
from sv4d2_core.scene.scene import even_times
from sv4d2_core.scene.tracking.mesh import MeshAnimation, Texture, bake_texture

TIMES = (0.0, 0.25, 1.0)
SECONDS = (0.0, 0.5, 2.0)
FPS = 8.0
SIZE = 192
CAMERAS = Cameras((0.0, 20.0), (0.0, 50.0), input_elevation_deg=10.0)
NO_BROWSER = viewer.missing("chromium", "playwright-core", "three")
NO_VALIDATOR = viewer.missing("gltf-validator")
needs_browser = pytest.mark.skipif(bool(NO_BROWSER), reason=NO_BROWSER)
BALL = bending_ball(n_frames=3)
DAMAGED = BALL.positions.clone()
DAMAGED[1, :7, 2] = torch.nan
MOVING = [BALL.at(t) for t in range(3)]
# Triangles and colours change.
CHANGING = [MOVING[0], bending_ball(3, subdivisions=1).at(1), replace(MOVING[2], colours=1 - BALL.colours)]
WITH_NAN = [MOVING[0], MOVING[2], replace(MOVING[1], vertices=DAMAGED[1])]


def linear(colours: torch.Tensor) -> np.ndarray:
    values = colours.double().numpy()
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def shot(file: Path, seconds: float, view: int = 0):
    return viewer.Shot(file, seconds, CAMERAS.intrinsics(SIZE), CAMERAS.c2w_opengl()[view], SIZE)


def test_pygltflib_reads_every_frame_at_its_time(tmp_path):
    animation = bending_ball(n_frames=4, duration=1.5)
    size = write_animated_glb(tmp_path / "a.glb", animation)
    assert size == (tmp_path / "a.glb").stat().st_size
    glb = pygltflib.GLTF2().load_binary(str(tmp_path / "a.glb"))
    (mesh,), (motion,) = glb.meshes, glb.animations
    primitive = mesh.primitives[0]
    assert glb.nodes[0].name == mesh.name == "object"
    assert mesh.extras == {"targetNames": ["frame_001", "frame_002", "frame_003"]}
    sampler, target = motion.samplers[0], motion.channels[0].target
    assert (sampler.interpolation, target.node, target.path) == ("LINEAR", 0, "weights")
    assert read_accessor(glb, sampler.input)[:, 0] == pytest.approx([0, 0.5, 1.0, 1.5])
    late = pygltflib.GLTF2().load_from_bytes(glb_bytes(replace(animation, times=(0.7, 0.8, 0.9, 1.0))))
    keys = read_accessor(late, late.animations[0].samplers[0].input)[:, 0]
    assert keys == pytest.approx([0, 0.15, 0.3, 0.45], abs=1e-6), "it begins with its first frame"
    weights = read_accessor(glb, sampler.output).reshape(4, 3)
    base = read_accessor(glb, primitive.attributes.POSITION)
    offsets = np.stack([read_accessor(glb, target["POSITION"]) for target in primitive.targets])
    shown = base + np.einsum("tk,knc->tnc", weights, offsets)
    np.testing.assert_allclose(shown, animation.positions.numpy(), atol=1e-6)
    indices = read_accessor(glb, primitive.indices)
    assert indices.reshape(-1, 3).tolist() == animation.faces.tolist()
    colours = read_accessor(glb, primitive.attributes.COLOR_0)[:, :3] / 65535
    np.testing.assert_allclose(colours, linear(animation.colours), atol=1e-4)


def test_the_material_asks_for_no_light_and_dark_tones_stay_apart():
    one = bending_ball(n_frames=1)
    levels = torch.arange(len(one.colours)).clamp(max=255)
    dark = replace(one, colours=(levels / 255)[:, None].expand(-1, 3))
    glb = pygltflib.GLTF2().load_from_bytes(glb_bytes(dark))
    material, attributes = glb.materials[0], glb.meshes[0].primitives[0].attributes
    assert glb.extensionsUsed == ["KHR_materials_unlit"] and not glb.extensionsRequired
    assert "KHR_materials_unlit" in material.extensions
    # What a viewer without the extension falls back to.
    assert material.pbrMetallicRoughness.metallicFactor == 0
    assert material.pbrMetallicRoughness.roughnessFactor == 1
    colours = read_accessor(glb, attributes.COLOR_0)
    assert glb.accessors[attributes.COLOR_0].normalized and (colours[:, 3] == 65535).all()
    assert len(np.unique(colours[:, 0])) == len(levels.unique())


def test_one_frame_becomes_a_glb_without_animation():
    animation = bending_ball(n_frames=1)
    glb = pygltflib.GLTF2().load_from_bytes(glb_bytes(animation))
    assert not glb.animations and not glb.meshes[0].primitives[0].targets
    assert glb_bytes(animation) == glb_bytes(animation.at(0))


def test_more_vertices_than_short_indices_reach():
    n = 70000
    mesh = bending_ball(n_frames=1).at(0)
    faces = torch.tensor([[0, 1, n - 1]])
    large = replace(mesh, vertices=torch.rand(n, 3), colours=torch.rand(n, 3), faces=faces)
    glb = pygltflib.GLTF2().load_from_bytes(glb_bytes(large))
    assert read_accessor(glb, glb.meshes[0].primitives[0].indices)[:, 0].tolist() == [0, 1, n - 1]


def test_20k_vertices_and_21_frames_are_quick_and_small(tmp_path):
    n, times = 20000, tuple(t / 20 for t in range(21))
    faces = torch.randint(0, n, (2 * n, 3))
    animation = MeshAnimation(torch.rand(21, n, 3), faces, torch.rand(n, 3), times, duration=2.5)
    start = time.process_time()
    size = write_animated_glb(tmp_path / "a.glb", animation)
    assert size < 10e6 and time.process_time() - start < 5


def test_a_texture_takes_the_place_of_the_vertex_colours():
    animation = bending_ball()
    n = animation.positions.shape[1]
    texture = Texture(torch.rand(n, 2), torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8))
    glb = pygltflib.GLTF2().load_from_bytes(glb_bytes(animation, texture))
    attributes = glb.meshes[0].primitives[0].attributes
    assert attributes.COLOR_0 is None
    np.testing.assert_array_equal(read_accessor(glb, attributes.TEXCOORD_0), texture.uvs.numpy())
    image = glb.images[glb.textures[glb.materials[0].pbrMetallicRoughness.baseColorTexture.index].source]
    view = glb.bufferViews[image.bufferView]
    png = glb.binary_blob()[view.byteOffset : view.byteOffset + view.byteLength]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), texture.pixels.numpy())


def test_a_baked_texture_has_the_colours_of_the_surface():
    pytest.importorskip("xatlas", reason="the optional extra texture is not installed")
    animation = bending_ball(n_frames=3)
    opened, texture = bake_texture(animation, 256)
    assert opened.positions.shape[1] > animation.positions.shape[1]
    assert opened.faces.shape == animation.faces.shape
    for frame in range(3):
        before = animation.positions[frame][animation.faces]
        torch.testing.assert_close(opened.positions[frame][opened.faces], before)
    centres = texture.uvs[opened.faces].mean(1) * 256
    painted = texture.pixels[centres[:, 1].long(), centres[:, 0].long()] / 255
    assert (painted - opened.colours[opened.faces].mean(1)).abs().max() < 0.03
    red = torch.tensor([1.0, 0.0, 0.0]).expand_as(animation.colours)
    _, texture = bake_texture(replace(animation, colours=red), 128)
    assert (texture.pixels == torch.tensor([255, 0, 0])).all(), "texels beyond the charts, too"


def test_a_texture_that_cannot_be_baked_is_refused(monkeypatch):
    for size in (10, 9000):
        with pytest.raises(ValueError, match="64 to 8192"):
            bake_texture(bending_ball(), size)
    monkeypatch.setitem(sys.modules, "xatlas", None)
    with pytest.raises(ModuleNotFoundError, match="pip install xatlas"):
        bake_texture(bending_ball())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"faces": torch.zeros(0, 3, dtype=torch.int64)}, "0 faces"),
        ({"positions": torch.zeros(3, 0, 3), "colours": torch.zeros(0, 3)}, "0 vertices"),
        ({"positions": DAMAGED}, "7 of 1458 numbers in the animation are NaN"),
        ({"colours": torch.full((162, 3), torch.nan)}, "finite colours"),
    ],
)
def test_what_no_file_can_hold_is_refused_and_leaves_nothing(tmp_path, changes, text):
    with pytest.raises(ValueError, match=text):
        write_animated_glb(tmp_path / "out" / "a.glb", replace(BALL, **changes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["glb", "obj", "ply"])
def test_trimesh_reads_each_frame(tmp_path, kind):
    files = write_mesh_sequence(tmp_path / "out", iter(CHANGING), TIMES, FPS, kind=kind)
    names = [*(f"mesh_{i:05d}.{kind}" for i in range(3)), "sequence.json"]
    assert [path.name for path in files] == names
    about = {"format": kind, "fps": FPS, "times": list(TIMES), "entries": names}
    assert json.loads(files[-1].read_text()) == about
    for path, mesh in zip(files, CHANGING, strict=False):
        read = trimesh.load_mesh(path, process=False, maintain_order=True)
        np.testing.assert_allclose(read.vertices, mesh.vertices.numpy(), atol=1e-6)
        assert read.faces.tolist() == mesh.faces.tolist()
        if kind != "glb":  # whose colours are linear; tests of GLB look at them
            shown = np.rint(mesh.colours.numpy() * 255)
            np.testing.assert_array_equal(read.visual.vertex_colors[:, :3], shown)


@pytest.mark.parametrize(
    ("meshes", "options", "text"),
    [
        (WITH_NAN, {}, "7 of 486 numbers in the mesh of frame 2 are NaN"),
        (CHANGING[:2], {"kind": "obj"}, "shorter"),
        (2 * CHANGING, {}, "longer"),
    ],
)
def test_a_sequence_that_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, meshes, options, text):
    with pytest.raises(ValueError, match=text):
        write_mesh_sequence(tmp_path / "out", meshes, TIMES, FPS, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".usdc", ".usda"])
@pytest.mark.parametrize(("meshes", "samples"), [(MOVING, 0), (CHANGING, 5)])
def test_pxr_reads_every_frame_at_its_time(tmp_path, meshes, samples, suffix):
    why = "the optional extra usd (usd-core) is not installed"
    usd, geometry = (pytest.importorskip(f"pxr.{name}", reason=why) for name in ("Usd", "UsdGeom"))
    path = tmp_path / f"a{suffix}"
    assert write_usd(path, meshes, SECONDS, fps=FPS) == path.stat().st_size
    stage = usd.Stage.Open(str(path))
    assert geometry.GetStageUpAxis(stage) == geometry.Tokens.y
    assert geometry.GetStageMetersPerUnit(stage) == 1.0
    assert stage.GetTimeCodesPerSecond() == FPS
    assert (stage.GetStartTimeCode(), stage.GetEndTimeCode()) == (0, 16)
    prim = geometry.Mesh(stage.GetPrimAtPath("/object/mesh"))
    assert stage.GetDefaultPrim() == prim.GetPrim().GetParent()
    assert prim.GetSubdivisionSchemeAttr().Get() == geometry.Tokens.none
    # Meshes of other triangles are not mixed at the whole codes between, which players ask for.
    assert prim.GetPointsAttr().GetTimeSamples() == ([0, 3, 4, 15, 16] if samples else [0, 4, 16])
    for mesh, second in zip(meshes, SECONDS, strict=True):
        code = second * FPS
        points = np.asarray(prim.GetPointsAttr().Get(code))
        np.testing.assert_allclose(points, mesh.vertices.numpy(), atol=1e-6)
        indices = prim.GetFaceVertexIndicesAttr().Get(code)
        counts = prim.GetFaceVertexCountsAttr().Get(code)
        assert np.asarray(indices).reshape(-1, 3).tolist() == mesh.faces.tolist()
        assert list(counts) == [3] * len(mesh.faces)
        shown = np.asarray(prim.GetDisplayColorPrimvar().Get(code))
        np.testing.assert_allclose(shown, linear(mesh.colours), atol=1e-6)
        extent = np.asarray(prim.GetExtentAttr().Get(code))
        np.testing.assert_allclose(extent, [points.min(0), points.max(0)], atol=1e-6)
        valid, why = geometry.Mesh.ValidateTopology(indices, counts, len(points))
        assert valid, why
        if samples and code:
            assert prim.GetPointsAttr().Get(code - 1) != prim.GetPointsAttr().Get(code)
    # What does not change is written once.
    assert prim.GetFaceVertexIndicesAttr().GetNumTimeSamples() == samples
    assert prim.GetDisplayColorPrimvar().GetAttr().GetNumTimeSamples() == samples


def test_programs_show_every_frame_at_its_whole_time_code(tmp_path):
    why = "the optional extra usd (usd-core) is not installed"
    usd, geometry = (pytest.importorskip(f"pxr.{name}", reason=why) for name in ("Usd", "UsdGeom"))
    times = even_times(21)  # 0.3 of 2 s at 10 fps is 3.0000000000000004
    meshes = [CHANGING[t % 2] for t in range(21)]
    write_usd(tmp_path / "a.usdc", meshes, [2 * time for time in times], fps=10.0)
    stage = usd.Stage.Open(str(tmp_path / "a.usdc"))
    points = geometry.Mesh.Get(stage, "/object/mesh").GetPointsAttr()
    assert [len(points.Get(code)) for code in range(21)] == [len(mesh.vertices) for mesh in meshes]
    assert (stage.GetStartTimeCode(), stage.GetEndTimeCode()) == (0, 20)


def test_usd_shows_one_mesh_at_a_time_where_their_vertices_are_as_many(tmp_path):
    why = "the optional extra usd (usd-core) is not installed"
    usd, geometry = (pytest.importorskip(f"pxr.{name}", reason=why) for name in ("Usd", "UsdGeom"))
    turned = replace(MOVING[1], faces=MOVING[1].faces.flip(0), colours=MOVING[1].colours.flip(0))
    write_usd(tmp_path / "a.usdc", [MOVING[0], turned, MOVING[2]], [0.0, 0.025, 0.5], fps=10.0)
    stage = usd.Stage.Open(str(tmp_path / "a.usdc"))
    points = geometry.Mesh.Get(stage, "/object/mesh").GetPointsAttr()
    for code, mesh in ((0, MOVING[0]), (0.25, turned), (1, turned), (4, turned), (5, MOVING[2])):
        np.testing.assert_allclose(points.Get(code), mesh.vertices.numpy(), atol=1e-6)


def test_usd_that_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pxr", None)
    monkeypatch.setitem(sys.modules, "pxr.Usd", None)
    with pytest.raises(ModuleNotFoundError, match="pip install usd-core"):
        write_usd(tmp_path / "out" / "a.usdc", MOVING, SECONDS)
    with pytest.raises(ValueError, match="7 of 486 numbers in the mesh of frame 2 are NaN"):
        write_usd(tmp_path / "out" / "a.usdc", WITH_NAN, SECONDS, fps=FPS)
    assert list(tmp_path.iterdir()) == []


@needs_browser
def test_three_shows_each_frame_at_its_time_and_the_way_between_two(tmp_path):
    animation = bending_ball(n_frames=4, subdivisions=3, duration=1.5)
    write_animated_glb(tmp_path / "a.glb", animation)
    # Frame numbers; the halves are between two frames.
    moments = (0.0, 1.0, 1.5, 2.0, 2.5, 3.0)
    asked = [(moment, view) for moment in moments for view in (0, 1)]
    pictures, read = viewer.render([shot(tmp_path / "a.glb", moment * 0.5, view) for moment, view in asked])
    assert read[0] == [{"name": ANIMATION_NAME, "duration": 1.5, "tracks": 1}]
    for picture, (moment, view) in zip(pictures, asked, strict=True):
        low, part = int(moment), moment % 1
        expected = animation.positions[low]
        if part:
            expected = torch.lerp(expected, animation.positions[low + 1], part)
        own = silhouette(expected, animation.faces, CAMERAS, view, SIZE)
        score = overlap(picture[..., 3] > 127, own)
        assert score >= 0.95, f"frame {moment}, view {view}: IoU {score:.3f}"
    first, last = pictures[0][..., 3] > 127, pictures[-2][..., 3] > 127
    # Otherwise the comparison above could not tell one frame from another.
    assert overlap(first, last) < 0.8
    assert overlap(pictures[2][..., 3] > 127, pictures[4][..., 3] > 127) < 0.95


@needs_browser
def test_three_shows_the_colours_of_the_pictures(tmp_path):
    one = bending_ball(n_frames=1)
    levels = (3, 40, 250), (128, 10, 90)
    for i, level in enumerate(levels):
        colours = (torch.tensor(level) / 255).expand_as(one.colours)
        write_animated_glb(tmp_path / f"{i}.glb", replace(one, colours=colours))
    pictures, read = viewer.render([shot(tmp_path / f"{i}.glb", 0.0) for i in (0, 1)])
    assert read == [[], []]
    for picture, level in zip(pictures, levels, strict=True):
        shown = picture[picture[..., 3] > 127][:, :3].astype(int)
        assert len(shown) > 500
        assert np.abs(shown - level).max() <= 1


@needs_browser
def test_three_shows_a_baked_texture_like_the_vertex_colours_it_was_made_of(tmp_path):
    pytest.importorskip("xatlas", reason="the optional extra texture is not installed")
    animation = bending_ball(n_frames=3)
    opened, texture = bake_texture(animation, 256)
    write_animated_glb(tmp_path / "textured.glb", opened, texture=texture)
    write_animated_glb(tmp_path / "coloured.glb", animation)
    asked = [shot(tmp_path / name, 1.3, 1) for name in ("textured.glb", "coloured.glb")]
    (textured, coloured), _ = viewer.render(asked)
    both = (textured[..., 3] > 127) & (coloured[..., 3] > 127)
    assert overlap(textured[..., 3] > 127, coloured[..., 3] > 127) > 0.99
    difference = np.abs(textured[both].astype(int) - coloured[both])[:, :3]
    # Vertex colours are blended in linear light, texels between display values.
    assert difference.mean() < 3 and np.percentile(difference, 99) < 12


@pytest.mark.skipif(bool(NO_VALIDATOR), reason=NO_VALIDATOR)
@pytest.mark.parametrize("kind", ["static", "moving", "textured"])
def test_the_validator_finds_nothing_wrong(tmp_path, kind):
    animation, texture = bending_ball(n_frames=1 if kind == "static" else 5), None
    if kind == "textured":
        pytest.importorskip("xatlas", reason="the optional extra texture is not installed")
        animation, texture = bake_texture(animation, 128)
    write_animated_glb(tmp_path / "a.glb", animation, texture=texture)
    issues = viewer.validate(tmp_path / "a.glb")
    assert issues["numErrors"] == 0 and issues["numWarnings"] == 0, issues["messages"]
    # It would find something wrong.
    (tmp_path / "b.glb").write_bytes((tmp_path / "a.glb").read_bytes().replace(b'"max"', b'"mux"'))
    assert viewer.validate(tmp_path / "b.glb")["numErrors"] > 0
