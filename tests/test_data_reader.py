"""Views read in every form: data sets, plain clips, whatever is there; and normals as pictures."""

import json
import random
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sv4d2_core.cameras import Cameras
from sv4d2_core.data.clips import read_clips
from sv4d2_core.data.reader import read_any_views, read_dataset, read_normals
from sv4d2_core.data.views_folder import read_views, write_views
from sv4d2_core.video.foreground import near_white_masks
from sv4d2_core.video.pictures import to_bytes, write_frames
from sv4d2_core.video.write import write_video
from sv4d2_core.views import ViewGrid
from sv4d2_core.world import make_creature, render_views

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
    ours = shutil.ignore_patterns("*.mp4", "run.json", "cameras.json", "contact_sheet.png", "transforms.json")
    return shutil.copytree(written, tmp_path / "data", ignore=ours)


def change(folder, edit, name="transforms_train.json"):
    """Rewrite a JSON file; ``edit`` changes its content in place."""
    content = json.loads((folder / name).read_text())
    edit(content)
    (folder / name).write_text(json.dumps(content))


def same(actual: ViewGrid, expected: ViewGrid):
    assert torch.equal(actual.images, expected.images)
    assert actual.masks is not None and expected.masks is not None
    assert torch.equal(actual.masks, expected.masks)
    assert (actual.cameras, actual.fps) == (expected.cameras, 7.5) and actual.images.dtype == torch.float32


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
        for frame in content["frames"] if not has_times else ():
            del frame["time"]

    change(dataset, edit)
    read = read_dataset(dataset)
    assert read.n_frames == 1 and torch.equal(read.images[0], read_views(written).images[2])


def test_transparent_pictures_are_put_on_white_exactly(dataset):
    """Straight alpha, as Blender writes it: hidden colours and all opacities; alpha wins over mask_path."""
    rgba = np.random.default_rng(0).integers(0, 256, (N_FRAMES, 3, SIZE, SIZE, 4)).astype(np.uint8)
    for v in range(3):
        write_frames(dataset / f"frames/view_{v:02d}", rgba[:, v])
    read, opacity = read_dataset(dataset), rgba[..., 3:] / 255
    assert np.abs(read.images.numpy() - (rgba[..., :3] / 255 * opacity + 1 - opacity)).max() < 1e-6
    assert np.abs(read.masks.numpy() - opacity[..., 0]).max() < 1e-6


def test_alpha_that_is_opaque_everywhere_says_nothing(dataset, written):
    for file in (dataset / "frames").rglob("*.png"):
        with Image.open(file) as picture:
            picture.convert("RGBA").save(file)
    same(read_dataset(dataset), read_views(written))


def test_one_transparent_picture_makes_its_view_transparent(dataset, written):
    """An object that fills a frame leaves no transparent pixel in it, and PNG writers drop such alpha."""
    with Image.open(dataset / "frames/view_01/00000.png") as picture:
        picture.putalpha(51)
        picture.save(dataset / "frames/view_01/00000.png")
    read, expected = read_dataset(dataset), read_views(written)
    assert read.masks is not None and expected.masks is not None
    assert read.masks[0, 1].unique().tolist() == [pytest.approx(0.2)] and (read.masks[1:, 1] == 1).all()
    assert torch.equal(read.masks[:, [0, 2]], expected.masks[:, [0, 2]])


def on_black(folder, grid):
    """Replace the frames by those of a method that writes on black."""
    black = grid.images - (1 - grid.masks[..., None])
    for v in range(grid.n_views + 1):
        write_frames(folder / f"frames/view_{v:02d}", black[:, v])


def test_masks_put_pictures_on_black_onto_white(dataset, grid):
    """At half-covered pixels black has been mixed in before: only there may the colours differ."""
    on_black(dataset, grid)
    read = read_dataset(dataset)
    whole = ((grid.masks == 0) | (grid.masks == 1))[..., None].expand_as(grid.images)
    assert (read.images - grid.images)[whole].abs().max() < 0.5 / 255 + 1e-6
    assert float(read.images[:, :, 0, 0].min()) == 1


def test_without_alpha_and_masks_pictures_must_be_on_white(dataset, grid):
    change(dataset, lambda content: [frame.pop("mask_path") for frame in content["frames"]])
    read = read_dataset(dataset)
    assert read.masks is not None and torch.equal(read.masks, near_white_masks(read.images))
    assert 0 < float(read.masks.mean()) < 1
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
    "no number": (lambda c: c["frames"][7].update(time=NAN), r"as time in frame 7.*; got nan"),
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
    with pytest.raises(ValueError, match=r"has 32 x 32, ./masks/view_02/00001.png of frame 5 .*has 16 x 16"):
        read_dataset(dataset)
    resize("frames/view_01/00002.png", (32, 30))
    with pytest.raises(ValueError, match=r"frame 1 .* has 32 x 32, frame 7 .* has 32 x 30"):
        read_dataset(dataset)
    for t in range(N_FRAMES):
        resize(f"frames/view_00/{t:05d}.png", (32, 30))
        resize(f"masks/view_00/{t:05d}.png", (32, 30))
    with pytest.raises(ValueError, match=r"square pictures .* frame 0 .* has 32 x 30"):
        read_dataset(dataset)


NORMAL_VIEWS = ViewGrid(torch.ones(2, 2, 16, 16, 3), Cameras((0, 0), (0, 90)))


def write_normals(folder, size=16, views=2):
    pictures = np.full((2, size, size, 3), 255, np.uint8)
    pictures[:, 4:8] = (128, 128, 255)
    pictures[:, 8:12] = (128, 255, 128)
    for view in range(views):
        write_frames(folder / f"view_{view:02d}", pictures)


def test_normals_are_unit_vectors_or_none_of_all_views(tmp_path):
    write_normals(tmp_path)
    normals = read_normals(tmp_path, NORMAL_VIEWS)
    assert normals.shape == NORMAL_VIEWS.images.shape
    assert torch.allclose(normals[0, 1, 5, 3], torch.tensor([0.0, 0, 1]), atol=0.01)
    assert torch.allclose(normals[1, 0, 9, 3], torch.tensor([0.0, 1, 0]), atol=0.01)
    assert float(normals[:, :, :4].abs().max()) == 0
    write_normals(tmp_path / "one", views=1)
    with pytest.raises(FileNotFoundError, match="normals of 2 views .* no view_01"):
        read_normals(tmp_path / "one", NORMAL_VIEWS)
    write_normals(tmp_path / "small", size=12)
    with pytest.raises(ValueError, match=r"got \(2, 12, 12, 3\)"):
        read_normals(tmp_path / "small", NORMAL_VIEWS)


def write_gif(file, images, fps):
    first, *rest = (Image.fromarray(picture) for picture in to_bytes(images))
    first.save(file, save_all=True, append_images=rest, duration=1000 / fps, loop=0)


def test_folders_of_images_are_views_in_natural_order(tmp_path, grid, written):
    for v, name in enumerate(("view_2", "view_10", "view_11")):
        write_frames(tmp_path / name, grid.images[:, v])
    write_frames(tmp_path / ".cache", grid.images[:, 0])
    (tmp_path / "logs").mkdir()
    (tmp_path / "notes.txt").touch()
    read = read_clips(tmp_path, CAMERAS)
    expected = read_views(written)
    assert torch.equal(read.images, expected.images) and read.cameras == CAMERAS
    assert read.masks is not None and torch.equal(read.masks, near_white_masks(expected.images))
    assert torch.equal(read_clips(written / "frames", CAMERAS).images, expected.images)


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
    with pytest.raises(ValueError, match=r"3 clips in .*, the input view first,.*; got 2: .*1.mp4, .*2.mp4"):
        read_clips(tmp_path, CAMERAS)
    with pytest.raises(ValueError, match=r"the input view has 1 frames of 32 x 32, .*1.mp4 has 3 of 32"):
        read_clips(tmp_path, CAMERAS, grid.at_frames([0]))


def test_the_folders_own_input_clip_is_kept_and_videos_beside_folders_do_not_count(tmp_path, grid):
    for v in range(3):
        write_frames(tmp_path / f"{v}", grid.images[:, v])
        write_video(tmp_path / f"view_{v}.mp4", 1 - grid.images[:, v], 10)
    read = read_clips(tmp_path, CAMERAS, replace(grid, images=torch.ones_like(grid.images)))
    assert (read.images - grid.images).abs().max() <= 0.5 / 255 + 1e-6


def test_clips_that_do_not_fit_are_named_with_numbers(tmp_path, grid):
    write_frames(tmp_path / "0", grid.images[:, 0])
    write_frames(tmp_path / "1", grid.images[:, 1])
    write_frames(tmp_path / "2", grid.images[:2, 2])
    with pytest.raises(ValueError, match=r"/0 has 3 frames of 32 x 32, .*/2 has 2 of 32 x 32"):
        read_clips(tmp_path, CAMERAS)
    for clip, height, width, message in (
        (1, 16, 16, r"/0 has 3 frames of 32 x 32, .*/1 has 3 of 16 x 16"),
        (0, 32, 16, r"square pictures .*/0 has 16 x 32"),
    ):
        write_frames(tmp_path / f"{clip}", grid.images[:, clip, :height, :width])
        with pytest.raises(ValueError, match=message):
            read_clips(tmp_path, CAMERAS)


def test_an_empty_clip_is_not_refused(tmp_path, grid):
    write_frames(tmp_path / "0", grid.images[:, 0])
    write_frames(tmp_path / "1", torch.ones_like(grid.images[:, 1]))
    write_frames(tmp_path / "2", grid.images[:, 2])
    assert read_clips(tmp_path, CAMERAS).masks[:, 1].sum() == 0


def test_any_views_finds_out_what_is_there(tmp_path, dataset, written, grid):
    expected = read_views(written)
    assert expected.cameras == CAMERAS
    for place in (written, str(written), dataset, dataset / "transforms_train.json"):
        same(read_any_views(place), expected)
    (dataset / "transforms_train.json").rename(dataset / "transforms.json")
    for read_by in (read_any_views, read_dataset):
        same(read_by(str(dataset)), expected)
    for v in range(1, 3):
        write_frames(tmp_path / "clips" / f"{v}", grid.images[:, v])
    read = read_any_views(tmp_path / "clips", CAMERAS, expected)
    assert torch.equal(read.images, expected.images)
    with pytest.raises(ValueError, match="--cameras FILE .*or --azimuths and --elevations"):
        read_any_views(tmp_path / "clips")


def test_places_without_views_are_named(tmp_path, written):
    kinds = "Three kinds are understood: .*run.json and cameras.json; .*transforms.json; .*one clip per view"
    with pytest.raises(FileNotFoundError, match=f"none are there. {kinds}"):
        read_any_views(tmp_path, CAMERAS)
    with pytest.raises(FileNotFoundError, match=f"nothing is there. {kinds}"):
        read_any_views(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="transforms_train.json or transforms.json in"):
        read_dataset(tmp_path)
    with pytest.raises(ValueError, match="at least one object as frames in .*cameras.json; got none"):
        read_dataset(written / "cameras.json")
