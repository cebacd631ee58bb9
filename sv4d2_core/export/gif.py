"""Animated GIF: one palette for all pictures, their background left exactly as it is, true durations."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .pictures import pick_frames, to_bytes, with_alpha

# The last entry of the palette is the background's: white, or nothing at all.
_BACKGROUND = 255
_PALETTE_FRAMES, _PALETTE_PIXELS = 16, 500_000
# A delay of one hundredth is taken for a tenth of a second by browsers.
_SHORTEST = 2
_LARGEST_FPS = 100 / _SHORTEST


def gif_bytes(images: Tensor, opacity: Tensor | None, fps: float) -> bytes:
    """Return a GIF that repeats for ever.

    A pixel is transparent where its opacity is below a half; without opacity, white stays white. All other
    colours are dithered to one palette of 255, as a palette per picture would flicker.

    Args:
        images: [N, H, W, 3] in 0..1, on white where ``opacity`` is given.
        opacity: [N, H, W] in 0..1, or None.
        fps: pictures per second. A delay is a whole number of hundredths of a second: they differ by one so
            that the whole has the right length.

    Raises:
        ValueError: more than 50 pictures per second.
    """
    if fps > _LARGEST_FPS:
        raise ValueError(
            f"Expected at most {_LARGEST_FPS:g} frames per second, as a GIF can show; got {fps:g}. Lower the "
            f"rate, or write webm or mp4."
        )
    colours, background = _pictures(images, opacity)
    palette = _palette(colours, background)
    frames = [_indexed(*pair, palette) for pair in zip(colours, background, strict=True)]
    options: dict = {} if opacity is None else {"transparency": _BACKGROUND, "disposal": 2}
    content = io.BytesIO()
    frames[0].save(
        content,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=_durations_ms(len(frames), fps),
        loop=0,
        optimize=False,
        **options,
    )
    return content.getvalue()


def _pictures(images: Tensor, opacity: Tensor | None) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return colours [N, H, W, 3], and which pixels are background, [N, H, W]."""
    if opacity is None:
        colours = to_bytes(images)
        return colours, (colours == 255).all(-1)
    rgba = to_bytes(with_alpha(images, opacity))
    return np.ascontiguousarray(rgba[..., :3]), rgba[..., 3] < 128


def _palette(colours: NDArray[np.uint8], background: NDArray[np.bool_]) -> Image.Image:
    """Return the 255 colours that suit the pictures' objects best, and white, as Pillow keeps a palette."""
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
    """Return one picture in the palette's colours."""
    picture = Image.fromarray(colours).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    indices = np.where(background, _BACKGROUND, np.asarray(picture)).astype(np.uint8)
    picture = Image.fromarray(indices, mode="P")
    picture.putpalette(palette.getpalette() or [])
    return picture


def _durations_ms(count: int, fps: float) -> list[int]:
    """Return how long each picture is shown, in milliseconds that are whole hundredths of a second."""
    ends = [round(100 * n / fps) for n in range(count + 1)]
    return [10 * (after - before) for before, after in zip(ends, ends[1:], strict=False)]
