"""Reading clips: every kind of source, picking frames, masks, and what is said about bad input."""

import math
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from sv4d2_core.video.read import Clip, count_pictures, load_clip

HEIGHT, WIDTH = 32, 48


def drawn_clip(n_frames: int = 5) -> np.ndarray:
    """RGB frames whose red level is 20 * t in the left half, on white."""
    frames = np.full((n_frames, HEIGHT, WIDTH, 3), 255, np.uint8)
    frames[:, :, : WIDTH // 2] = [[[(20 * (t % 12), 100, 50)]] for t in range(n_frames)]
    return frames


def numbers_of(clip: Clip) -> list[int]:
    return (clip.frames[:, 4:-4, 4:16, 0].mean((1, 2)) / 20).round().tolist()


def write_video(path, frames, codec="libx264", pix_fmt="yuv444p", rate=10, aspect=None, title="", **options):
    with av.open(str(path), "w") as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.options = {"crf": "0", **options}
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = Fraction(*aspect)
        for frame in frames:
            source = av.VideoFrame.from_ndarray(frame, format="rgba" if frame.shape[-1] == 4 else "rgb24")
            container.mux(stream.encode(source))
        container.mux(stream.encode())
    return path


def store_quarter_turn(path, clockwise):
    """Write into an mp4 how its pictures are to be turned, as phones do."""
    data = bytearray(path.read_bytes())
    sine = 0x10000 if clockwise == 90 else -0x10000
    matrix = data.index(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", 0, sine, 0, -sine, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def write_folder(folder, frames):
    folder.mkdir()
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame_{t}.png")
    return folder


def cutout(n_frames: int = 4) -> np.ndarray:
    frames = np.zeros((n_frames, HEIGHT, WIDTH, 4), np.uint8)
    for t in range(n_frames):
        frames[t, 8:24, 8 + 4 * t : 24 + 4 * t] = (200, 60, 40, 255)
        frames[t, 8:12, 8 + 4 * t : 12 + 4 * t] = 0
    return frames


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [("mp4", "libx264", "yuv444p"), ("mov", "libx264", "yuv420p"), ("webm", "libvpx-vp9", "yuv420p")],
)
def test_videos_give_their_frames_and_rate(tmp_path, suffix, codec, pix_fmt):
    clip = load_clip(write_video(tmp_path / f"a.{suffix}", drawn_clip(), codec, pix_fmt))
    assert clip.frames.shape == (5, HEIGHT, WIDTH, 3)
    assert numbers_of(clip) == [0, 1, 2, 3, 4]
    assert clip.fps == pytest.approx(10)
    assert clip.frames[:, :, -8:].min() >= 250
    assert str(tmp_path) in clip.name


def test_start_every_and_frames_pick_and_divide_the_rate(tmp_path):
    path = write_video(tmp_path / "a.mp4", drawn_clip(25))
    clip = load_clip(path, start=1, every=3, frames=2)
    assert numbers_of(clip) == [1, 4]
    assert clip.fps == pytest.approx(10 / 3)
    assert load_clip(path, start=16, every=3, frames=None).n_frames == 3
    assert load_clip(path, every=2, fps=24).fps == 24
    assert load_clip(path).n_frames == 21


def test_decoding_stops_after_the_last_picked_frame(tmp_path):
    """A damaged tail does not matter when only the first frames are asked for."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / "a.mkv", noise, g="1")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert load_clip(path, frames=5).n_frames == 5


@pytest.mark.parametrize(("aspect", "turned"), [((2, 1), False), ((1, 2), False), ((2, 1), True)])
def test_pixels_that_are_not_square_are_made_square(tmp_path, aspect, turned):
    """A stored 48 x 32 picture; the stored rotation comes after the stretch."""
    path = write_video(tmp_path / "a.mp4", drawn_clip(2)[1:], aspect=aspect)
    if turned:
        store_quarter_turn(path, 90)
    red = np.rot90(load_clip(path).frames[0, ..., 0].astype(int), turned)
    width = WIDTH * aspect[0] // aspect[1]
    assert red.shape == (HEIGHT, width)
    assert np.abs(red[:, : width // 2 - 6] - 20).max() <= 3
    assert red[:, width // 2 + 6 :].min() >= 250


def test_pixels_far_from_square_are_damage_and_square_ones_stay_bit_for_bit(tmp_path):
    path = write_video(tmp_path / "a.mp4", drawn_clip(1), aspect=(9, 1))
    with pytest.raises(ValueError, match=r"a\.mp4 has a sample aspect ratio of 9"):
        load_clip(path)
    noise = np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH, 3), dtype=np.uint8)
    path = write_video(tmp_path / "a.mov", noise, "png", "rgb24")
    np.testing.assert_array_equal(load_clip(path).frames, noise)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_tags_that_are_not_utf8_do_not_matter(tmp_path, suffix):
    path = write_video(tmp_path / f"a.{suffix}", drawn_clip(2), pix_fmt="yuv420p", title="Paragraph 7")
    data = path.read_bytes()
    assert b"Paragraph 7" in data
    path.write_bytes(data.replace(b"Paragraph 7", b"Paragr\xa7ph 7"))
    assert load_clip(path).n_frames == 2


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_give_composed_frames_alpha_and_rate(tmp_path, suffix):
    frames = cutout()
    first, *rest = map(Image.fromarray, frames)
    path = tmp_path / f"a.{suffix}"
    extra = {"lossless": True} if suffix == "webp" else {}
    first.save(path, save_all=True, append_images=rest, duration=50, loop=0, disposal=2, **extra)
    clip = load_clip(path)
    assert clip.fps == pytest.approx(20)
    np.testing.assert_array_equal(clip.frames[..., 3], frames[..., 3])
    inside = frames[..., 3] > 0
    assert np.abs(clip.frames[inside].astype(int) - frames[inside]).max() <= 4
    assert load_clip(path, every=2).fps == pytest.approx(10)
    np.testing.assert_array_equal(load_clip(path, start=1, every=2).frames, clip.frames[1::2])


@pytest.mark.parametrize("count", [1, 4])
def test_the_picture_of_an_apng_for_programs_that_play_none_is_no_frame(tmp_path, count):
    colours = ["blue", *[f"#{10 * k:02x}4000" for k in range(count)]]
    first, *rest = (Image.new("RGB", (24, 16), colour) for colour in colours)
    path = tmp_path / "a.png"
    first.save(path, save_all=True, append_images=rest, duration=50, default_image=True)
    clip = load_clip(path)
    assert clip.frames[:, 0, 0, 0].tolist() == [10 * k for k in range(count)] and not clip.notes
    assert count_pictures(path) == count and (count == 1 or clip.fps == pytest.approx(20))


def test_folders_and_patterns_are_read_in_natural_order(tmp_path):
    folder = write_folder(tmp_path / "shot[1]", drawn_clip(12))
    (folder / "notes.txt").write_text("not an image")
    (folder / "._frame_0.png").write_bytes(b"left by another system")
    for source in (folder, str(tmp_path / "shot*" / "frame_*.png"), str(tmp_path / "shot*" / "*")):
        clip = load_clip(source)
        assert numbers_of(clip) == list(range(12))
        assert clip.fps == 8
    assert numbers_of(load_clip(folder, start=9, every=2)) == [9, 11]


def test_a_pattern_that_finds_one_video_and_a_single_image(tmp_path):
    write_video(tmp_path / "clip_01.mp4", drawn_clip(3))
    assert load_clip(str(tmp_path / "*.mp4")).n_frames == 3
    Image.fromarray(drawn_clip(1)[0]).save(tmp_path / "a.jpg")
    assert load_clip(tmp_path / "a.jpg").frames.shape == (1, HEIGHT, WIDTH, 3)


def test_the_preview_inside_a_photo_is_no_frame(tmp_path):
    photo, preview = Image.fromarray(drawn_clip(1)[0]), Image.new("RGB", (16, 8))
    photo.save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[preview])
    clip = load_clip(tmp_path / "photo.jpg")
    assert clip.frames.shape == (1, HEIGHT, WIDTH, 3) and clip.fps == 8


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "I;16", "I", "F", "RGBA", "CMYK"])
def test_every_image_mode_gives_the_same_grey(tmp_path, mode):
    grey = np.full((HEIGHT, WIDTH), 255, np.uint8)
    grey[8:24, 8:24] = 0 if mode == "1" else 102
    if mode in ("I;16", "I"):
        image = Image.fromarray(grey.astype(np.uint16) * 257)
        image = image.convert("I") if mode == "I" else image
    elif mode == "F":
        image = Image.fromarray(grey.astype(np.float32) / 255)
    else:
        image = Image.fromarray(grey).convert(mode)
    path = tmp_path / ("a.tif" if mode in ("F", "CMYK", "I") else "a.png")
    image.save(path)
    frames = load_clip(path).frames
    assert np.abs(frames[0, ..., :3].astype(int) - grey[..., None]).max() <= 1


def test_palette_transparency_becomes_alpha_also_among_opaque_frames(tmp_path):
    folder = write_folder(tmp_path / "frames", drawn_clip(1))
    Image.fromarray(cutout(1)[0]).quantize(8).save(folder / "frame_1.png")
    clip = load_clip(folder)
    assert clip.frames.shape == (2, HEIGHT, WIDTH, 4)
    assert clip.frames[0, ..., 3].min() == 255
    np.testing.assert_array_equal(clip.frames[1, ..., 3], cutout(1)[0, ..., 3])


def test_masks_are_picked_like_the_frames_and_a_single_one_serves_all(tmp_path):
    levels = np.array([0, 3, *range(60, 216, 20), 255], np.uint8)[:, None, None]
    folder = write_folder(tmp_path / "masks", np.broadcast_to(levels, (11, HEIGHT, WIDTH)).copy())
    video = write_video(tmp_path / "a.mp4", drawn_clip(11))
    faint = load_clip(video, start=1, every=3, mask=folder).masks
    assert faint is not None and faint[:, 0, 0].tolist() == [3, 100, 160, 255], "one bright frame is enough"
    Image.fromarray(cutout(1)[0, ..., 3]).save(tmp_path / "mask.png")
    single = load_clip(video, start=7, mask=tmp_path / "mask.png").masks
    np.testing.assert_array_equal(single, np.repeat(cutout(1)[..., 3], 4, axis=0))


def test_mask_video_and_mask_alpha(tmp_path):
    frames, clip = cutout(4), write_folder(tmp_path / "frames", drawn_clip(4))
    video = write_video(tmp_path / "mask.mp4", np.repeat(frames[..., 3:], 3, axis=-1))
    for source, tolerance in ((video, 3), (write_folder(tmp_path / "cutouts", frames), 0)):
        masks = load_clip(clip, mask=source).masks
        assert masks is not None and np.abs(masks.astype(int) - frames[..., 3]).max() <= tolerance


@pytest.mark.parametrize("mode", ["P", "RGB", "RGBA"])
def test_coloured_masks_are_labels(tmp_path, mode):
    """The palette of DAVIS: every object has a colour of its own, some of them dark."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[4:12, 4:12], labels[16:24, 20:30], labels[26:30, 40:44] = 1, 2, 3
    image = Image.fromarray(labels, "P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 64, 0, 128, 128, 128])
    image.convert(mode).save(tmp_path / "mask.png")
    masks = load_clip(write_folder(tmp_path / "frames", drawn_clip(2)), mask=tmp_path / "mask.png").masks
    np.testing.assert_array_equal(masks, np.repeat(np.where(labels > 0, 255, 0)[None], 2, axis=0))


def test_grey_masks_keep_their_levels_in_spite_of_chroma_noise(tmp_path):
    levels = np.linspace(0, 240, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1) + np.array([0, 3, 6])
    Image.fromarray(levels.astype(np.uint8)).save(tmp_path / "mask.png")
    masks = load_clip(write_folder(tmp_path / "frames", drawn_clip(1)), mask=tmp_path / "mask.png").masks
    assert masks is not None and np.abs(masks[0] - levels[..., 1]).max() <= 1


@pytest.mark.parametrize("label", [1, 127])
def test_label_masks_are_refused_with_advice(tmp_path, label):
    folder = write_folder(tmp_path / "frames", drawn_clip(3))
    masks = write_folder(tmp_path / "masks", np.where(cutout(3)[..., 3] > 0, label, 0).astype(np.uint8))
    advice = rf"up to 255 \(white = object\); the largest value is {label},.*save them as 0 and 255"
    with pytest.raises(ValueError, match=advice):
        load_clip(folder, mask=masks)
    images = torch.zeros(1, HEIGHT, WIDTH, 3)
    with pytest.raises(ValueError, match=advice):
        Clip.from_tensors(images, torch.full((HEIGHT, WIDTH), label / 255))
    assert Clip.from_tensors(images, torch.full((HEIGHT, WIDTH), 128 / 255)).masks is not None


def test_wrong_mask_count_and_size_are_named(tmp_path):
    frames = write_folder(tmp_path / "frames", drawn_clip(6))
    few = write_folder(tmp_path / "few", cutout(4)[..., 3])
    small = write_folder(tmp_path / "small", np.zeros((6, 16, 24), np.uint8))
    for mask, start, message in (
        (few, 0, "Expected 6 masks.*got 4"),
        (few, 5, "Expected 1 masks.*got 0 of 4"),
        (small, 0, "48 x 32; got 24 x 16"),
    ):
        with pytest.raises(ValueError, match=message):
            load_clip(frames, start=start, mask=mask)


def test_missing_sources_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing at .*nowhere\.mp4"):
        load_clip(tmp_path / "nowhere.mp4")
    frames = write_folder(tmp_path / "frames", drawn_clip(1))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"Expected images .*got 1 files"):
        load_clip(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"got 0 files"):
        load_clip(str(tmp_path / "*.png"))
    with pytest.raises(FileNotFoundError, match="mask"):
        load_clip(frames, mask=tmp_path / "mask.png")


@pytest.mark.parametrize(
    "path", ["a\0b.mp4", "x" * 300 + ".mp4", "x" * 300 + "/*.png", "~nobody_at_all/a.mp4"]
)
def test_impossible_paths_give_a_readable_message(path):
    with pytest.raises((ValueError, FileNotFoundError), match="Expected ") as caught:
        load_clip(path)
    assert "\0" not in str(caught.value)


def test_links_to_nothing_are_named(tmp_path):
    link = tmp_path / "a.mp4"
    link.symlink_to(tmp_path / "gone.mp4")
    with pytest.raises(FileNotFoundError, match=r"nothing at .*a\.mp4, a link to .*gone\.mp4"):
        load_clip(link)
    folder = write_folder(tmp_path / "frames", drawn_clip(2))
    (folder / "frame_2.png").symlink_to(tmp_path / "gone.png")
    for source in (folder, str(folder / "*.png")):
        with pytest.raises(ValueError, match=r"Expected .*frame_2\.png"):
            load_clip(source)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.png", "a.gif", "a.txt"])
@pytest.mark.parametrize("content", [b"", b"this is not a picture at all\n" * 50])
def test_unreadable_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"Expected .*{name}"):
        load_clip(tmp_path / name)


def test_truncated_image_and_sound_without_picture(tmp_path):
    folder = write_folder(tmp_path / "frames", drawn_clip(2))
    whole = (folder / "frame_1.png").read_bytes()
    (folder / "frame_1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"readable image; .*frame_1\.png"):
        load_clip(folder)
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(ValueError, match=r"Expected a video; .*sound\.wav holds none .*audio"):
        load_clip(tmp_path / "sound.wav")


def test_videos_that_cannot_be_decoded(tmp_path):
    drawing = tmp_path / "a.svg"
    drawing.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="5"/></svg>')
    with pytest.raises(ValueError, match=r"Expected .*a\.svg.*mp4"):
        load_clip(drawing)
    path = write_video(tmp_path / "a.mp4", drawn_clip(2))
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(ValueError, match=r"Expected .*a\.mp4 is in a format that cannot be decoded"):
        load_clip(path)


def test_an_image_too_large_to_be_meant(tmp_path):
    folder = write_folder(tmp_path / "frames", drawn_clip(1))
    path = folder / "a.bmp"
    Image.new("L", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    data[18:26] = struct.pack("<ii", 20000, 20000)
    path.write_bytes(data)
    for source in (path, folder):
        with pytest.raises(ValueError, match=r"readable image; .*a\.bmp is not: .*400000000 pixels.*smaller"):
            load_clip(source)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "avi"])
def test_video_without_frames(tmp_path, suffix):
    path = tmp_path / f"empty.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    with pytest.raises(ValueError, match=r"Expected .*(got 0|after 0 frames|holds none)"):
        load_clip(path)


def test_bad_picks_and_sizes(tmp_path):
    folder = write_folder(tmp_path / "frames", drawn_clip(3))
    for wrong in ({"frames": 0}, {"start": -1}, {"every": 0}):
        with pytest.raises(ValueError, match="Expected frames >= 1"):
            load_clip(folder, **wrong)
    with pytest.raises(ValueError, match=r"at least 8 frames .*got 3"):
        load_clip(folder, start=7)
    Image.new("RGB", (20, 10)).save(folder / "frame_3.png")
    with pytest.raises(ValueError, match=r"number 1 of .*frames has 48 x 32, number 4 of .* has 20 x 10"):
        load_clip(folder)


@pytest.mark.parametrize("fps", [0, -8, 0.09, 1001, float("nan"), float("inf")])
def test_impossible_frame_rates_are_refused(tmp_path, fps):
    folder = write_folder(tmp_path / "frames", drawn_clip(1))
    for make in (lambda: Clip(drawn_clip(1), fps), lambda: load_clip(folder, fps=fps)):
        with pytest.raises(ValueError, match=r"frame rate from 0\.1 to 1000; got fps = "):
            make()
    assert [load_clip(folder, fps=allowed).fps for allowed in (0.1, 1000)] == [0.1, 1000]
    with pytest.raises(ValueError, match=r"fps = 0\.08"):
        load_clip(folder, every=100)


def test_from_tensors_rounds_and_repeats_a_single_mask():
    images = torch.rand(3, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    clip = Clip.from_tensors(images, torch.ones(1, 4, 5), fps=12)
    np.testing.assert_array_equal(clip.frames, (images * 255).round().numpy().astype(np.uint8))
    assert clip.masks is not None and clip.masks.shape == (3, 4, 5) and clip.masks.min() == 255
    assert clip.fps == 12
    assert Clip.from_tensors(images.half(), torch.ones(4, 5)).masks is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: (torch.cat([i[:1], i[1:] + math.nan]),), "got 60 NaN or infinite values of 120"),
        (lambda i: (torch.linspace(0, 255, 120).view(2, 4, 5, 3),), "0 to 255"),
        (lambda i: (i[..., :2],), r"\[2, 4, 5, 2\]"),
        (lambda i: (i[0],), r"\[4, 5, 3\]"),
        (lambda i: (i[:0],), r"\[0, 4, 5, 3\]"),
        (lambda i: (i, torch.zeros(3, 4, 5)), r"one mask per frame \(2\).*got 3"),
        (lambda i: (i, torch.zeros(2, 4, 6)), r"5 x 4; got 6 x 4"),
        (lambda i: (i, torch.full((2, 4, 5), float("inf"))), "masks"),
    ],
)
def test_from_tensors_refuses_what_is_no_clip(change, message):
    with pytest.raises(ValueError, match=message):
        Clip.from_tensors(*change(torch.zeros(2, 4, 5, 3)))


def test_from_tensors_picks_frames_and_masks_like_load_clip():
    images = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 4, 5, 3) / 255
    masks = torch.arange(200.0, 210).view(10, 1, 1).expand(10, 4, 5) / 255
    choice = dict(frames=3, start=2, every=3)
    for given in (masks, masks[2:9:3]):
        clip = Clip.from_tensors(images, given, **choice)
        assert clip.frames[:, 0, 0, 0].tolist() == [2, 5, 8]
        assert clip.masks is not None and clip.masks[:, 0, 0].tolist() == [202, 205, 208]
    single = Clip.from_tensors(images, masks[:1], start=7)
    assert single.masks is not None and single.masks[:, 0, 0].tolist() == [200] * 3
    assert Clip.from_tensors(images, frames=99, start=9).n_frames == 1
    with pytest.raises(ValueError, match=r"one mask per frame \(3\) or a single mask; got 4"):
        Clip.from_tensors(images, masks[:4], **choice)
    with pytest.raises(ValueError, match=r"at least 11 frames in the clip; got 10\. Lower start"):
        Clip.from_tensors(images, start=10)
    with pytest.raises(ValueError, match="every >= 1; got frames = 3, start = 0, every = 0"):
        Clip.from_tensors(images, frames=3, every=0)
