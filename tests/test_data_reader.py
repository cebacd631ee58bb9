"""Data sets in the style of D-NeRF, and normals as pictures, read back."""

from __future__ import annotations

import json
import random
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from sv4d2_core.cameras import Cameras
from sv4d2_core.data.reader import read_dataset, read_normals
from sv4d2_core.data.views_folder import read_views, write_views
from sv4d2_core.video.foreground import near_white_masks
from sv4d2_core.video.pictures import write_frames
from sv4d2_core.views import ViewGrid
from sv4d2_core.world import make_creature, render_views

torch.set_num_threads(1)

CAMERAS = Cameras((0, 0, 12.5), (0, 60, 210), radius=2.2, fov_deg=35.0, input_elevation_deg=8.0)
SIZE, N_FRAMES = 32, 3


@pytest.fixture(scope="module")
def grid() -> ViewGrid:
    return render_views(make_creature(2), CAMERAS, N_FRAMES, SIZE, fps=7.5)


@pytest.fixture(scope="module")
def written(tmp_path_factory, grid):
    """Return a folder of views."""
    folder = tmp_path_factory.mktemp("views") / "ours"
    write_views(folder, grid)
    return folder


@pytest.fixture
def dataset(tmp_path, written):
    """Return a data set without our own files: frames, masks and transforms_train.json."""
    folder = tmp_path / "data"
    for name in ("frames", "masks"):
        shutil.copytree(written / name, folder / name)
    shutil.copy(written / "transforms_train.json", folder)
    return folder


def change(folder, edit, name="transforms_train.json"):
    """Rewrite a JSON file; ``edit`` changes its content in place."""
    content = json.loads((folder / name).read_text())
    edit(content)
    (folder / name).write_text(json.dumps(content))


def same(actual: ViewGrid, expected: ViewGrid):
    assert torch.equal(actual.images, expected.images)
    assert actual.masks is not None and expected.masks is not None
    assert torch.equal(actual.masks, expected.masks)
    assert actual.cameras == expected.cameras


def test_a_data_set_is_read_as_our_own_folder_is(dataset, written):
    expected = read_views(written)
    read = read_dataset(dataset)
    same(read, expected)
    assert read.fps == 7.5 and read.images.dtype == torch.float32
    same(read_dataset(dataset / "transforms_train.json"), expected)
    (dataset / "transforms_train.json").rename(dataset / "transforms.json")
    same(read_dataset(str(dataset)), expected)


def test_order_scale_and_writing_of_times_and_paths_do_not_matter(dataset, written):
    def edit(content):
        first, *rest = content["frames"]
        content["frames"] = [first, *sorted(rest, key=lambda frame: frame["transform_matrix"])]
        for frame in content["frames"]:
            frame["time"] = 5 + 20 * frame["time"] + random.Random(frame["file_path"]).uniform(-1e-7, 1e-7)
            frame["file_path"] = frame["file_path"].replace("./frames/", "masks\\..\\frames\\") + ".png"
        del content["fps"]

    change(dataset, edit)
    expected, read = read_views(written), read_dataset(dataset)
    order = [read.cameras.azimuths_deg.index(azimuth) for azimuth in CAMERAS.azimuths_deg]
    assert torch.equal(read.images[:, order], expected.images)
    assert read.fps == 8


@pytest.mark.parametrize("has_times", [True, False])
def test_a_single_time_is_a_grid_of_one_frame(dataset, written, has_times):
    def edit(content):
        content["frames"] = content["frames"][6:]
        for frame in content["frames"]:
            frame.pop("time") if not has_times else None

    change(dataset, edit)
    read = read_dataset(dataset)
    assert read.n_frames == 1 and torch.equal(read.images[0], read_views(written).images[2])


def save_rgba(file, rgb, alpha):
    Image.fromarray(np.dstack([rgb, alpha]).astype(np.uint8), "RGBA").save(file)


def test_transparent_pictures_are_put_on_white_exactly(dataset):
    """Straight alpha, as Blender writes it: hidden colours and all opacities; alpha wins over mask_path."""
    levels = np.random.default_rng(0)
    rgb = levels.integers(0, 256, (N_FRAMES, 3, SIZE, SIZE, 3))
    alpha = levels.integers(0, 256, (N_FRAMES, 3, SIZE, SIZE))
    for t in range(N_FRAMES):
        for v in range(3):
            save_rgba(dataset / f"frames/view_{v:02d}/{t:05d}.png", rgb[t, v], alpha[t, v])
    read = read_dataset(dataset)
    opacity = alpha[..., None] / 255
    expected = rgb / 255 * opacity + 1 - opacity
    assert read.masks is not None
    assert np.abs(read.images.numpy() - expected).max() < 1e-6
    assert np.abs(read.masks.numpy() - alpha / 255).max() < 1e-6


def test_alpha_that_is_opaque_everywhere_says_nothing(dataset, written):
    for file in (dataset / "frames").rglob("*.png"):
        with Image.open(file) as picture:
            picture.convert("RGBA").save(file)
    same(read_dataset(dataset), read_views(written))


def test_one_transparent_picture_makes_its_view_transparent(dataset, written):
    """An object that fills a frame leaves no transparent pixel in it, and PNG writers drop such alpha."""
    with Image.open(dataset / "frames/view_01/00000.png") as picture:
        save_rgba(dataset / "frames/view_01/00000.png", np.asarray(picture), np.full((SIZE, SIZE), 51))
    read, expected = read_dataset(dataset), read_views(written)
    assert read.masks is not None and expected.masks is not None
    assert read.masks[0, 1].unique().tolist() == [pytest.approx(0.2)] and (read.masks[1:, 1] == 1).all()
    assert torch.equal(read.masks[:, [0, 2]], expected.masks[:, [0, 2]])


def without_masks(content):
    for frame in content["frames"]:
        frame.pop("mask_path", None)


def test_without_alpha_and_masks_the_near_white_rule_holds(dataset):
    change(dataset, without_masks)
    read = read_dataset(dataset)
    assert read.masks is not None and torch.equal(read.masks, near_white_masks(read.images))
    assert 0 < float(read.masks.mean()) < 1


def on_black(folder, grid):
    """Replace the frames by those of a method that writes on black."""
    black = grid.images - (1 - grid.masks[..., None])
    for v in range(grid.n_views + 1):
        shutil.rmtree(folder / f"frames/view_{v:02d}")
        write_frames(folder / f"frames/view_{v:02d}", black[:, v])


def test_masks_put_pictures_on_black_onto_white(dataset, grid):
    """At half-covered pixels black has been mixed in before: only there may the colours differ."""
    on_black(dataset, grid)
    read = read_dataset(dataset)
    whole = ((grid.masks == 0) | (grid.masks == 1))[..., None].expand_as(grid.images)
    assert (read.images - grid.images)[whole].abs().max() < 0.5 / 255 + 1e-6
    assert float(read.images[:, :, 0, 0].min()) == 1


def test_pictures_on_black_without_masks_are_refused(dataset, grid):
    change(dataset, without_masks)
    on_black(dataset, grid)
    with pytest.raises(ValueError, match=r"near-white background .* got \d+ % of the border .*view_00/00000"):
        read_dataset(dataset)


NAN = float("nan")
BROKEN = {
    "a gap": (lambda c: c["frames"].pop(4), r"3 cameras x 3 times in .*got 8 of 9 .* view 1 at time 0\.5"),
    "a moving camera": (
        lambda c: c.update(frames=[c["frames"][i] for i in (0, 4, 8)]),
        r"got 3 of 9 pictures\. The first that is missing is view 0 at time 0\.5.*moving camera",
    ),
    "the same twice": (
        lambda c: c["frames"].append(dict(c["frames"][4])),
        r"frame 4 .* and frame 9 .* share both \(view 1, time 0\.5\)",
    ),
    "uneven times": (
        lambda c: [f.update(time=0.6) for f in c["frames"][3:6]],
        r"evenly spaced times in .*got 3 from 0 to 1, number 2 at 0\.6 instead of 0\.5",
    ),
    "a time missing": (lambda c: c["frames"][7].pop("time"), r"1 of 9 have none, the first is frame 7"),
    "no number": (
        lambda c: c["frames"][7].update(time=NAN),
        r"number for time; got 'nan' in frame 7",
    ),
    "no path": (lambda c: c["frames"][7].pop("file_path"), r"file_path in every frame; frame 7"),
    "some masks": (lambda c: c["frames"][7].pop("mask_path"), r"mask_path in every frame .*frame 7"),
    "absolute": (
        lambda c: c["frames"][0].update(file_path="/etc/hostname"),
        r"frame 0 .* leads out of it: '/etc/hostname'",
    ),
    "upwards": (
        lambda c: c["frames"][0].update(file_path="./frames/../../secret"),
        r"leads out of it: './frames/../../secret'",
    ),
    "another drive": (lambda c: c["frames"][0].update(mask_path="C:\\a.png"), r"leads out of it: 'C:"),
    "rate": (lambda c: c.update(fps=0), r"frame rate from 0\.1 to 1000; got fps = 0"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_data_sets_that_are_no_grid_are_refused_with_numbers(dataset, case):
    edit, message = BROKEN[case]
    change(dataset, edit)
    with pytest.raises(ValueError, match=message) as caught:
        read_dataset(dataset)
    assert str(dataset) in str(caught.value)


def test_missing_and_damaged_pictures_are_named(dataset):
    frame, mask = dataset / "frames/view_01/00002.png", dataset / "masks/view_02/00001.png"
    mask.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"the picture {mask} of frame 5")):
        read_dataset(dataset)
    frame.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"the picture {frame} of frame 7")):
        read_dataset(dataset)
    frame.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=re.escape(f"{frame} is not")):
        read_dataset(dataset)


def test_pictures_of_other_sizes_are_named(dataset):
    def resize(name, size):
        with Image.open(dataset / name) as picture:
            picture.resize(size).save(dataset / name)

    resize("masks/view_02/00001.png", (16, 16))
    with pytest.raises(ValueError, match=r"size 32 x 32; ./masks/view_02/00001.png of frame 5 .*has 16 x"):
        read_dataset(dataset)
    resize("frames/view_01/00002.png", (32, 30))
    with pytest.raises(ValueError, match=r"frame 1 .* has 32 x 32, frame 7 .* has 32 x 30"):
        read_dataset(dataset)
    for t in range(N_FRAMES):
        resize(f"frames/view_00/{t:05d}.png", (32, 30))
        resize(f"masks/view_00/{t:05d}.png", (32, 30))
    with pytest.raises(ValueError, match=r"square pictures .* frame 0 .* has 32 x 30"):
        read_dataset(dataset)


def test_a_folder_or_file_without_data_set_is_named(tmp_path, written):
    with pytest.raises(FileNotFoundError, match="transforms_train.json or transforms.json in"):
        read_dataset(tmp_path)
    with pytest.raises(ValueError, match=r"list of frames, .*cameras.json has none, only azimuths_deg"):
        read_dataset(written / "cameras.json")


NORMAL_VIEWS = ViewGrid(torch.ones(2, 2, 16, 16, 3), Cameras((0, 0), (0, 90)))


def write_normals(folder, size=16, views=2):
    picture = np.full((size, size, 3), 255, np.uint8)
    picture[4:8] = (128, 128, 255)
    picture[8:12] = (128, 255, 128)
    for view in range(views):
        (folder / f"view_{view:02d}").mkdir(parents=True)
        for frame in range(2):
            Image.fromarray(picture).save(folder / f"view_{view:02d}/{frame:05d}.png")


def test_colours_are_unit_vectors_and_backgrounds_are_none(tmp_path):
    write_normals(tmp_path)
    normals = read_normals(tmp_path, NORMAL_VIEWS)
    assert normals.shape == NORMAL_VIEWS.images.shape
    assert torch.allclose(normals[0, 1, 5, 3], torch.tensor([0.0, 0, 1]), atol=0.01)
    assert torch.allclose(normals[1, 0, 9, 3], torch.tensor([0.0, 1, 0]), atol=0.01)
    assert float(normals[:, :, :4].abs().max()) == 0


def test_missing_views_and_other_sizes_are_told(tmp_path):
    write_normals(tmp_path / "one", views=1)
    with pytest.raises(FileNotFoundError, match="normals of 2 views .* no view_01"):
        read_normals(tmp_path / "one", NORMAL_VIEWS)
    write_normals(tmp_path / "small", size=12)
    with pytest.raises(ValueError, match=r"got \(2, 12, 12, 3\)"):
        read_normals(tmp_path / "small", NORMAL_VIEWS)
