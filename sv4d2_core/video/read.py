"""Clips as numbers: frames, frame rate and masks, from a file, a folder, a glob pattern or tensors."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from PIL import Image, ImageOps
from torch import Tensor

from ..files import is_out_of_memory

DEFAULT_FPS = 8.0
IMAGE_SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")

_DEFAULT_DURATION_MS = 100.0  # of a frame, as browsers show animations that state none
_LARGEST_PIXEL_ASPECT = 8  # beyond it is damage, not a wide-screen format
_FPS_RANGE = (0.1, 1000.0)
_LOWEST_WHITE = 128  # masks that stay below it everywhere hold labels (0 and 1), not opacity
_CHROMA_NOISE = 8  # difference of the channels (0..255) that lossy compression leaves in a grey picture


def read_pictures(path: str | Path, pick: slice) -> tuple[list[np.ndarray], float, int]:
    """Return the picked pictures, the source's frame rate, and how many pictures were seen.

    A picture is uint8 [H, W, 3] RGB or [H, W, 4] RGBA with straight alpha. ``path`` and errors as
    `load_clip`; start and step of ``pick`` are set.
    """
    try:
        files = _find(path)
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"Expected a path; got {str(path)!r}: {_reason(error)}. Check the path.") from error
    if len(files) > 1:
        return [_read_image(file) for file in files[pick]], DEFAULT_FPS, len(files)
    if files[0].suffix.lower() in IMAGE_SUFFIXES:
        return _read_animation(files[0], pick)
    return _read_video(files[0], pick)


def _find(path: str | Path) -> list[Path]:
    """Return the one file, or the images of a folder or pattern in natural order."""
    if "\0" in str(path):
        raise ValueError("it holds a NUL byte")
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
    else:
        link = f", a link to {os.readlink(place)}" if place.is_symlink() else ""
        raise FileNotFoundError(
            f"Expected a video, an image, a folder or a pattern; there is nothing at {path}{link}."
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
    """Name the file whatever Pillow raises, which is nearly anything for a damaged one."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
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
        return np.repeat(_to_uint8(np.asarray(image), str(file))[..., None], 3, axis=-1)
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


def _to_uint8(values: np.ndarray | Tensor, name: str) -> np.ndarray:
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


@dataclass(frozen=True)
class Clip:
    """T frames of a moving object as they were read, before any crop.

    Raises ValueError: wrong shapes or types, no frames, a frame rate outside 0.1..1000, masks that hold small
    numbers instead of 255.
    """

    frames: np.ndarray  # uint8 [T, H, W, 3] RGB or [T, H, W, 4] RGBA with straight alpha
    fps: float = DEFAULT_FPS
    masks: np.ndarray | None = None  # uint8 [T, H, W] opacity, 0..255; wins over alpha
    name: str = ""  # where the clip came from, for messages

    def __post_init__(self) -> None:
        shape = self.frames.shape
        if len(shape) != 4 or shape[-1] not in (3, 4) or 0 in shape or self.frames.dtype != np.uint8:
            raise ValueError(
                f"Expected frames uint8 [T, H, W, 3 or 4] with at least one frame; got {self.frames.dtype} "
                f"{list(shape)}."
            )
        _check_fps(self.fps, self.name or "the clip")
        if self.masks is None:
            return
        if self.masks.dtype != np.uint8 or self.masks.ndim != 3:
            raise ValueError(
                f"Expected masks uint8 [T, H, W]; got {self.masks.dtype} {list(self.masks.shape)}."
            )
        n_masks, height, width = self.masks.shape
        if n_masks != shape[0]:
            raise ValueError(
                f"Expected one mask per frame ({shape[0]}) or a single mask; got {n_masks}. Make the masks "
                f"from the same frames as the clip."
            )
        if (height, width) != shape[1:3]:
            raise ValueError(
                f"Expected masks of the frames' size {shape[2]} x {shape[1]}; got {width} x {height}. Resize "
                f"the masks to the frames."
            )
        largest = int(self.masks.max())
        if 0 < largest < _LOWEST_WHITE:
            raise ValueError(
                f"Expected masks up to 255 (white = object); the largest value is {largest}, so the object "
                f"would be nearly transparent. If they hold labels, save them as 0 and 255."
            )

    @property
    def n_frames(self) -> int:
        return self.frames.shape[0]

    @classmethod
    def from_tensors(
        cls,
        images: Tensor,  # [T, H, W, 3 or 4] float in 0..1
        masks: Tensor | None = None,  # [T or 1, H, W] or [H, W] float in 0..1, 1 = object
        fps: float = DEFAULT_FPS,
        name: str = "",
        *,
        frames: int | None = None,
        start: int = 0,
        every: int = 1,
    ) -> Clip:
        """Return a clip, in 8 bits, of the images that are picked as in `load_clip`.

        There may be a mask for each image, for each that is taken, or a single one. Raises ValueError: wrong
        shapes or counts, NaN or infinite values, a range that is not 0..1.
        """
        pick = _pick(frames, start, every)
        if 0 < len(images) <= start:
            raise ValueError(_too_few(start, name or "the clip", len(images)))
        picked = _to_uint8(images[pick], "images")
        if masks is None:
            return cls(picked, float(fps), None, name)
        masks = masks[None] if masks.ndim == 2 else masks
        opacity = _to_uint8(masks[pick] if len(masks) == len(images) else masks, "masks")
        if len(opacity) == 1:
            opacity = np.repeat(opacity, len(picked), axis=0)
        return cls(picked, float(fps), opacity, name)


def load_clip(
    path: str | Path,  # video (mp4, mov, webm, ...), animation (gif, webp, apng), image, folder or pattern
    *,
    frames: int | None = 21,  # at most; None: all
    start: int = 0,
    every: int = 1,
    fps: float | None = None,  # None: the source's rate (8 for images) divided by ``every``
    mask: str | Path | None = None,  # as ``path``, picked like the frames; one mask serves all
) -> Clip:
    """Return the clip in a file, a folder of images or the images of a glob pattern (in natural order).

    In a mask white (or opaque, where it has transparency) is the object, in a coloured one all but black.

    Raises FileNotFoundError where nothing is there, or a folder or pattern gives no images; ValueError for
    files that cannot be read or hold no such frames, sizes or counts that do not fit.
    """
    pick = _pick(frames, start, every)
    if fps is not None:
        _check_fps(fps, str(path))
    pictures, source_fps, total = read_pictures(path, pick)
    if not pictures:
        raise ValueError(_too_few(start, path, total))
    masks = None
    if mask is not None:
        given, _, n_masks = read_pictures(mask, pick)
        if n_masks == 1:
            given = read_pictures(mask, slice(0, 1, 1))[0] * len(pictures)
        if len(given) != len(pictures):
            raise ValueError(
                f"Expected {len(pictures)} masks in {mask}, one for each frame, or a single one; got "
                f"{len(given)} of {n_masks}. Make the masks from the same frames."
            )
        masks = stack_pictures([mask_opacity(picture) for picture in given], _numbered(mask, len(given)))
    stacked = stack_pictures(pictures, _numbered(path, len(pictures)))
    return Clip(stacked, source_fps / every if fps is None else float(fps), masks, str(path))


def _check_fps(fps: float, name: str) -> None:
    slowest, fastest = _FPS_RANGE
    if not slowest <= fps <= fastest:
        raise ValueError(
            f"Expected a frame rate from {slowest:g} to {fastest:g}; got fps = {fps:g} for {name}. Give the "
            f"rate that it should play at."
        )


def _too_few(start: int, path: str | Path, total: int) -> str:
    return f"Expected at least {start + 1} frames in {path}; got {total}. Lower start."


def _numbered(path: str | Path, count: int) -> list[str]:
    return [f"number {i + 1} of {path}" for i in range(count)]


def _pick(frames: int | None, start: int, every: int) -> slice:
    if (frames is not None and frames < 1) or start < 0 or every < 1:
        raise ValueError(
            f"Expected frames >= 1 (or none for all), start >= 0 and every >= 1; got frames = {frames}, "
            f"start = {start}, every = {every}."
        )
    return slice(start, None if frames is None else start + (frames - 1) * every + 1, every)


def mask_opacity(picture: np.ndarray) -> np.ndarray:
    """Return a mask picture's [H, W] opacity: its alpha where it has some, else its grey level.

    Colours are labels, whose brightness says nothing: every pixel that is not black is the object.
    """
    if picture.shape[-1] == 4 and picture[..., 3].min() < 255:
        return picture[..., 3]
    rgb = picture[..., :3]
    brightest = rgb.max(axis=-1)
    if (brightest - rgb.min(axis=-1)).max() > _CHROMA_NOISE:
        return np.where(brightest > _CHROMA_NOISE, 255, 0).astype(np.uint8)
    return np.rint(rgb.mean(axis=-1)).astype(np.uint8)


def stack_pictures(pictures: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Return pictures [H, W] or [H, W, 3 or 4] of one size as one array, all as RGBA when any has alpha."""
    height, width = pictures[0].shape[:2]
    for picture, name in zip(pictures, names, strict=True):
        if picture.shape[:2] != (height, width):
            raise ValueError(
                f"Expected pictures of one size; {names[0]} has {width} x {height}, {name} has "
                f"{picture.shape[1]} x {picture.shape[0]}. Resize them to one size."
            )
    if any(picture.shape[2:] == (4,) for picture in pictures):
        missing = [(0, 0), (0, 0), (0, 1)]
        pictures = [p if p.shape[2] == 4 else np.pad(p, missing, constant_values=255) for p in pictures]
    return np.stack(pictures)
