"""Pictures out of files: videos by PyAV, animations and images by Pillow, folders and glob patterns."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from PIL import Image, ImageOps

DEFAULT_FPS = 8.0
IMAGE_SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")

# Animations that state no duration are shown by browsers at ten frames per second.
_DEFAULT_DURATION_MS = 100.0
# A pixel that is wider or higher than this many times the other is damage, not a wide-screen format.
_LARGEST_PIXEL_ASPECT = 8


def read_pictures(path: str | Path, pick: slice) -> tuple[list[np.ndarray], float, int]:
    """Return the picked pictures, the source's frame rate, and how many pictures were seen.

    A picture is uint8 [H, W, 3] RGB or [H, W, 4] RGBA with straight alpha.

    Args:
        path: video, animation, image, folder of images or glob pattern.
        pick: which pictures to take; start and step are set.

    Raises:
        FileNotFoundError: nothing is there, or a folder or pattern gives no images.
        ValueError: a file cannot be read, or the path cannot exist.
    """
    files = _find_named(path)
    if len(files) > 1:
        return [_read_image(file) for file in files[pick]], DEFAULT_FPS, len(files)
    if files[0].suffix.lower() in IMAGE_SUFFIXES:
        return _read_animation(files[0], pick)
    return _read_video(files[0], pick)


def _find_named(path: str | Path) -> list[Path]:
    """Return what `_find` returns; what the system says about an impossible path becomes a ValueError."""
    try:
        if "\0" in str(path):
            raise ValueError("it holds a NUL byte")
        return _find(path)
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"Expected a path; got {str(path)!r}: {_reason(error)}. Check the path.") from error


def _find(path: str | Path) -> list[Path]:
    """Return the one file, or the images of a folder or pattern in natural order."""
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        # A link to nothing counts, so that it is named when it is opened, not silently left out.
        found = [file for file in place.iterdir() if not file.is_dir()]
    elif glob.has_magic(str(path)):
        found = [file for file in map(Path, glob.glob(str(place), recursive=True)) if not file.is_dir()]
        if len(found) == 1:
            return found
    elif place.is_symlink():
        raise FileNotFoundError(
            f"Expected a file or a folder; {path} is a link to {os.readlink(place)}, which is not there. "
            f"Give the file itself."
        )
    else:
        raise FileNotFoundError(
            f"Expected a video, an image, a folder or a pattern; there is nothing at {path}."
        )
    # A leading dot marks what systems leave beside the files, such as macOS' ._0001.png.
    visible = [file for file in found if not file.name.startswith(".")]
    images = [file for file in visible if file.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise FileNotFoundError(
            f"Expected images ({' '.join(IMAGE_SUFFIXES)}) in {path}; got {len(found)} files, no "
            f"image among them. Give the folder that holds the frames, or one video file."
        )
    return sorted(images, key=natural_key)


def natural_key(file: Path) -> list[tuple[int, str]]:
    """Sort key by which frame_2 comes before frame_10."""
    parts = re.split(r"([0-9]+)", file.as_posix().lower())
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


def _read_image(file: Path) -> np.ndarray:
    with _naming(file), Image.open(file) as image:
        return _pixels(ImageOps.exif_transpose(image), file)


def _read_animation(file: Path, pick: slice) -> tuple[list[np.ndarray], float, int]:
    """Read an image file that may hold several frames; PIL gives them composed, with their alpha."""
    pictures, durations = [], []
    with _naming(file), Image.open(file) as image:
        total = getattr(image, "n_frames", 1)
        for index in range(total)[pick] if total > 1 else ():
            image.seek(index)
            pictures.append(_pixels(image, file))
            durations.append(float(image.info.get("duration") or _DEFAULT_DURATION_MS))
    if total == 1 and pick.start == 0:
        pictures = [_read_image(file)]
    return pictures, 1000 * len(durations) / sum(durations) if durations else DEFAULT_FPS, total


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Turn whatever Pillow raises into one message that names the file.

    Damaged files raise nearly anything in there (struct.error, IndexError, SyntaxError, ...), and images too
    large to be meant raise DecompressionBombError.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"Expected a readable image; {file} is not: {_reason(error)}. Save it again as PNG, or make it "
            f"smaller where it is too large."
        ) from error


def _reason(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__


def _pixels(image: Image.Image, file: Path) -> np.ndarray:
    """Return uint8 [H, W, 3 or 4] of any PIL mode; 16-bit grey levels are scaled, not clipped."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64).clip(0, 65535)
        return np.repeat(((levels * 255 + 32767) // 65535).astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode == "F":
        return np.repeat(to_uint8(np.asarray(image), str(file))[..., None], 3, axis=-1)
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    return np.array(image.convert("RGBA" if has_alpha else "RGB"))


def _read_video(file: Path, pick: slice) -> tuple[list[np.ndarray], float, int]:
    """Decode a video only as far as the last picked frame."""
    pictures: list[np.ndarray] = []
    total = 0
    try:
        # Old files carry titles that are not UTF-8; they do not matter here.
        with av.open(str(file), metadata_errors="ignore") as container:
            stream = _video_stream(container, file)
            aspect = _pixel_aspect(stream, file)
            rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
            for frame in _decode(container, stream):
                if total >= pick.start and (total - pick.start) % pick.step == 0:
                    pictures.append(_video_pixels(frame, aspect))
                total += 1
                if pick.stop is not None and total >= pick.stop:
                    break
    except FFmpegError as error:
        raise ValueError(
            f"Expected a readable video; {file} failed after {total} frames: {error}. Convert it to mp4, or "
            f"give a folder of images."
        ) from error
    return pictures, rate, total


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


def _pixel_aspect(stream: av.VideoStream, file: Path) -> float:
    """Return how many times as wide as high a pixel is to be shown; 1 where the file does not say."""
    aspect = float(stream.sample_aspect_ratio or 1)
    if not 1 / _LARGEST_PIXEL_ASPECT <= aspect <= _LARGEST_PIXEL_ASPECT:
        raise ValueError(
            f"Expected pixels about as wide as high; {file} has a sample aspect ratio of {aspect:g}. Convert "
            f"it to a video with square pixels, or give a folder of images."
        )
    return aspect


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
    """Return uint8 [H, W, 3 or 4] in square pixels, upright: a phone stores the rotation beside the frame."""
    has_alpha = any(component.is_alpha for component in frame.format.components)
    pixels = frame.to_ndarray(format="rgba" if has_alpha else "rgb24")
    if aspect != 1:
        size = (max(round(frame.width * aspect), 1), frame.height)
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    quarter_turns = round(getattr(frame, "rotation", 0) / 90)
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns))


def to_uint8(values: np.ndarray, name: str) -> np.ndarray:
    """Return floats in 0..1 rounded to 0..255. A slight overshoot (a sharp resize) is cut."""
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise ValueError(
            f"Expected finite numbers in {name}; got {bad} NaN or infinite values of {values.size}. "
            f"Check the step that made them."
        )
    if values.size and (values.min() < -0.5 or values.max() > 1.5):
        raise ValueError(
            f"Expected {name} in 0..1; got {values.min():g} to {values.max():g}. Divide 8-bit values by 255."
        )
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)
