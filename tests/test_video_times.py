"""When frames are shown: rates from time stamps, even times, masks of another rate, which stream is read."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from sv4d2_core.video import read as read_module
from sv4d2_core.video.decode import Pick
from sv4d2_core.video.read import load_clip
from sv4d2_core.video.write import write_video

SIZE = 32


def levels(clip) -> list[int]:
    """Return the number that each frame shows as its grey level, in tens."""
    return [round(float(frame[..., 0].mean()) / 10) for frame in clip.frames]


def write_timed(path, times_ms, codec="libx264", stated_fps=25, first=0):
    """Write frames of grey level 10 * number, shown at times in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=stated_fps)
        stream.width = stream.height = SIZE
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "0", "bf": "2"}
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(times_ms, first):
            grey = np.full((SIZE, SIZE, 3), 10 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_even(path, n_frames, fps, **options):
    return write_timed(path, [round(1000 * n / fps) for n in range(n_frames)], **options)


PHONE = [*range(0, 300, 33), *range(330, 1500, 167)]  # ten frames at 30 per second, then some at 6


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx-vp9")]
)
def test_the_rate_is_that_of_the_picked_frames(tmp_path, suffix, codec):
    path = write_timed(tmp_path / f"a.{suffix}", PHONE, codec, stated_fps=1000)
    first = load_clip(path, frames=9)
    assert first.fps == pytest.approx(30.3, abs=0.05) and not any("uneven" in note for note in first.notes)
    assert load_clip(path, start=11, every=2).fps == pytest.approx(3, abs=0.02)
    (uneven,) = [note for note in load_clip(path).notes if "uneven" in note]
    assert "33 to 167 ms apart" in uneven and "--fps" in uneven


def test_fps_takes_the_frames_nearest_to_even_times(tmp_path):
    path = write_timed(tmp_path / "a.mp4", PHONE)
    clip = load_clip(path, fps=10, frames=8)
    times = [PHONE[number] for number in clip.source_frames]
    assert np.abs(np.array(times) - 100 * np.arange(8)).max() <= 84 and clip.fps == 10
    assert levels(clip) == list(clip.source_frames)
    assert any("resampled by time to 10 fps" in note for note in clip.notes)
    later = load_clip(path, fps=10, start=3, every=3, frames=2)
    assert later.source_frames == (3, 10) and later.fps == 10
    assert load_clip(path, fps=6, frames=None).n_frames == 10, "until the last frame, not longer"


@pytest.mark.parametrize("rate", [24, 30, 60])
def test_pictures_that_follow_evenly_are_picked_as_from_a_file(tmp_path, rate):
    # Times of a Matroska file are whole milliseconds, so rates are chosen that tie nowhere near them.
    path = write_timed(tmp_path / "a.mkv", [1000 * n // rate for n in range(23)], stated_fps=rate)
    for choice in (
        dict(fps=7),
        dict(fps=11, start=4),
        dict(fps=50, frames=9),
        dict(fps=25, start=3, every=4),
    ):
        clip = load_clip(path, **{"frames": None, **choice})
        pick = Pick(**{{"frames": "count"}.get(key, key): value for key, value in choice.items()})
        assert tuple(pick.among(23, rate)) == clip.source_frames
    assert Pick(2, 5, 3).among(23, rate) == [2, 7, 12] and Pick(23, fps=8).among(23, rate) == []
    assert Pick(fps=2 * rate, count=5).among(23, rate) == [0, 0, 1, 1, 2], "the earlier one wins a tie"


def test_fps_keeps_even_frames_and_is_only_the_pace_of_images(tmp_path):
    clip = load_clip(write_even(tmp_path / "a.mkv", 12, 30), fps=30)
    assert clip.source_frames == tuple(range(12)) and clip.fps == 30
    for number in range(3):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
    clip = load_clip(tmp_path / "*.png", fps=24)
    assert (clip.n_frames, clip.fps, clip.source_frames) == (3, 24, (0, 1, 2))


@pytest.mark.parametrize(("delay", "fps"), [(0, 10), (10, 10), (20, 50), (40, 25)])
def test_short_delays_of_animations_last_as_long_as_in_browsers(tmp_path, delay, fps):
    pictures = [Image.new("L", (8, 8), 20 * number) for number in range(5)]
    for name in ("a.gif", "a.png"):
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], duration=delay)
        clip = load_clip(tmp_path / name)
        assert clip.fps == pytest.approx(fps)
        assert any("as in browsers" in note for note in clip.notes) == (delay < 20)


def test_a_gif_whose_last_picture_rests_keeps_its_pace_and_is_resampled(tmp_path):
    pictures = [Image.new("L", (8, 8), 10 * number) for number in range(6)]
    pictures[0].save(
        tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=[40, 40, 40, 40, 40, 2000]
    )
    assert load_clip(tmp_path / "a.gif").fps == pytest.approx(25)
    clip = load_clip(tmp_path / "a.gif", fps=12.5)
    assert clip.source_frames == (0, 2, 4) and levels(clip) == [0, 2, 4]


def test_masks_of_another_rate_belong_to_the_same_time(tmp_path):
    clip = write_even(tmp_path / "a.mp4", 24, 24)
    half = write_even(tmp_path / "half.mp4", 12, 12, first=13)
    read = load_clip(clip, mask=half, start=1, every=5)
    assert read.masks is not None
    assert [round(float(mask.mean()) / 10) - 13 for mask in read.masks] == [0, 3, 5, 8, 10]
    assert any("masks: matched by time, 12" in note for note in read.notes)
    slow = load_clip(clip, mask=half, fps=6).masks
    assert slow is not None and [round(float(mask.mean()) / 10) - 13 for mask in slow] == [0, 2, 4, 6, 8, 10]


def test_masks_that_fit_by_number_only_are_taken_so_and_others_refused(tmp_path):
    clip = write_even(tmp_path / "a.mp4", 12, 24)
    same = load_clip(clip, mask=write_even(tmp_path / "slow.mp4", 12, 8, first=13)).masks
    assert same is not None and [round(float(mask.mean()) / 10) - 13 for mask in same] == list(range(12))
    with pytest.raises(ValueError, match=r"has 18 at 6\S* fps \(3\.00 s\), .* 12 frames at 24\S* fps"):
        load_clip(clip, mask=write_even(tmp_path / "other.mp4", 18, 6))


def test_the_moving_stream_is_read_and_a_cover_never(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in range(3)]
        for stream, size, is_default in zip(streams, (16, 32, 64), (False, True, False), strict=True):
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            stream.disposition = 1 if is_default else 0
        for stream in streams:
            for _ in range(4):
                grey = np.full((stream.height, stream.width, 3), 99, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            container.mux(stream.encode())
    clip = load_clip(path)
    assert clip.frames.shape[1] == 32 and any("of 3 video streams number 1" in note for note in clip.notes)


def test_an_animated_avif_gives_all_its_frames(tmp_path):
    frames = [Image.new("RGB", (SIZE, SIZE), (10 * number,) * 3) for number in range(6)]
    try:
        frames[0].save(tmp_path / "a.avif", save_all=True, append_images=frames[1:], duration=40, quality=95)
    except (KeyError, ValueError):
        pytest.skip("this Pillow writes no AVIF")
    clip = load_clip(tmp_path / "a.avif")
    assert clip.n_frames == 6 and clip.fps == pytest.approx(25)


def test_a_rate_that_no_clip_can_have_is_the_nearest_and_said(tmp_path):
    pictures = [Image.fromarray(np.full((16, 16, 3), 60 * k, np.uint8)) for k in range(3)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=20_000)
    clip = load_clip(tmp_path / "a.gif")
    assert clip.fps == 0.1 and "0.05 fps is not a rate that clips can have: 0.1 to 1000" in clip.notes


def test_masks_of_frames_picked_by_time_are_the_only_ones_that_are_kept(tmp_path, monkeypatch):
    frames = torch.linspace(0, 1, 40)[:, None, None, None].expand(40, 16, 16, 3)
    for name in ("a.mp4", "mask.mp4"):
        write_video(tmp_path / name, frames, 20)
    kept = []
    read = read_module.read_pictures

    def watched(*arguments):
        kept.append(read(*arguments))
        return kept[-1]

    monkeypatch.setattr(read_module, "read_pictures", watched)
    clip = load_clip(tmp_path / "a.mp4", mask=tmp_path / "mask.mp4", fps=4, start=3)
    assert clip.source_frames == (3, 8, 13, 18, 23, 28, 33, 38)
    assert [len(one.pictures) for one in kept] == [8, 8]
    np.testing.assert_allclose(clip.masks.mean((1, 2)), clip.frames.mean((1, 2, 3)), atol=3)
