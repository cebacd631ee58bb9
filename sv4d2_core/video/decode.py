"""Pixels out of files: images, animations and videos, as they are to be seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from PIL import Image, ImageOps
from torch import Tensor

from ..files import is_out_of_memory
from .places import LINEAR_SUFFIXES, file_url

DEFAULT_FPS = 8.0

_DEFAULT_DURATION_MS = 100.0  # of a frame, as browsers show animations that state none
_LARGEST_PIXEL_ASPECT = 8  # beyond it is damage, not a wide-screen format


@dataclass(frozen=True)
class Decoded:
    """The pictures that were picked, and what is known of them."""

    pictures: list[np.ndarray]  # uint8 [H, W, 3] RGB or [H, W, 4] RGBA with straight alpha
    total: int  # pictures that were seen, picked or not
    fps: float = DEFAULT_FPS  # of the source
    notes: tuple[str, ...] = ()  # what was decided for the user, one line each
    masks: list[Path] = field(default_factory=list)  # images that stand beside the pictures as their masks


def read_image(file: Path) -> np.ndarray:
    """Return an image file upright, as pictures are in `Decoded`; ValueError names what cannot be read."""
    if file.suffix.lower() in LINEAR_SUFFIXES:
        return _linear_pixels(file)
    with _naming(file), Image.open(file) as image:
        return _pixels(ImageOps.exif_transpose(image), file)


def read_animation(file: Path, pick: slice) -> Decoded:
    """Return the picked pictures of an image file of one or more; errors as `read_image`."""
    pictures, durations = [], []
    if file.suffix.lower() in LINEAR_SUFFIXES:
        return Decoded([read_image(file)][pick], 1)
    with _naming(file), Image.open(file) as image:
        total = getattr(image, "n_frames", 1)
        for index in range(total)[pick] if total > 1 else ():
            image.seek(index)
            pictures.append(_pixels(image, file))
            durations.append(float(image.info.get("duration") or _DEFAULT_DURATION_MS))
    if total == 1 and pick.start == 0:
        pictures = [read_image(file)]
    fps = 1000 * len(durations) / sum(durations) if durations else DEFAULT_FPS
    return Decoded(pictures, total, fps)


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Name the file whatever Pillow raises, which is nearly anything for a damaged one."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"Expected a readable image; {file} is not: {reason(error)}. Save it again as PNG, or make it "
            f"smaller where it is too large."
        ) from error


def reason(error: Exception) -> str:
    """Return an error's text as the end of a sentence."""
    return str(error).rstrip(".") or type(error).__name__


def _linear_pixels(file: Path) -> np.ndarray:
    """Return a picture of linear light in floats, its colours multiplied by its alpha, as EXR is defined."""
    with _naming(file), av.open(file_url(file)) as container:
        frame = next(container.decode(video=0))
        has_alpha = any(component.is_alpha for component in frame.format.components)
        values = frame.to_ndarray(format="gbrapf32le" if has_alpha else "gbrpf32le")
        if has_alpha:
            values[..., :3] /= np.where(values[..., 3:] > 0, values[..., 3:], 1)
        linear = values[..., :3].clip(0, 1)
        values[..., :3] = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        return to_uint8(values, str(file))


def _pixels(image: Image.Image, file: Path) -> np.ndarray:
    """Return uint8 [H, W, 3 or 4] of any PIL mode; 16-bit grey levels are scaled, not clipped."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64).clip(0, 65535)
        return np.repeat(((levels * 255 + 32767) // 65535).astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode == "F":
        return np.repeat(to_uint8(np.asarray(image), str(file))[..., None], 3, axis=-1)
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    return np.array(image.convert("RGBA" if has_alpha else "RGB"))


def read_video(file: Path, pick: slice) -> Decoded:
    """Return the picked frames of a video, which is decoded only as far; ValueError names a damaged file."""
    pictures: list[np.ndarray] = []
    total = 0
    try:
        # Old files carry titles that are not UTF-8; they do not matter here.
        with av.open(file_url(file), metadata_errors="ignore") as container:
            stream = _video_stream(container, file)
            aspect = float(stream.sample_aspect_ratio or 1)
            if not 1 / _LARGEST_PIXEL_ASPECT <= aspect <= _LARGEST_PIXEL_ASPECT:
                raise ValueError(
                    f"Expected pixels about as wide as high; {file} has a sample aspect ratio of {aspect:g}. "
                    f"Convert it to a video with square pixels, or give a folder of images."
                )
            rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
            for frame in _decode(container, stream):
                if total >= pick.start and (total - pick.start) % pick.step == 0:
                    pictures.append(_video_pixels(frame, aspect))
                total += 1
                if pick.stop is not None and total >= pick.stop:
                    break
    except FFmpegError as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"Expected a readable video; {file} failed after {total} frames: {error}. Convert it to mp4, or "
            f"give a folder of images."
        ) from error
    return Decoded(pictures, total, rate)


def _video_stream(container: InputContainer, file: Path) -> av.VideoStream:
    # FFmpeg takes any text for pictures of a terminal ("tty").
    if not container.streams.video or container.format.name == "tty":
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "none"
        raise ValueError(
            f"Expected a video; {file} holds none (format {container.format.name}, streams: "
            f"{kinds}). Give a video file or a folder of images."
        )
    stream = container.streams.video[0]
    # PyAV leaves the context out where FFmpeg has no decoder: drawings (svg), damaged headers.
    if cast(object, stream.codec_context) is None:
        raise ValueError(
            f"Expected a readable video; {file} is in a format that cannot be decoded (container "
            f"{container.format.name}), or damaged. Convert it to mp4, or give a folder of images."
        )
    return stream


def _decode(container: InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Yield a stream's frames; webm with alpha needs libvpx, as the default decoders drop the alpha."""
    alpha_decoder = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if stream.metadata.get("alpha_mode") == "1" and alpha_decoder in av.codecs_available:
        decoder = cast(av.VideoCodecContext, av.CodecContext.create(str(alpha_decoder), "r"))
        for packet in container.demux(stream):
            yield from decoder.decode(packet)
        return
    stream.thread_type = "AUTO"
    yield from container.decode(stream)


def _video_pixels(frame: av.VideoFrame, aspect: float) -> np.ndarray:
    """Return uint8 [H, W, 3 or 4] in square pixels, upright as phones store it beside the frame."""
    has_alpha = any(component.is_alpha for component in frame.format.components)
    pixels = frame.to_ndarray(format="rgba" if has_alpha else "rgb24")
    if aspect != 1:
        size = (max(round(frame.width * aspect), 1), frame.height)
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    quarter_turns = round(getattr(frame, "rotation", 0) / 90)
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns))


def to_uint8(values: np.ndarray | Tensor, name: str) -> np.ndarray:
    """Return floats in 0..1 rounded to 0..255. A slight overshoot (a sharp resize) is cut."""
    values = values.detach().float().cpu().numpy() if isinstance(values, Tensor) else values
    if bad := int(np.count_nonzero(~np.isfinite(values))):
        raise ValueError(
            f"Expected finite numbers in {name}; got {bad} NaN or infinite values of {values.size}. "
            f"Check the step that made them."
        )
    if values.size and (values.min() < -0.5 or values.max() > 1.5):
        raise ValueError(
            f"Expected {name} in 0..1; got {values.min():g} to {values.max():g}. Divide 8-bit values by 255."
        )
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)
