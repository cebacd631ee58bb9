"""Videos (mp4, webm) and animated GIFs of pictures."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .pictures import pick_frames, to_bytes, with_alpha
from .places import file_url

_BACKGROUND = 255  # the palette's last entry: white, or nothing at all
_PALETTE_FRAMES, _PALETTE_PIXELS = 16, 500_000
_LARGEST_GIF_FPS = 50.0  # browsers take a delay of one hundredth for a tenth of a second
# At rate factor 12 the eye cannot tell H.264 from the frames (0 is lossless, 23 is x264's default); quantiser
# 2 of the fallback comes close. With B-frames the bits of small pictures vary from one call to the next.
_ENCODER_OPTIONS = {
    "libx264": {"crf": "12", "bf": "0"},
    "mpeg4": {"qmin": "2", "qmax": "2"},
    # Constant quality, from 0, lossless, to 63; the encoder of the alpha takes the same.
    "libvpx-vp9": {"crf": "15", "b:v": "0", "auto-alt-ref": "0", "deadline": "good", "cpu-used": "4"},
}
_BT709 = 1
_LIMITED_RANGE = 1

_log = logging.getLogger(__name__)


def check_video(suffix: str, shape: Sequence[int], fps: float) -> None:
    """Raise ValueError where a .gif, .mp4 or .webm cannot hold pictures [N, H, W, ...], made or not yet."""
    n_frames, height, width = shape[:3]
    if suffix == ".mp4" and (n_frames < 1 or height % 2 or width % 2):
        raise ValueError(
            f"Expected at least one frame of even height and width; got {n_frames} of {height} x {width}."
        )
    if fps <= 0:
        raise ValueError(f"Expected a positive frame rate; got {fps:g}. Use the clip's rate, or 8.")
    if suffix == ".gif" and fps > _LARGEST_GIF_FPS:
        raise ValueError(
            f"Expected at most {_LARGEST_GIF_FPS:g} frames per second, as a GIF can show; got {fps:g}. Lower "
            f"the rate, or write webm or mp4."
        )
    if suffix == ".webm" and "libvpx-vp9" not in av.codecs_available:
        raise ValueError(
            "Expected a PyAV with libvpx-vp9 to write webm; this one has none. Write gif or png."
        )


def gif_bytes(
    images: Tensor,  # [N, H, W, 3] in 0..1, on white where ``opacity`` is given
    opacity: Tensor | None,  # [N, H, W] in 0..1
    fps: float,  # at most 50
) -> bytes:
    """Return a GIF that repeats for ever.

    A pixel is transparent where its opacity is below a half; without opacity, white stays white. Colours are
    dithered to one palette of 255, as one per picture would flicker. Delays are whole hundredths of a second,
    which differ by one so that the whole has the right length.
    """
    check_video(".gif", images.shape, fps)
    if opacity is None:
        colours = to_bytes(images)
        background = (colours == 255).all(-1)
    else:
        rgba = to_bytes(with_alpha(images, opacity))
        colours, background = np.ascontiguousarray(rgba[..., :3]), rgba[..., 3] < 128
    palette = _palette(colours, background)
    frames = [_indexed(*pair, palette) for pair in zip(colours, background, strict=True)]
    options: dict = {} if opacity is None else {"transparency": _BACKGROUND, "disposal": 2}
    ends = [round(100 * n / fps) for n in range(len(frames) + 1)]
    content = io.BytesIO()
    frames[0].save(
        content,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=[10 * (after - before) for before, after in zip(ends, ends[1:], strict=False)],
        loop=0,
        optimize=False,
        **options,
    )
    return content.getvalue()


def _palette(colours: NDArray[np.uint8], background: NDArray[np.bool_]) -> Image.Image:
    shown = pick_frames(len(colours), _PALETTE_FRAMES)
    pixels = colours[shown][~background[shown]]
    pixels = pixels[:: -(-len(pixels) // _PALETTE_PIXELS) or 1]
    if not len(pixels):
        pixels = np.full((1, 3), 255, np.uint8)
    best = Image.fromarray(pixels[None]).quantize(_BACKGROUND, Image.Quantize.FASTOCTREE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette((best + [255] * 768)[: 3 * _BACKGROUND] + [255, 255, 255])
    return palette


def _indexed(colours: NDArray[np.uint8], background: NDArray[np.bool_], palette: Image.Image) -> Image.Image:
    entries = palette.getpalette() or []
    known = Image.new("P", (1, 1))
    known.putpalette(entries[: 3 * _BACKGROUND] + entries[:3])  # what is seen never takes the last entry
    picture = Image.fromarray(colours).quantize(palette=known, dither=Image.Dither.FLOYDSTEINBERG)
    indices = np.where(background, _BACKGROUND, np.asarray(picture)).astype(np.uint8)
    picture = Image.fromarray(indices, mode="P")
    picture.putpalette(entries)
    return picture


def write_video(path: Path, images: Tensor, fps: float) -> None:
    """Write images [T, H, W, 3] in 0..1 as an H.264 mp4 with 4:2:0 colour, which every player expects."""
    check_video(".mp4", images.shape, fps)
    encoder = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    if encoder == "mpeg4":
        _log.warning("This PyAV lacks libx264; the videos are MPEG-4 part 2, which browsers may refuse.")
    with av.open(file_url(path), "w", options={"movflags": "+faststart"}) as container:
        _encode(container, encoder, images, fps)


def webm_bytes(images: Tensor, opacity: Tensor | None, fps: float) -> bytes:
    """Return a VP9 video with 4:2:0 colour, and with an alpha channel where there is opacity."""
    check_video(".webm", images.shape, fps)
    content = io.BytesIO()
    with av.open(content, "w", format="webm") as container:
        _encode(container, "libvpx-vp9", images if opacity is None else with_alpha(images, opacity), fps)
    return content.getvalue()


def _encode(container: OutputContainer, encoder: str, pictures: Tensor, fps: float) -> None:
    """Write pictures [T, H, W, 3 or 4] in 0..1 as the only stream."""
    kind, layout = ("rgba", "yuva420p") if pictures.shape[-1] == 4 else ("rgb24", "yuv420p")
    rate = Fraction(fps).limit_denominator(1001)
    stream = cast(VideoStream, container.add_stream(encoder, rate=rate, options=_ENCODER_OPTIONS[encoder]))
    stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], layout
    # Without these tags a player guesses the colour matrix from the picture's size.
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED_RANGE
    for picture in to_bytes(pictures):
        frame = av.VideoFrame.from_ndarray(picture, format=kind)
        container.mux(stream.encode(frame.reformat(format=layout, dst_colorspace="itu709")))
    container.mux(stream.encode())
