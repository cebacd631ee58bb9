"""Animations: mp4, webm with transparency, GIF, or numbered PNG files."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import cast

import av
from av.video.stream import VideoStream
from torch import Tensor

from ..data.datasets import write_export
from ..files import write_whole, writing_by_name
from ..scene.tracking.mesh import check_finite
from ..video.pictures import to_bytes, with_alpha, write_frames
from ..video.write import gif_bytes, write_video
from .sequences import SEQUENCE_FILE

SEQUENCE_NAMES = re.compile(r"sequence\.json|\d{5}\.png")
# Constant quality, from 0, lossless, to 63; the encoder of the alpha takes the same.
_WEBM_OPTIONS = {"crf": "15", "b:v": "0", "auto-alt-ref": "0", "deadline": "good", "cpu-used": "4"}


def write_animation(
    path: str | Path,
    images: Tensor,  # [N, H, W, 3] in 0..1, on white where there is an opacity
    opacity: Tensor | None,  # [N, H, W] in 0..1; None: nothing is transparent
    fps: float,
    *,
    overwrite: bool = False,
) -> int:
    """Write pictures as .mp4 (H.264 on white), .webm (VP9) or .gif, as the name ends; return its size.

    Raises as `write_whole`, and ValueError for NaN, or a rate or size that this kind of file cannot have.
    """
    path = Path(path)
    check_finite("animation", pictures=images, opacity=opacity)
    if path.suffix.lower() == ".mp4":
        # The index can only be moved to the front of a file that has a name.
        with writing_by_name(path, overwrite) as named:
            write_video(named, images, fps)
        return path.stat().st_size
    return write_whole(path, _ENCODERS[path.suffix.lower()](images, opacity, fps), overwrite)


def write_pngs(
    folder: str | Path, images: Tensor, opacity: Tensor | None, fps: float, *, overwrite: bool = False
) -> list[Path]:
    """Write ``00000.png`` and so on (RGBA with opacity) and ``sequence.json``; raise as `write_animation`."""
    folder = Path(folder)
    check_finite("animation", pictures=images, opacity=opacity)
    pictures = images if opacity is None else with_alpha(images, opacity)
    about = {"format": "png", "fps": fps}
    fill = partial(write_frames, pictures=pictures)
    return write_export(folder, SEQUENCE_FILE, SEQUENCE_NAMES, overwrite, pictures.numel(), about, fill)


def _webm_bytes(images: Tensor, opacity: Tensor | None, fps: float) -> bytes:
    """Return a VP9 video with 4:2:0 colour, and with an alpha channel where there is opacity."""
    if "libvpx-vp9" not in av.codecs_available:
        raise ValueError(
            "Expected a PyAV with libvpx-vp9 to write webm; this one has none. Write gif or png."
        )
    pictures, kind, layout = images, "rgb24", "yuv420p"
    if opacity is not None:
        pictures, kind, layout = with_alpha(images, opacity), "rgba", "yuva420p"
    content = io.BytesIO()
    with av.open(content, "w", format="webm") as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = cast(VideoStream, container.add_stream("libvpx-vp9", rate=rate, options=_WEBM_OPTIONS))
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], layout
        context = stream.codec_context
        # BT.709 in limited range, tagged as in `write_video`.
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
        for picture in to_bytes(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format=kind)
            container.mux(stream.encode(frame.reformat(format=layout, dst_colorspace="itu709")))
        container.mux(stream.encode())
    return content.getvalue()


_ENCODERS: dict[str, Callable[[Tensor, Tensor | None, float], bytes]] = {
    ".webm": _webm_bytes,
    ".gif": gif_bytes,
}
ANIMATION_SUFFIXES = (".mp4", *_ENCODERS)
