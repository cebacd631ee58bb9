"""A clip as numbers: frames, frame rate and masks, from a file, a folder, a glob pattern or tensors."""

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

# Animations that state no duration are shown by browsers at ten frames per second.
_DEFAULT_DURATION_MS = 100.0
# A pixel that is wider or higher than this many times the other is damage, not a wide-screen format.
_LARGEST_PIXEL_ASPECT = 8
# Frames per second that a clip can have.
_FPS_RANGE = (0.1, 1000.0)
# Masks that stay below this grey level everywhere hold labels (0 and 1), not opacity.
_LOWEST_WHITE = 128
# Difference between the channels (0..255) that lossy compression leaves in a grey picture.
_CHROMA_NOISE = 8


def read_pictures(path: str | Path, pick: slice) -> tuple[list[np.ndarray], float, int]:
    """Return the picked pictures, the source's frame rate, and how many pictures were seen.

    A picture is uint8 [H, W, 3] RGB or [H, W, 4] RGBA with straight alpha. For ``path`` and what is raised
    see `load_clip`; start and step of ``pick`` are set.
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
    """Read an image file that may hold several frames, composed by Pillow."""
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


@dataclass(frozen=True)
class Clip:
    """T frames of a moving object as they were read, before any crop.

    Raises:
        ValueError: wrong shapes or types, no frames, a frame rate outside 0.1..1000, masks that hold small
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
        _check_fps(self.fps, self.name)
        if self.masks is None:
            return
        if self.masks.dtype != np.uint8 or self.masks.ndim != 3:
            raise ValueError(
                f"Expected masks uint8 [T, H, W]; got {self.masks.dtype} {list(self.masks.shape)}."
            )
        if self.masks.shape[0] != shape[0]:
            raise ValueError(
                f"Expected one mask per frame ({shape[0]}) or a single mask; got {self.masks.shape[0]}. "
                f"Make the masks from the same frames as the clip."
            )
        if self.masks.shape[1:] != shape[1:3]:
            raise ValueError(
                f"Expected masks of the frames' size {shape[2]} x {shape[1]}; got {self.masks.shape[2]} x "
                f"{self.masks.shape[1]}. Resize the masks to the frames."
            )
        largest = int(self.masks.max())
        if 0 < largest < _LOWEST_WHITE:
            raise ValueError(
                f"Expected masks up to 255 (white = object); the largest value is {largest}, so the object "
                f"would be nearly transparent. If they hold labels, save them as 0 and 255."
            )

    @property
    def n_frames(self) -> int:
        """T."""
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
        """Return a clip of float images, rounded to 8 bits.

        ``frames``, ``start`` and ``every`` say which of them to take, as in `load_clip`. There may be a mask
        for each image, for each that is taken, or a single one.

        Raises:
            ValueError: wrong shapes or counts, NaN or infinite values, a range that is not 0..1.
        """
        pick = _pick(frames, start, every)
        if images.ndim != 4:
            raise ValueError(f"Expected images [T, H, W, 3 or 4]; got shape {list(images.shape)}.")
        if 0 < len(images) <= start:
            raise ValueError(
                f"Expected at least {start + 1} frames in {name or 'the clip'}; got {len(images)}. Lower "
                f"start."
            )
        picked = _to_uint8(images[pick], "images")
        if masks is None:
            return cls(picked, float(fps), None, name)
        if masks.ndim not in (2, 3):
            raise ValueError(f"Expected masks [T or 1, H, W]; got shape {list(masks.shape)}.")
        masks = masks[None] if masks.ndim == 2 else masks
        opacity = _to_uint8(masks[pick] if len(masks) == len(images) else masks, "masks")
        if len(opacity) == 1:
            opacity = np.repeat(opacity, len(picked), axis=0)
        if len(picked) < len(images) and len(opacity) != len(picked):
            raise ValueError(
                f"Expected one mask for each of the {len(images)} frames, one for each of the {len(picked)} "
                f"that are taken (start {start}, every {every}), or a single mask; got {len(masks)}. Make "
                f"the masks from the same frames as the clip."
            )
        return cls(picked, float(fps), opacity, name)


def load_clip(
    path: str | Path,
    *,
    frames: int | None = 21,
    start: int = 0,
    every: int = 1,
    fps: float | None = None,
    mask: str | Path | None = None,
) -> Clip:
    """Return the clip in a file, a folder of images or the images of a glob pattern (in natural order).

    Args:
        path: video (mp4, mov, webm, ...), animation (gif, webp, apng), one image, folder or glob pattern.
        frames: largest number of frames; None takes all. A shorter clip gives what it has.
        start: first frame, counted from 0.
        every: take each ``every``-th frame from there.
        fps: frame rate of the result; None: the source's rate (8 for images) divided by ``every``.
        mask: where the masks are, any kind that ``path`` may be; white (or opaque, where a mask has
            transparency) is the object; in coloured masks all that is not black. Frames are picked as for
            ``path``; one mask serves all frames.

    Raises:
        FileNotFoundError: nothing is there, or a folder or pattern gives no images.
        ValueError: a file cannot be read or holds no such frames, sizes or counts do not fit.
    """
    pick = _pick(frames, start, every)
    if fps is not None:
        _check_fps(fps, str(path))
    pictures, source_fps, total = read_pictures(path, pick)
    if not pictures:
        raise ValueError(
            f"Expected at least {start + 1} frames in {path}; got {total}. Check the file, or lower start."
        )
    masks = None
    if mask is not None:
        given, _, n_masks = read_pictures(mask, pick)
        if n_masks == 1:
            given = read_pictures(mask, slice(0, 1, 1))[0] * len(pictures)
        if len(given) != len(pictures):
            raise ValueError(
                f"Expected {len(pictures)} masks in {mask}, one for each frame, or a single one; got "
                f"{len(given)} of {n_masks} (start {start}, every {every}). Make the masks from the same "
                f"frames."
            )
        masks = _stack([mask_opacity(picture) for picture in given], mask)
    stacked = _stack(equal_channels(pictures), path)
    return Clip(stacked, source_fps / every if fps is None else float(fps), masks, str(path))


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


def _check_fps(fps: float, name: str) -> None:
    low, high = _FPS_RANGE
    if not low <= fps <= high:
        raise ValueError(
            f"Expected a frame rate from {low:g} to {high:g}; got fps = {fps:g} for {name or 'the clip'}. "
            f"Give the frame rate (fps) that it should play at."
        )


def equal_channels(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return pictures [H, W, 3 or 4], all as RGBA when any of them has alpha."""
    channels = max(picture.shape[-1] for picture in pictures)
    return [
        np.pad(picture, ((0, 0), (0, 0), (0, channels - picture.shape[-1])), constant_values=255)
        for picture in pictures
    ]


def _stack(pictures: Sequence[np.ndarray], path: str | Path) -> np.ndarray:
    height, width = pictures[0].shape[:2]
    for number, picture in enumerate(pictures, start=1):
        if picture.shape[:2] != (height, width):
            raise ValueError(
                f"Expected frames of one size in {path}; got {width} x {height} for the first and "
                f"{picture.shape[1]} x {picture.shape[0]} for number {number}. Resize them to one size."
            )
    return np.stack(pictures)
