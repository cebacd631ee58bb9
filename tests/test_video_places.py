"""Which files of a folder or pattern are the clip, and which are its masks."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from sv4d2_core.video.places import find_pictures, matches
from sv4d2_core.video.prepare import prepare_clip
from sv4d2_core.video.read import load_clip
from sv4d2_core.video.write import write_video


def names(pattern, *numbers):
    return [pattern % number for number in numbers]


def place_of(tmp_path, files, pattern=None):
    folder = tmp_path / "mask [v2] 07"
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    place = find_pictures(folder if pattern is None else str(folder / pattern))
    found = ([file.relative_to(folder).as_posix() for file in group] for group in place[:2])
    return *found, " | ".join(place.notes)


FRAMES = names("%04d.png", *range(12))
MASKS = names("%04d_mask.png", *range(12))
CLOCK = ["12.00.58.png", "12.00.59.png", "12.01.00.png"]
CLIPS = [
    # files, pattern, the clip, its masks, what is said
    (FRAMES, None, FRAMES, [], ""),
    ([*FRAMES, *MASKS], None, FRAMES, MASKS, ""),
    ([*FRAMES, *names("matte_%d.tif", *range(12))], None, FRAMES, names("matte_%d.tif", *range(12)), ""),
    ([*FRAMES, *names("%04d_mask.png", 1, 2)], None, FRAMES, [], "masks for only 2 of 12"),
    ([*FRAMES, "0003 (1).png", "0004 - Copy.png", "0005 copy 2.png"], None, FRAMES, [],
     "left out: 0003 (1).png, 0004 - Copy.png, 0005 copy 2.png"),
    ([*FRAMES, *names("%04d (1).png", *range(12))], None, FRAMES, [], "and 2 more"),
    ([*FRAMES, "thumbnail.jpg"], None, FRAMES, [], "left out: thumbnail.jpg"),
    ([*FRAMES, *names("thumb_%04d.jpg", *range(12))], None, FRAMES, [], "and 3 more"),
    (names("f_%d.png", 0, 1, 2, 8, 9, 10), None, names("f_%d.png", 0, 1, 2, 8, 9, 10), [], ": 2 to 8"),
    (names("f_%d.png", 0, 5, 10, 15), None, names("f_%d.png", 0, 5, 10, 15), [], ""),
    (names("f_%d.png", -2, -1, 0, 1), None, names("f_%d.png", -2, -1, 0, 1), [], "below 0, at -2"),
    (names("walk-%03d.png", 1, 2, 3), None, names("walk-%03d.png", 1, 2, 3), [], ""),
    (names("猫-%04d.png", 0, 1, 2), None, names("猫-%04d.png", 0, 1, 2), [], ""),
    (names("clip (1)-%03d.png", 0, 1, 2), None, names("clip (1)-%03d.png", 0, 1, 2), [], ""),
    (names("walk (%d).png", 8, 9, 10), None, names("walk (%d).png", 8, 9, 10), [], ""),
    (CLOCK, None, CLOCK, [], ""),
    (names("r_%d_0001.png", 8, 9, 10), None, names("r_%d_0001.png", 8, 9, 10), [], ""),
    (["a.png", "b.png"], None, ["a.png", "b.png"], [], ""),
    (["0000.png", "0000_mask.png"], None, ["0000.png"], ["0000_mask.png"], ""),
    (["0.png", "1.jpg", "2.png"], None, ["0.png", "1.jpg", "2.png"], [], ""),
    ([*FRAMES, *names("%04d.jpg", *range(12))], "%04d.png", FRAMES, [], ""),
    ([*FRAMES, *MASKS], "%04d.png", FRAMES, [], ""),
    ([*FRAMES, *MASKS], "####_mask.png", MASKS, [], ""),
    (names("a[1]_%d.png", 0, 1), "a[1]_*.png", names("a[1]_%d.png", 0, 1), [], ""),
    (names("a[1]_%d.png", 0, 1), "a[1]_%d.png", names("a[1]_%d.png", 0, 1), [], ""),
    (names("t%d/rgb.png", 0, 1) + names("t%d/mask.png", 0, 1), "t*/*.png", names("t%d/rgb.png", 0, 1),
     names("t%d/mask.png", 0, 1), ""),
]  # fmt: skip


@pytest.mark.parametrize(("files", "pattern", "frames", "masks", "note"), CLIPS)
def test_one_clear_group_is_the_clip(tmp_path, files, pattern, frames, masks, note):
    found = place_of(tmp_path, files, pattern)
    assert found[:2] == (frames, masks)
    assert note in found[2] and bool(note) == bool(found[2])


@pytest.mark.parametrize(
    ("files", "patterns"),
    [
        ([*names("v0_%03d.png", 0, 1), *names("v1_%03d.png", 0, 1)], ["v0_%d.png (2)", "v1_%d.png (2)"]),
        ([*names("%d_a0.png", 8, 9, 10), *names("%d_a1.png", 8, 9, 10)], ["%d_a0.png (3)", "%d_a1.png (3)"]),
        ([*FRAMES, *names("%04d_depth.png", *range(12))], ["%d.png (12)", "%d_depth.png (12)"]),
        ([*FRAMES, *names("%04d.jpg", *range(12))], ["%d.jpg (12)", "%d.png (12)"]),
        (["0000.png", "0000_depth.png"], ["%d.png (1)", "%d_depth.png (1)"]),
    ],
)  # fmt: skip
def test_several_groups_are_refused_with_their_patterns(tmp_path, files, patterns):
    with pytest.raises(ValueError, match=r"frames of one clip .*got 2 groups") as caught:
        place_of(tmp_path, files)
    given = [str(tmp_path / "mask [v2] 07" / pattern.split(" ")[0]) for pattern in patterns]
    assert f"such as {given[0]}." in str(caught.value)
    for pattern, place in zip(patterns, given, strict=True):
        assert pattern in str(caught.value) and f"({len(find_pictures(place).files)})" in pattern


def test_patterns_in_folders_with_brackets(tmp_path):
    (tmp_path / "[a] 1").mkdir()
    for name in ("b2.mp4", "b10.mp4"):
        (tmp_path / "[a] 1" / name).touch()
    assert [file.name for file in matches(tmp_path / "[a] 1" / "*.mp4")] == ["b2.mp4", "b10.mp4"]


def picture(t):
    pixels = np.full((32, 32, 3), 255, np.uint8)
    pixels[8:24, 4 + t : 16 + t] = 200, 40, 40
    return pixels


def test_masks_beside_the_frames_are_taken_and_said(tmp_path):
    for t in range(3):
        Image.fromarray(picture(t)).save(tmp_path / f"{t:04d}.png")
        Image.fromarray(np.where(picture(t)[..., 1] < 99, 255, 0).astype(np.uint8)).save(
            tmp_path / f"{t:04d}_mask.png"
        )
    clip = load_clip(tmp_path, every=2)
    assert clip.masks is not None and clip.masks.shape == (2, 32, 32)
    assert all(np.array_equal(clip.masks[i] > 0, picture(2 * i)[..., 1] < 99) for i in range(2))
    assert (
        "masks beside the frames taken: 0000_mask.png to 0002_mask.png" in prepare_clip(clip, size=32).report
    )
    own = load_clip(tmp_path, mask=tmp_path / "0000_mask.png")
    assert not own.notes and own.masks is not None and np.array_equal(own.masks[0], own.masks[2])


@pytest.mark.parametrize("suffix", ["avif", "jfif", "tga", "jp2", "ppm", "qoi", "dds", "sgi", "pcx", "webp"])
def test_pictures_of_many_programs(tmp_path, suffix):
    for t in range(2):
        Image.fromarray(picture(t)).save(tmp_path / f"{t:04d}.{suffix}")
    for frames in (load_clip(tmp_path).frames, load_clip(tmp_path / f"0000.{suffix}").frames):
        assert np.abs(frames[0, 12, 8].astype(int) - (200, 40, 40)).max() < 12


def write_floats(path, pixels, pix_fmt):
    """Write what a compositing program writes: linear light, colours multiplied by alpha."""
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream({"exr": "exr", "pfm": "pfm", "hdr": "hdr"}[path.suffix[1:]], rate=1)
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], pix_fmt
        frame = av.VideoFrame.from_ndarray(pixels, format=pix_fmt)
        container.mux([*stream.encode(frame), *stream.encode(None)])


@pytest.mark.parametrize(
    ("suffix", "pix_fmt"),
    [("exr", "gbrapf32le"), ("exr", "gbrpf32le"), ("hdr", "gbrpf32le"), ("pfm", "gbrpf32le")],
)
def test_linear_light_becomes_srgb(tmp_path, suffix, pix_fmt):
    linear = np.zeros((16, 16, 4), np.float32)
    linear[4:12, 4:12] = (
        0.5 * 0.2140,
        0.5 * 0.0331,
        0.5 * 4.0,
        0.5,
    )  # 0.5, 0.2 and beyond white, half transparent
    pixels = linear if "a" in pix_fmt else linear[..., :3] / 0.5
    write_floats(tmp_path / f"a.{suffix}", np.ascontiguousarray(pixels), pix_fmt)
    clip = load_clip(tmp_path / f"a.{suffix}")
    expected = (128, 51, 255, 128) if "a" in pix_fmt else (128, 51, 255)
    assert np.abs(clip.frames[0, 8, 8].astype(int) - expected).max() <= (9 if suffix == "hdr" else 2)
    assert "linear light" in clip.notes[0]


def test_a_colon_in_a_name_is_no_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(Path("take:1.mp4"), torch.rand(3, 32, 32, 3), 8)
    assert load_clip("take:1.mp4").n_frames == 3
