"""Folders of users' renders: how scenes are found and read, and that poisoned ones stop a training."""

import json
import logging
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sv4d2_core.cameras import Cameras
from sv4d2_core.data.views_folder import read_views, write_views
from sv4d2_core.training.curation import CurationLimits
from sv4d2_core.training.scenes import FolderScenes, check_training_folder, wrong_cameras
from sv4d2_core.video.foreground import near_white_masks
from sv4d2_core.views import ViewGrid
from sv4d2_core.world import make_creature, render_views

CAMERAS = Cameras((0, 0, 12.5), (0, 60, 210), input_elevation_deg=8.0)
SIZE, N_FRAMES, N_VIEWS = 32, 3, 2


@pytest.fixture(scope="module")
def grid() -> ViewGrid:
    return render_views(make_creature(2), CAMERAS, N_FRAMES, SIZE)


@pytest.fixture(scope="module")
def written(tmp_path_factory, grid) -> Path:
    """Return a folder of three scenes: ``fox`` and ``owl2`` are data sets, ``owl10`` a folder of views."""
    root = tmp_path_factory.mktemp("renders")
    write_views(root / "owl10", grid)
    for name in ("fox", "owl2"):
        for part in ("frames", "masks"):
            shutil.copytree(root / "owl10" / part, root / name / part)
        shutil.copy(root / "owl10/transforms.json", root / name)
    (root / "notes").mkdir()
    (root / "notes/readme.txt").write_text("no pictures here")
    (root / ".cache").mkdir()
    return root


@pytest.fixture
def root(tmp_path, written) -> Path:
    """Return a copy of the three scenes to spoil."""
    return Path(shutil.copytree(written, tmp_path / "renders"))


def check(root: Path, size: int = SIZE, n_views: int = N_VIEWS, n_frames: int = N_FRAMES) -> list[Path]:
    return check_training_folder(root, size=size, n_views=n_views, n_frames=n_frames)


@pytest.fixture
def refusal(caplog) -> Callable[..., list[str]]:
    """Return what checks a folder that must be refused, and returns what the log says of it."""

    def refused(root: Path, **sizes: int) -> list[str]:
        with pytest.raises(ValueError, match="Expected training scenes.*`sv4d2 curate`") as caught:
            check(root, **sizes)
        assert str(root) in str(caught.value) and len(str(caught.value)) <= 500
        return [record.message.strip() for record in caplog.records if record.levelname == "WARNING"]

    return refused


def change(file: Path, edit) -> None:
    """Rewrite a JSON file; ``edit`` changes its content in place."""
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def test_scenes_are_found_in_natural_order(written):
    assert [scene.name for scene in check(written)] == ["fox", "owl2", "owl10"]
    for scene in (written / "fox", written / "fox/transforms.json"):
        assert check(scene) == [scene]


def test_both_kinds_of_scenes_are_read_alike(written, grid):
    expected = read_views(written / "owl10")
    scenes = tuple(check(written))
    for index in range(3):
        read = FolderScenes(scenes, SIZE).scene(index)
        assert torch.equal(read.images, expected.images) and torch.equal(read.masks, expected.masks)
        assert np.allclose(read.cameras.azimuths_deg, CAMERAS.azimuths_deg)
        assert np.allclose(read.cameras.elevations_deg, CAMERAS.elevations_deg)
        small = FolderScenes(scenes, 16).scene(index)
        assert small.images.shape == (N_FRAMES, N_VIEWS + 1, 16, 16, 3) and small.masks is not None


def test_views_without_masks_get_them(tmp_path, grid):
    latents = torch.zeros(N_FRAMES, N_VIEWS, 4, 4, 4)
    write_views(tmp_path / "bare", replace(grid, masks=None, latents=latents), save_latents=True)
    read = FolderScenes((tmp_path / "bare",), SIZE).scene(0)
    assert read.masks is not None and read.latents is None
    assert torch.equal(read.masks, near_white_masks(read.images)) and 0 < float(read.masks.mean()) < 1


def test_a_folder_that_somebody_looked_at_is_the_same(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/picture.png").write_bytes(b"1")
    scenes = FolderScenes((tmp_path / "cat",), SIZE)
    before = scenes.identity()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "cat" / name).write_bytes(b"2")
    assert scenes.identity() == before
    (tmp_path / "cat/picture.png").write_bytes(b"3")
    assert scenes.identity() != before


def test_short_clips_are_named_and_allowed(written, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(check(written, n_frames=N_FRAMES)) == 3
        assert not caplog.records
        assert len(check(written, n_frames=12)) == 3
    assert "3 of 3 scenes have fewer than the model's 12 frames" in caplog.text
    assert "back and forth: fox (3), owl2 (3), owl10 (3)." in caplog.text


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is nothing at .*nowhere"):
        check(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"got nothing in it\. Give the folder that holds your renders"):
        check(tmp_path)
    (tmp_path / "clip.txt").write_text("x")
    with pytest.raises(ValueError, match=r"got 1 entries, no scene among them"):
        check(tmp_path)


NAN = float("nan")


def matrix(content, frame):
    return content["frames"][frame]["transform_matrix"]


def our_matrix(content):
    return content["views"][2]["c2w_opengl"][0]


def scaled(content):
    for frame in (1, 4, 7):
        for row in range(3):
            matrix(content, frame)[row][0] *= 1.2


def nearly_the_same(content):
    """Put view 1 where view 0 is, but for a hair's breadth."""
    close = Cameras((0, 0, 12.5), (0, 0.08, 210), input_elevation_deg=8.0).c2w_opengl()
    up = torch.tensor([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    for frame in (1, 4, 7):
        content["frames"][frame]["transform_matrix"] = (up @ close[1]).tolist()


def other_lens(content):
    del content["fl_x"], content["fl_y"]
    content["camera_angle_x"] = float(np.radians(80))


def one_view_gone(content):
    content["frames"] = [content["frames"][i] for i in (0, 1, 3, 4, 6, 7)]


FOX, OWL = "fox/transforms.json", "owl10/cameras.json"


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        (FOX, lambda c: matrix(c, 4)[0].__setitem__(3, NAN), r"transform_matrix in frame 4"),
        (FOX, scaled, r"axes of length 1 .*frame [147] .* off by 0\.44"),
        (FOX, nearly_the_same, r"views 0 and 1 are 0\.079\d degrees apart"),
        (FOX, other_lens, r"field of view of about 33\.8 degrees \(10 to 51\).*got 80\."),
        (FOX, one_view_gone, r"at least 3 cameras .* model's 2 novel views\); got 2\."),
        (FOX, lambda c: c.update(frames=c["frames"][:3]), r"at least 2 frames; got 1\."),
        (
            OWL,
            lambda c: our_matrix(c).__setitem__(0, NAN),
            r"c2w_opengl in entry 2 of views in .*got \[\[nan",
        ),
        (OWL, lambda c: our_matrix(c).__setitem__(0, 0.25), r"of view 2 is off by \d\.\d+\."),
        (
            OWL,
            lambda c: c["azimuths_deg"].__setitem__(1, NAN),
            r"finite numbers as azimuths_deg in .*\[0\.0, nan, 210\.0\]",
        ),
    ],
)
def test_wrong_cameras_are_named(root, file, edit, message, refusal):
    change(root / file, edit)
    (line,) = refusal(root)
    assert re.search(rf"^{file.split('/')[0]}: .*{message}", line), line


def damaged_cameras(root):
    (root / "fox/transforms.json").write_text('{"frames": [')
    (root / "owl2/transforms.json").unlink()


CUT_SHORT = [(name, v) for name in ("fox", "owl10") for v in (0, 2)]


def cut_short(root):
    for name, v in CUT_SHORT:
        file = root / name / f"frames/view_0{v}/00001.png"
        file.write_bytes(file.read_bytes()[:60])


def missing_pictures(root):
    for t in (1, 2):
        (root / f"fox/frames/view_01/0000{t}.png").unlink()
        (root / f"owl10/frames/view_02/0000{t}.png").unlink()


def other_picture(root, name):
    def edit(content):
        content["frames"][7]["file_path"] = f"frames/view_01/{name}"

    change(root / "fox/transforms.json", edit)
    return root / "fox/frames/view_01" / name


def floats_with_nan(root):
    levels = np.full((SIZE, SIZE), 0.5, np.float32)
    levels[3, 4:6] = np.nan, np.inf
    Image.fromarray(levels).save(other_picture(root, "00002.tiff"))


def dpx(root):
    """FFmpeg would decode it, as a video."""
    other_picture(root, "odd.dpx").write_bytes(b"v/1")


def resized(files, size):
    for file in files:
        with Image.open(file) as picture:
            picture.resize(size).save(file)


def mixed_sizes(root):
    resized([root / n / f"frames/view_0{v}/00002.png" for n in ("fox", "owl10") for v in (0, 2)], (48, 48))


def oblong(root):
    resized([file for n in ("fox", "owl10") for file in (root / n).rglob("*/view_*/*.png")], (32, 40))


def white(root):
    for t in (1, 2):
        Image.new("RGB", (SIZE, SIZE), "white").save(root / f"fox/frames/view_01/0000{t}.png")
        Image.new("L", (SIZE, SIZE), 0).save(root / f"owl10/masks/view_02/0000{t}.png")


def covered(root):
    Image.new("L", (SIZE, SIZE), 255).save(root / "owl10/masks/view_01/00002.png")


def one_floor_down(root):
    (root / "train").mkdir()
    (root / "fox").rename(root / "train/fox")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            damaged_cameras,
            [r"fox: .*JSON in .*transforms\.json; it is damaged", "owl2: .*cameras .* got 18 pictures"],
        ),
        (floats_with_nan, [r"fox: .*view_01/00002\.tiff.* got 2 NaN or infinite values of 1024"]),
        (cut_short, [rf"{n}: .*{n}/frames/view_0{v}/00001\.png is not" for n, v in CUT_SHORT] + [...]),
        (dpx, [r"fox: .*1 of 9 frames are of another kind, .*view_01/odd\.dpx\.", ...]),
        (mixed_sizes, [rf"{n}: .*; got 7 of 32 x 32, 2 of 48 x 48" for n in ("fox", "owl10")] + [...]),
        (oblong, ["fox: .*square .* has 32 x 40", "owl10: .*square .*; got 32 x 40"]),
        (white, [f"{n}: .*; 2 of 9 show none .* frame 1 of view {v}" for n, v in (("fox", 1), ("owl10", 2))]),
        (covered, [r"owl10: .*1 of 9 are covered by it .*first is frame 2 of view 1\."]),
        (one_floor_down, [r"train: .*it holds 1 of them, the first is fox\. Give that folder"]),
        (
            missing_pictures,
            [
                r"fox: Expected the picture .*fox/frames/view_01/00001\.png of frame 4",
                r"fox: 2 of 9 pictures are missing, the first is .*view_01/00001\.png",
                r"owl10: .* lacks 2 of its files: frames/view_02/00001\.png",
            ],
        ),
    ],
)
def test_what_is_wrong_with_the_files_is_named(root, spoil, expected, refusal):
    """`...`: there may be further lines."""
    spoil(root)
    lines, messages = refusal(root), [message for message in expected if message is not ...]
    for message in messages:
        assert sum(re.match(message, line) is not None for line in lines) == 1, lines
    assert ... in expected or len(lines) == len(messages), lines


def test_pictures_that_are_too_small_and_too_few_views_are_both_named(root, refusal):
    lines = refusal(root, size=48, n_views=4)
    assert len(lines) == 6
    assert re.search(r"^fox: Expected at least 5 cameras .*4 novel views\); got 3\.", lines[0]), lines
    assert re.search(r"^fox: Expected pictures of at least 48 x 48; got 32 x 32\.", lines[1]), lines


def test_views_of_untrained_weights_are_refused(root, grid, refusal):
    write_views(root / "noise", replace(grid, trained=False))
    (line,) = refusal(root)
    assert line.startswith("noise: ") and "noise that an untrained model made" in line


def test_a_long_list_is_cut(root, refusal):
    for k in range(25):
        (root / f"bad{k}").mkdir()
        (root / f"bad{k}/transforms.json").write_text("[]")
    lines = refusal(root)
    assert len(lines) == 21 and lines[-1] == "and 5 more"
    assert [line.split(":")[0] for line in lines[:3]] == ["bad0", "bad1", "bad2"]
    with pytest.raises(ValueError, match="25 of 28 cannot be used"):
        check(root)


def test_the_narrow_lens_that_curation_leaves_is_taken():
    enlarged = 2 * math.degrees(math.atan(math.tan(math.radians(33.8 / 2)) / CurationLimits().largest_zoom))
    assert not list(wrong_cameras(Cameras((0, 0, 0), (0, 90, 180), fov_deg=enlarged), n_views=2))
