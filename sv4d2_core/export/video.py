"""Writes an mp4 that browsers and editors play."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
from av.video.stream import VideoStream
from torch import Tensor

from .pictures import to_bytes

# At rate factor 12 the eye cannot tell H.264 from the frames (0 is lossless, 23 is x264's default); quantiser
# 2 of the fallback comes close. With B-frames the bits of small pictures vary from one call to the next.
_ENCODER_OPTIONS = {"libx264": {"crf": "12", "bf": "0"}, "mpeg4": {"qmin": "2", "qmax": "2"}}
_BT709 = 1
_LIMITED_RANGE = 1

_log = logging.getLogger(__name__)


def write_video(path: Path, images: Tensor, fps: float) -> None:
    """Write images [T, H, W, 3] in 0..1 as an H.264 mp4 with 4:2:0 colour, which every player expects.

    Raises:
        ValueError: an odd height or width, no frames, a rate that is not positive.
        OSError: the disk is full or read-only.
    """
    n_frames, height, width = images.shape[:3]
    if n_frames < 1 or height % 2 or width % 2:
        raise ValueError(
            f"Expected at least one frame of even height and width; got {n_frames} of {height} x {width}. "
            f"Use a size that is a multiple of 8."
        )
    if fps <= 0:
        raise ValueError(f"Expected a positive frame rate; got {fps:g}. Use the clip's rate, or 8.")
    encoder = _encoder()
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = cast(
            VideoStream, container.add_stream(encoder, rate=rate, options=_ENCODER_OPTIONS[encoder])
        )
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        # Without these tags a player guesses the colour matrix from the picture's size.
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        for image in to_bytes(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="itu709")))
        container.mux(stream.encode())


def _encoder() -> str:
    if "libx264" in av.codecs_available:
        return "libx264"
    _log.warning("This PyAV lacks libx264; the videos are MPEG-4 part 2, which browsers may refuse.")
    return "mpeg4"
