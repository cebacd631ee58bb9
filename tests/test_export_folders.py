"""Writing a file or a folder is one step: all is as it was after a failure. What a folder of views holds."""

import errno
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from bending import bending_ball
from PIL import Image

from sv4d2_core import stored
from sv4d2_core.cameras import Cameras
from sv4d2_core.data.datasets import write_colmap, write_dataset
from sv4d2_core.data.views_folder import read_views, write_views
from sv4d2_core.export.glb import write_animated_glb
from sv4d2_core.export.report import write_report
from sv4d2_core.export.sequences import (
    time_codes,
    write_animation,
    write_mesh_sequence,
    write_pngs,
    write_usd,
)
from sv4d2_core.export.splats import write_splat_sequence, write_splats
from sv4d2_core.files import all_or_nothing
from sv4d2_core.metrics.evaluate import SceneScores
from sv4d2_core.metrics.report.tables import SceneComparison
from sv4d2_core.scene.gaussians.gaussians import Gaussians
from sv4d2_core.scene.gaussians.splatting import GaussiansAt
from sv4d2_core.scene.store import load_scene
from sv4d2_core.stored import read_tensors
from sv4d2_core.video.read import load_clip
from sv4d2_core.views import ViewGrid
from sv4d2_core.world import make_creature, render_views

ROOT = Path(__file__).resolve().parents[1]


def write(folder: Path, text: str, existing=(), fail: BaseException | None = None) -> None:
    with all_or_nothing(folder, lambda: existing, "run.json", needed_bytes=123_000_000) as staging:
        (staging / "run.json").write_text(text)
        (staging / "frames").mkdir()
        (staging / "frames" / "0.png").write_text(text)
        if fail is not None:
            raise fail


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("x"), OSError(errno.ENOSPC, "full")])
def test_failure_leaves_nothing_new_and_keeps_the_old_entries(tmp_path, error):
    out, old = tmp_path / "a" / "b", tmp_path / "old"
    with pytest.raises(type(error)):
        write(out, "new", fail=error)
    assert list(tmp_path.iterdir()) == [], "not even the folders above"
    write(old, "old")
    (old / "mine.txt").write_text("mine")
    before = tree(old)
    with pytest.raises(type(error)):
        write(old, "new", existing=["frames", "run.json"], fail=error)
    assert tree(old) == before
    write(old, "new", existing=["frames", "run.json"])
    assert tree(old) == {"run.json": b"new", "frames/0.png": b"new", "mine.txt": b"mine"}


def test_a_move_that_fails_half_way_is_undone(tmp_path, monkeypatch):
    write(tmp_path, "old")
    before, moved, rename = tree(tmp_path), [], Path.rename

    def failing(self, target):
        moved.append(self.name)
        if len(moved) == 4:
            raise PermissionError(errno.EACCES, "held open by another program")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Choose another folder"):
        write(tmp_path, "new", existing=["frames", "run.json"])
    # The old entries go out, the marker first, and the new ones come in, the marker last.
    assert moved[:4] == ["run.json", "frames", "frames", "run.json"]
    assert tree(tmp_path) == before


def test_the_cause_is_explained_and_the_error_number_kept(tmp_path):
    for number in (errno.ENOSPC, errno.EFBIG):
        with pytest.raises(OSError, match=r"up to 123 MB of space in .*out; .*Free some space") as caught:
            write(tmp_path / "out", "new", fail=OSError(number, "full"))
        assert caught.value.errno == number
    with pytest.raises(OSError, match=r"out; the system refuses .*Choose another") as caught:
        write(tmp_path / "out", "new", fail=OSError(errno.EROFS, "Read-only file system"))
    assert caught.value.errno == errno.EROFS
    with pytest.raises(OSError, match="^.Errno 5. broken$"):
        write(tmp_path / "out", "new", fail=OSError(errno.EIO, "broken"))


def test_a_file_in_the_folders_place_is_explained(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OSError, match="a file stands at"):
        write(tmp_path / "out", "new")
    assert (tmp_path / "out").read_text() == "a file"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOMEM, "Cannot allocate memory"), RuntimeError("CUDA error: out of memory")]
)
def test_reading_that_runs_out_of_memory_is_not_called_damage(tmp_path, monkeypatch, error):
    grid = ViewGrid(torch.rand(1, 2, 16, 16, 3), Cameras.ring(1))
    write_views(tmp_path / "views", grid)
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    scene = Path(__file__).parent / "data/version_0_1/gaussians.safetensors"

    for owner, name, read, source in (
        (Cameras, "from_json", read_views, tmp_path / "views"),
        (Gaussians, "from_tensors", load_scene, scene),
        (stored, "safe_open", partial(read_tensors, kind="sv4d2.scene"), scene),
        (Image, "open", load_clip, tmp_path / "one.png"),
    ):
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(owner, name, Mock(side_effect=error))
            read(source)


FULL_DISK = """
import resource, sys
import torch
from pathlib import Path
from sv4d2_core.cameras import Cameras
from sv4d2_core.data.datasets import write_colmap, write_dataset
from sv4d2_core.data.views_folder import write_views
from sv4d2_core.views import ViewGrid

torch.set_num_threads(1)
grid = ViewGrid(torch.rand(2, 3, 64, 64, 3), Cameras.ring(2))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    write_views(Path(sys.argv[1]), grid, crop=None, run={})
except OSError as error:
    sys.exit("full: " + str(error))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a POSIX feature")
@pytest.mark.parametrize("limit", [0, 4000])
def test_a_file_that_does_not_fit_leaves_nothing_behind(tmp_path, limit):
    """The videos are written by libav, the rest by Python: neither may leave a short file."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "out"), str(limit)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1, result.stderr
    assert "full: Expected up to 1 MB of space" in result.stderr
    assert list(tmp_path.iterdir()) == []


def scores(name: str = "s") -> SceneComparison:
    """Return hand-made scores of one method without pictures."""
    clips = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = {"tangency": torch.ones(3, 2, dtype=torch.float64)}
    rig = Cameras((0, 0, 0), (0, 90, 180))
    made = SceneScores("predicted", name, rig, 3, values, {"FHD-F": (clips, clips)}, {"FHD-F": 3})
    return SceneComparison(name, (made,), (), ((64, 64),))


def squares(n: int) -> ViewGrid:
    """Return n frames of n views besides the input, with masks if they are several."""
    masks = torch.ones(n, n + 1, 16, 16) if n > 1 else None
    return ViewGrid(torch.rand(n, n + 1, 16, 16, 3), Cameras.ring(n), masks)


GAUSSIAN = GaussiansAt(*(torch.full((1, *shape), 0.5) for shape in ((3,), (4,), (3,), (), (3,))))
BALL = bending_ball(n_frames=2)
FULL = torch.ones(2, 3, 16, 16)
# Each writes a folder of n frames.
FOLDERS = {
    "views": lambda out, n, **how: write_views(out, squares(n), **how),
    "pngs": lambda out, n, **how: write_pngs(out, torch.rand(n, 8, 8, 3), None, 8, **how),
    "meshes": lambda out, n, **how: write_mesh_sequence(
        out, map(BALL.at, range(n)), range(n), 8, kind=("ply", "obj")[n - 1], **how
    ),
    "splats": lambda out, n, **how: write_splat_sequence(out, n * [GAUSSIAN], range(n), 8, **how),
    "report": lambda out, n, **how: write_report(out, [scores(str(n))], **how),
    "dataset": lambda out, n, **how: write_dataset(out, replace(squares(n), masks=FULL[:n, : n + 1]), **how),
    "colmap": lambda out, n, **how: write_colmap(out, squares(n), **how),
}


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("views", "cameras.json"),
        ("pngs", "00000.png"),
        ("meshes", "mesh_00000.glb"),
        ("splats", "splat_00000.ply"),
        ("report", "report.json"),
        ("report", "report.md"),
        ("report", "report.html"),
        ("dataset", "dataset.json"),
        ("colmap", "colmap.json"),
    ],
)
def test_a_folder_is_replaced_as_a_whole_only_when_asked_and_only_if_it_is_ours(
    tmp_path, monkeypatch, kind, own
):
    write, out, foreign = FOLDERS[kind], tmp_path / "out", tmp_path / "foreign"
    write(out, 2)
    (out / ".windows").mkdir()
    (out / "notes.png").write_text("mine")
    before = tree(out)
    with pytest.raises(FileExistsError, match=r"exists already.*--overwrite"):
        write(out, 1)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Free some space"):
        patch.setattr(Path, "rename", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        write(out, 1, overwrite=True)
    assert tree(out) == before
    write(out, 1, overwrite=True)
    write(tmp_path / "new", 1)
    assert tree(out).keys() == {*tree(tmp_path / "new"), "notes.png"} and (out / ".windows").is_dir()
    assert any(tree(out).get(name) != content for name, content in before.items())
    foreign.mkdir()
    (foreign / own).write_text("{}")
    with pytest.raises(FileExistsError, match=rf"{own}.*never replace"):
        write(foreign, 1, overwrite=True)
    assert tree(foreign) == {own: b"{}"}


def test_another_export_and_what_a_list_of_entries_names_elsewhere_are_never_replaced(tmp_path):
    out, mine = tmp_path / "out", tmp_path / "mine.ply"
    mine.write_text("mine")
    FOLDERS["splats"](out, 1)
    before = tree(out)
    with pytest.raises(FileExistsError, match=r"export of another kind \(splat_00000\.ply\)"):
        FOLDERS["meshes"](out, 1, overwrite=True)
    assert tree(out) == before
    about = json.loads((out / "sequence.json").read_text())
    about["entries"] += ["../mine.ply", str(mine), 7]
    (out / "sequence.json").write_text(json.dumps(about))
    FOLDERS["splats"](out, 1, overwrite=True)
    assert mine.read_text() == "mine"


def pictures(path: Path, **how: bool) -> None:
    write_animation(path, torch.rand(2, 32, 32, 3), None, 8, **how)


FILES = {
    "a.glb": lambda path, **how: write_animated_glb(path, BALL, **how),
    "a.usda": lambda path, **how: write_usd(path, [BALL.at(0)], [0.0], **how),
    **dict.fromkeys(
        ("a.ply", "a.splat"), lambda path, **how: write_splats(path, GAUSSIAN, kind=path.suffix[1:], **how)
    ),
    **dict.fromkeys(("a.mp4", "a.webm", "a.gif"), pictures),
}


@pytest.mark.parametrize("name", FILES)
def test_an_existing_file_stays_unless_told(tmp_path, name):
    if name == "a.usda":
        pytest.importorskip("pxr.Usd", reason="the optional extra usd (usd-core) is not installed")
    path, write = tmp_path / name, FILES[name]
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        write(path)
    with pytest.raises(OSError, match="a file stands at"):
        write(path / name)
    assert path.read_text() == "mine"
    write(path, overwrite=True)
    assert path.read_bytes()[:4] != b"mine" and len(list(tmp_path.iterdir())) == 1
    folder = tmp_path / f"folder{path.suffix}"
    folder.mkdir()
    with pytest.raises(FileExistsError, match="is a folder"):
        write(folder, overwrite=True)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "denied")])
def test_a_failure_on_the_disk_leaves_no_file_and_says_what_to_do(tmp_path, monkeypatch, error):
    monkeypatch.setattr(os, "fsync", Mock(side_effect=error))
    with pytest.raises(OSError, match="Free some space|change its permissions"):
        write_animated_glb(tmp_path / "new" / "a.glb", BALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("scenes", "settings", "text"),
    [
        ([], {}, "each with its own name"),
        ([scores("one"), scores("one")], {}, "each with its own name"),
        ([scores()], {"run": {"a": math.nan}}, "JSON"),
        ([scores()], {"shrinkage": 2.0}, "Expected"),
    ],
)
def test_nothing_is_written_when_the_report_cannot_be_made(tmp_path, scenes, settings, text):
    with pytest.raises(ValueError, match=text):
        write_report(tmp_path / "report", scenes, **settings)
    assert list(tmp_path.iterdir()) == []


CAMERAS = Cameras((0, 0, 12.5), (0, 60, 210), radius=2.2, fov_deg=35.0, input_elevation_deg=8.0)


@pytest.fixture(scope="module")
def grid() -> ViewGrid:
    rendered = render_views(make_creature(2), CAMERAS, 4, 48, fps=7.5)
    return replace(rendered, latents=torch.randn(4, 2, 4, 6, 6), variant="sv4d2", seed=23, steps=50)


def test_the_folder_holds_what_was_decided(tmp_path, grid):
    written = write_views(
        tmp_path, grid, crop={"mode": "global"}, run={"host": "test", "trained": 0}, save_latents=True
    )
    expected = {"run.json", "cameras.json", "transforms.json", "transforms_train.json", "contact_sheet.png"}
    expected |= {f"view_{v:02d}.mp4" for v in range(3)} | {"latents/latents.safetensors"}
    expected |= {
        f"{kind}/view_{v:02d}/{t:05d}.png" for kind in ("frames", "masks") for v in range(3) for t in range(4)
    }
    found = tree(tmp_path)
    assert found.keys() == expected
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()}
    assert written[-1].name == "run.json"
    for name, suffix in (("transforms.json", ""), ("transforms_train.json", ".png")):
        for frame in json.loads(found[name])["frames"]:
            assert {frame["file_path"][2:] + suffix, frame["mask_path"][2:]} < found.keys()
    with Image.open(tmp_path / "frames/view_01/00002.png") as frame:
        assert (frame.mode, frame.size) == ("RGB", (48, 48))
        assert frame.getpixel((0, 0)) == (255, 255, 255)
    with Image.open(tmp_path / "masks/view_01/00002.png") as mask:
        assert (mask.mode, mask.size) == ("L", (48, 48))
        assert np.asarray(mask).max() == 255
    run = json.loads(found["run.json"])
    made = {"host": "test", "seed": 23, "steps": 50, "variant": "sv4d2", "trained": True}
    assert made.items() <= run.items() and "warning" not in run


def test_round_trip(tmp_path, grid):
    write_views(tmp_path, grid, save_latents=True)
    back = read_views(tmp_path)
    for name, tolerance in (("images", 0.5 / 255 + 1e-6), ("masks", 0.5 / 255 + 1e-6), ("latents", 2e-3)):
        read, written = getattr(back, name), getattr(grid, name)
        assert read.dtype == torch.float32 and torch.allclose(read, written, atol=tolerance, rtol=1e-3)
    for field in ("cameras", "fps", "variant", "trained", "seed", "steps"):
        assert getattr(back, field) == getattr(grid, field)


def test_times_of_their_own_round_trip_and_stand_in_the_camera_files(tmp_path, grid):
    times = tuple(0.25 + 0.5 * t / grid.n_frames for t in range(grid.n_frames))
    write_views(tmp_path / "views", replace(grid, times=times), run={})
    assert read_views(tmp_path / "views").times == times
    frames = json.loads((tmp_path / "views/transforms.json").read_text())["frames"]
    assert tuple(dict.fromkeys(frame["time"] for frame in frames)) == times
    assert json.loads((tmp_path / "views/cameras.json").read_text())["times"] == list(times)
    assert read_views(tmp_path / "views").at_frames(range(2)).frame_times() == times[:2]


def test_a_single_frame_without_masks_and_provenance_round_trips(tmp_path, grid):
    bare = ViewGrid(grid.images[:1], CAMERAS)
    write_views(tmp_path, bare, crop=None, run={})
    back = read_views(tmp_path)
    assert back.masks is None and back.latents is None
    assert (back.seed, back.steps, back.variant, back.n_frames) == (None, None, "", 1)
    frames = json.loads((tmp_path / "transforms.json").read_text())["frames"]
    assert [frame["time"] for frame in frames] == [0, 0, 0]
    assert all("mask_path" not in frame for frame in frames)


def test_wrong_input_is_refused_before_anything_is_written(tmp_path, grid):
    target = tmp_path / "out"
    with pytest.raises(ValueError, match="square images of even size.*48 x 40"):
        write_views(target, ViewGrid(grid.images[..., :40, :], CAMERAS), crop=None, run={})
    with pytest.raises(ValueError, match="Leave save_latents off"):
        write_views(target, replace(grid, latents=None), crop=None, run={}, save_latents=True)
    with pytest.raises(ValueError, match="plain JSON values"):
        write_views(target, grid, crop={"box": torch.zeros(4)}, run={})
    with pytest.raises(ValueError):
        write_views(target, grid, crop=None, run={"seconds": float("nan")})
    assert not target.exists()


def test_an_incomplete_folder_is_not_read(tmp_path, grid):
    with pytest.raises(FileNotFoundError, match=r"has no run\.json"):
        read_views(tmp_path)
    write_views(tmp_path, grid, crop=None, run={})
    (tmp_path / "run.json").unlink()
    with pytest.raises(FileNotFoundError, match="complete folder of views"):
        read_views(tmp_path)


def test_settings_travel_with_the_views(tmp_path, grid):
    made = replace(grid, settings={"sampler": ["euler", "karras"], "host": "first"})
    write_views(tmp_path / "one", made, run={"settings": {"host": "second"}})
    again = read_views(tmp_path / "one")
    assert again.settings == {"sampler": ["euler", "karras"], "host": "second"}
    write_views(tmp_path / "two", again)
    assert json.loads((tmp_path / "two/run.json").read_text())["settings"] == again.settings
    write_views(tmp_path / "three", grid)
    assert read_views(tmp_path / "three").settings is None


@pytest.mark.parametrize("fps", [8.0, 10.0, 24.0, 25.0, 29.97, 30.0])
def test_every_frame_has_a_whole_time_code_in_usd(fps):
    """A player asks for whole ones, and between two samples shows the earlier."""
    seconds = [time * (20 / fps) for time in torch.linspace(0, 1, 21, dtype=torch.float64).tolist()]
    assert time_codes(seconds, fps) == list(range(21))
