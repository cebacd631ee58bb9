"""Videos, GIFs and PNG files, read back by PyAV and Pillow, show the pictures that were written."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from sv4d2_core.cameras import Cameras
from sv4d2_core.export.sequences import ANIMATION_SUFFIXES, write_animation, write_pngs
from sv4d2_core.video.pictures import to_bytes
from sv4d2_core.world import make_creature, render_views

N, SIZE, FPS = 6, 64, 8.0


@pytest.fixture(scope="module")
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    grid = render_views(make_creature(3), Cameras((0, 10), (0, 75)), N, SIZE)
    images, masks = grid.one_view(0)
    assert masks is not None and 0 < float(((masks > 0) & (masks < 1)).float().mean())
    return images, masks


def decoded(path: Path) -> tuple[np.ndarray, float, str]:
    """Return frames [N, H, W, 3], or 4 where there is alpha, their rate, and how they were coded."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoder = stream.codec_context
        if decoder.name == "vp9":
            # FFmpeg's own decoder, which is the default, knows no alpha.
            decoder = av.CodecContext.create("libvpx-vp9", "r")
        packets = [packet for packet in container.demux(stream) if packet.size]
        frames = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
        layout = frames[0].format.name
        kind = "rgba" if layout == "yuva420p" else "rgb24"
        arrays = np.stack([frame.to_ndarray(format=kind) for frame in frames])
        return arrays, float(stream.average_rate), layout


def gif_frames(path: Path) -> tuple[np.ndarray, list[int], dict]:
    """Return RGBA frames [N, H, W, 4], their durations in ms, and what the file says of itself."""
    with Image.open(path) as picture:
        about, frames, durations = dict(picture.info), [], []
        for n in range(picture.n_frames):
            picture.seek(n)
            durations.append(picture.info["duration"])
            frames.append(np.asarray(picture.convert("RGBA")))
    return np.stack(frames), durations, about


def psnr(got, expected) -> float:
    return float(-10 * np.log10(((got - expected) ** 2).mean()))


def over(rgba: np.ndarray, background: float) -> np.ndarray:
    pixels = rgba.astype(float) / 255
    return pixels[..., :3] * pixels[..., 3:] + background * (1 - pixels[..., 3:])


@pytest.mark.parametrize(("height", "width"), [(SIZE, SIZE), (63, 61)])
def test_webm_with_alpha_shows_the_object_on_any_background(tmp_path, pictures, height, width):
    images, opacity = (values[:, :height, :width] for values in pictures)
    size = write_animation(tmp_path / "a.webm", images, opacity, FPS)
    assert size == (tmp_path / "a.webm").stat().st_size
    frames, rate, layout = decoded(tmp_path / "a.webm")
    assert (frames.shape, rate, layout) == ((N, height, width, 4), FPS, "yuva420p")
    alpha = frames[..., 3] / 255
    assert np.abs(alpha - opacity.numpy()).mean() < 0.005
    assert alpha[opacity.numpy() == 0].max() < 0.1 and alpha[opacity.numpy() == 1].min() > 0.9
    for background in (0.0, 0.5, 1.0):
        expected = images.numpy() - (1 - opacity.numpy()[..., None]) * (1 - background)
        assert psnr(over(frames, background), expected) > 38
    with av.open(str(tmp_path / "a.webm")) as container:
        stream = container.streams.video[0]
        assert stream.metadata["alpha_mode"] == "1"
        # Programs that know no alpha see the same pictures.
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("vp9", "yuv420p")
        assert len(list(container.decode(stream))) == N


@pytest.mark.parametrize("suffix", [".webm", ".mp4"])
def test_opaque_videos_keep_white_and_colours(tmp_path, pictures, suffix):
    images, opacity = pictures
    write_animation(tmp_path / f"a{suffix}", images, opacity if suffix == ".mp4" else None, 7.5)
    frames, rate, layout = decoded(tmp_path / f"a{suffix}")
    assert (frames.shape, rate, layout) == ((N, SIZE, SIZE, 3), 7.5, "yuv420p")
    assert np.abs(frames[:, :4, :4].astype(float) - 255).max() <= 2
    assert psnr(frames / 255, images.numpy()) > 30


@pytest.mark.parametrize("suffix", [".webm", ".mp4"])
@pytest.mark.parametrize("colour", [(1.0, 0.0, 0.0), (0.1, 0.8, 0.3), (0.2, 0.3, 0.9)])
def test_video_colours_are_those_of_bt709_in_limited_range(tmp_path, colour, suffix):
    """The stored planes by the formula of the standard: what decoders make of the tags is their affair."""
    write_animation(tmp_path / f"a{suffix}", torch.tensor(colour).expand(2, 32, 32, 3), None, 8)
    with av.open(str(tmp_path / f"a{suffix}")) as container:
        frame = next(container.decode(video=0))
    r, g, b = colour
    luma = 0.2126 * r + 0.7152 * g + 0.0722 * b
    expected = 16 + 219 * luma, 128 + 112 * (b - luma) / 0.9278, 128 + 112 * (r - luma) / 0.7874
    planes = [np.frombuffer(plane, np.uint8)[0] for plane in frame.planes]
    assert planes == pytest.approx(expected, abs=2)
    assert (frame.colorspace, frame.color_range) == (1, 1)


def test_a_gif_has_exact_white_or_is_clear_and_has_one_palette_of_good_colours(tmp_path, pictures):
    images, opacity = pictures
    write_animation(tmp_path / "a.gif", images, None, FPS)
    frames, _, about = gif_frames(tmp_path / "a.gif")
    assert frames.shape == (N, SIZE, SIZE, 4) and about["loop"] == 0 and (frames[..., 3] == 255).all()
    assert (frames[(to_bytes(images) == 255).all(-1)] == 255).all()
    assert psnr(frames[..., :3] / 255, images.numpy()) > 38
    assert len(np.unique(frames.reshape(-1, 4), axis=0)) <= 256
    write_animation(tmp_path / "b.gif", images, opacity, FPS)
    frames, _, _ = gif_frames(tmp_path / "b.gif")
    # Frames that were not cleared would show what the ones before them had shown.
    assert np.array_equal(frames[..., 3] == 255, to_bytes(opacity) >= 128)
    inside = opacity.numpy() == 1
    assert psnr(frames[inside][:, :3] / 255, images.numpy()[inside]) > 30


def test_a_gif_has_no_holes_where_small_things_are_white(tmp_path):
    images = 0.9 * torch.rand(2, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    images[:, 60:62, 60:62] = 1
    opacity = torch.zeros(2, 128, 128)
    opacity[:, 8:120, 8:120] = 1
    write_animation(tmp_path / "a.gif", images, opacity, FPS)
    frames, _, _ = gif_frames(tmp_path / "a.gif")
    assert np.array_equal(frames[..., 3] == 255, opacity.numpy() == 1)


@pytest.mark.parametrize("fps", [8, 12.5, 24, 29.97, 50, 0.5])
def test_gif_durations_add_up(tmp_path, fps):
    images = torch.arange(9)[:, None, None, None].expand(9, 16, 16, 3) / 10
    write_animation(tmp_path / "a.gif", images, None, fps)
    frames, durations, _ = gif_frames(tmp_path / "a.gif")
    assert len(frames) == 9
    assert sum(durations) == pytest.approx(9000 / fps, abs=5)
    assert max(abs(duration - 1000 / fps) for duration in durations) <= 10
    assert min(durations) >= 20


@pytest.mark.parametrize("empty", [None, 0.0])
def test_a_gif_of_nothing_but_white(tmp_path, empty):
    opacity = None if empty is None else torch.full((2, 16, 16), empty)
    write_animation(tmp_path / "a.gif", torch.ones(2, 16, 16, 3), opacity, 8)
    frames, durations, _ = gif_frames(tmp_path / "a.gif")
    assert (frames[..., 3] == (255 if empty is None else 0)).all()
    assert sum(durations) == 250


@pytest.mark.parametrize("suffix", ANIMATION_SUFFIXES)
def test_one_picture_is_enough(tmp_path, pictures, suffix):
    images, opacity = pictures
    write_animation(tmp_path / f"a{suffix}", images[:1], opacity[:1], FPS)
    frames = gif_frames(tmp_path / "a.gif")[0] if suffix == ".gif" else decoded(tmp_path / f"a{suffix}")[0]
    assert len(frames) == 1


def test_pngs_hold_the_pictures_and_their_opacity(tmp_path, pictures):
    images, opacity = pictures
    made = write_pngs(tmp_path / "out", images, opacity, 7.5)
    assert [path.name for path in made] == [*(f"{n:05d}.png" for n in range(N)), "sequence.json"]
    assert json.loads(made[-1].read_text())["fps"] == 7.5
    frames = np.stack([np.asarray(Image.open(path)) for path in made[:-1]])
    assert np.array_equal(frames[..., 3], to_bytes(opacity))
    np.testing.assert_allclose(over(frames, 1.0), images.numpy(), atol=0.005)
    made = write_pngs(tmp_path / "rgb", images, None, 7.5)
    frames = np.stack([np.asarray(Image.open(path)) for path in made[:-1]])
    assert np.array_equal(frames, to_bytes(images))


@pytest.mark.parametrize("suffix", [*ANIMATION_SUFFIXES, ""])
def test_numbers_that_are_not_finite_are_refused_before_anything_is_written(tmp_path, pictures, suffix):
    images, opacity = pictures
    broken = images.clone()
    broken[1, 2, 3, 0] = float("nan")
    write = write_animation if suffix else write_pngs
    for args, text in (((broken, opacity), "pictures; 1 of "), ((images, opacity / 0), "opacity; ")):
        with pytest.raises(ValueError, match=f"finite {text}"):
            write(tmp_path / f"a{suffix}", *args, 8)
    assert list(tmp_path.iterdir()) == []


def test_what_a_kind_of_file_cannot_be_is_refused_before_anything_is_written(tmp_path, pictures, monkeypatch):
    with pytest.raises(ValueError, match="at most 50 frames per second.*got 60"):
        write_animation(tmp_path / "a.gif", *pictures, 60)
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    with pytest.raises(ValueError, match="libvpx-vp9.*Write gif or png"):
        write_animation(tmp_path / "a.webm", *pictures, 8)
    assert list(tmp_path.iterdir()) == []
