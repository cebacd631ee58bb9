"""Plain clips of other programs, and the reader that finds out what is there."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sv4d2_core.cameras import Cameras
from sv4d2_core.data.clips import read_clips
from sv4d2_core.data.reader import read_any_views
from sv4d2_core.data.views_folder import read_views, write_views
from sv4d2_core.video.foreground import near_white_masks
from sv4d2_core.video.pictures import to_bytes, write_frames
from sv4d2_core.video.write import write_video
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


def save_rgba(file, rgb, alpha):
    Image.fromarray(np.dstack([rgb, alpha]).astype(np.uint8), "RGBA").save(file)


def write_gif(file, images, fps=10):
    first, *rest = (Image.fromarray(picture) for picture in to_bytes(images))
    first.save(file, save_all=True, append_images=rest, duration=1000 / fps, loop=0)


def test_folders_of_images_are_views_in_natural_order(tmp_path, grid, written):
    for v, name in enumerate(("view_2", "view_10", "view_11")):
        write_frames(tmp_path / name, grid.images[:, v])
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/a.png").write_bytes(b"")
    (tmp_path / "logs").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    read = read_clips(tmp_path, CAMERAS)
    expected = read_views(written)
    assert torch.equal(read.images, expected.images) and read.cameras == CAMERAS
    assert read.masks is not None and torch.equal(read.masks, near_white_masks(expected.images))
    assert torch.equal(read_clips(written / "frames", CAMERAS).images, expected.images)


def test_transparent_folders_bring_their_masks(tmp_path, grid):
    for v in range(3):
        (tmp_path / f"{v}").mkdir()
        for t, (rgb, mask) in enumerate(zip(grid.images[:, v], grid.masks[:, v], strict=True)):
            save_rgba(tmp_path / f"{v}/{t}.png", to_bytes(rgb), to_bytes(mask))
    read = read_clips(tmp_path, CAMERAS)
    assert (read.masks - grid.masks).abs().max() <= 0.5 / 255 + 1e-6
    alpha = read.masks[..., None]
    straight = torch.from_numpy(to_bytes(grid.images)).float() / 255
    assert (read.images - (straight * alpha + 1 - alpha)).abs().max() < 1e-6


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_videos_are_views(tmp_path, grid, suffix):
    for v in range(3):
        write = write_video if suffix == "mp4" else write_gif
        write(tmp_path / f"view_{v:02d}.{suffix}", grid.images[:, v], 10)
    (tmp_path / "contact_sheet.png").write_bytes(b"")
    read = read_clips(tmp_path, CAMERAS)
    assert read.images.shape == grid.images.shape and read.fps == pytest.approx(10)
    assert ((read.images - grid.images) ** 2).mean() < 0.003
    assert ((read.masks - grid.masks) ** 2).mean() < 0.05
    # The views are not mixed up: each is nearer to its own than to any other.
    distance = (read.images[:, :, None] - grid.images[:, None]).abs().mean(dim=(0, 3, 4, 5))
    assert distance.argmin(dim=1).tolist() == [0, 1, 2]


def test_folders_of_images_win_over_videos(tmp_path, grid):
    for v in range(3):
        write_frames(tmp_path / f"frames_{v}", grid.images[:, v])
        write_video(tmp_path / f"view_{v}.mp4", 1 - grid.images[:, v], 10)
    assert (read_clips(tmp_path, CAMERAS).images - grid.images).abs().max() <= 0.5 / 255 + 1e-6


def test_a_pattern_leaves_other_clips_out(tmp_path, grid):
    write_video(tmp_path / "0_t000.mp4", grid.images[0], 10)
    for v in range(3):
        write_video(tmp_path / f"0_v{v}.mp4", grid.images[:, v], 10)
    assert read_clips(tmp_path / "0_v*.mp4", CAMERAS).images.shape == grid.images.shape
    assert read_any_views(str(tmp_path / "0_v*.mp4"), CAMERAS).images.shape == grid.images.shape
    with pytest.raises(ValueError, match=r"Expected 3 clips .* or 2 .* got 4: .*/0_t000.mp4, .*pattern"):
        read_clips(tmp_path, CAMERAS)


def test_the_input_view_is_filled_in(tmp_path, grid):
    for v in (1, 2):
        write_video(tmp_path / f"{v}.mp4", grid.images[:, v], 12)
    read = read_clips(tmp_path, CAMERAS, grid)
    assert torch.equal(read.images[:, 0], grid.images[:, 0]) and read.fps == 12
    assert torch.equal(read.masks[:, 0], grid.masks[:, 0])
    assert (read.images[:, 1:] - grid.images[:, 1:]).abs().mean() < 0.03
    bare = read_clips(tmp_path, CAMERAS, replace(grid, masks=None))
    assert torch.equal(bare.masks[:, 0], near_white_masks(grid.images[:, 0]))
    with pytest.raises(ValueError, match=r"3 clips in .*, the input view first; got 2: .*1.mp4, .*2.mp4"):
        read_clips(tmp_path, CAMERAS)
    with pytest.raises(ValueError, match=r"the input view has 1 frame of 32 x 32, .*1.mp4 has 3 frames of"):
        read_clips(tmp_path, CAMERAS, grid.at_frames([0]))


def test_the_folders_own_input_clip_is_kept(tmp_path, grid):
    for v in range(3):
        write_frames(tmp_path / f"{v}", grid.images[:, v])
    read = read_clips(tmp_path, CAMERAS, replace(grid, images=torch.ones_like(grid.images)))
    assert (read.images - grid.images).abs().max() <= 0.5 / 255 + 1e-6


def test_clips_that_do_not_fit_are_named_with_numbers(tmp_path, grid):
    for v in range(3):
        write_frames(tmp_path / f"{v}", grid.images[:, v])
    (tmp_path / "2/00002.png").unlink()
    with pytest.raises(ValueError, match=r"/0 has 3 frames of 32 x 32, .*/2 has 2 frames of 32 x 32"):
        read_clips(tmp_path, CAMERAS)
    shutil.rmtree(tmp_path / "1")
    write_frames(tmp_path / "1", grid.images[:, 1, :16, :16])
    with pytest.raises(ValueError, match=r"/0 has 3 frames of 32 x 32, .*/1 has 3 frames of 16 x 16"):
        read_clips(tmp_path, CAMERAS)
    shutil.rmtree(tmp_path / "0")
    write_frames(tmp_path / "0", grid.images[:, 0, :, :16])
    with pytest.raises(ValueError, match=r"square pictures .*/0 has 16 x 32"):
        read_clips(tmp_path, CAMERAS)
    (tmp_path / "0/00000.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"readable image; .*0/00000.png is not"):
        read_clips(tmp_path, CAMERAS)


def test_a_clip_on_grey_is_refused_and_an_empty_one_is_not(tmp_path, grid):
    write_frames(tmp_path / "0", grid.images[:, 0])
    write_frames(tmp_path / "1", torch.ones_like(grid.images[:, 1]))
    write_frames(tmp_path / "2", grid.images[:, 2])
    assert read_clips(tmp_path, CAMERAS).masks[:, 1].sum() == 0
    shutil.rmtree(tmp_path / "2")
    write_frames(tmp_path / "2", grid.images[:, 2] * 0.9)
    with pytest.raises(ValueError, match=r"got 100 % of the border darker than that in .*/2"):
        read_clips(tmp_path, CAMERAS)


def same(actual: ViewGrid, expected: ViewGrid):
    assert torch.equal(actual.images, expected.images)
    assert actual.masks is not None and expected.masks is not None
    assert torch.equal(actual.masks, expected.masks)
    assert actual.cameras == expected.cameras


def test_any_views_finds_out_what_is_there(tmp_path, written, grid):
    dataset = tmp_path / "data"
    shutil.copytree(written, dataset)
    for name in ("run.json", "cameras.json"):
        (dataset / name).unlink()
    expected = read_views(written)
    assert read_any_views(written).cameras == CAMERAS
    same(read_any_views(str(written)), expected)
    same(read_any_views(dataset), expected)
    same(read_any_views(dataset / "transforms_train.json"), expected)
    for v in range(1, 3):
        write_frames(tmp_path / "clips" / f"{v}", grid.images[:, v])
    read = read_any_views(tmp_path / "clips", CAMERAS, expected)
    assert torch.equal(read.images, expected.images)
    with pytest.raises(ValueError, match="--cameras FILE .*or --azimuths and --elevations"):
        read_any_views(tmp_path / "clips")


def test_any_views_says_what_is_understood(tmp_path):
    kinds = "Three kinds are understood: .*run.json and cameras.json; .*transforms.json; .*one clip per view"
    with pytest.raises(FileNotFoundError, match=f"none are there. {kinds}"):
        read_any_views(tmp_path, CAMERAS)
    with pytest.raises(FileNotFoundError, match=f"nothing is there. {kinds}"):
        read_any_views(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="sub-folders of images, or videos .* there are none"):
        read_clips(tmp_path, CAMERAS)
