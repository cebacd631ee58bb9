"""Clips as numbers: frames, frame rate and masks, from a file, a folder, a glob pattern or tensors."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from ..messages import cut
from ..views import check_fps
from .colour import UNCONVERTED, to_uint8
from .decode import DEFAULT_FPS, WHOLE, Decoded, Pick, read_animation, read_images, read_video, reason
from .places import IMAGE_SUFFIXES, LINEAR_SUFFIXES, Place, find_pictures

_LOWEST_WHITE = 128  # masks that stay below it everywhere hold labels (0 and 1), not opacity
ALPHAS = ("auto", "straight", "premultiplied")
_LOSSY, _FEW_ABOVE, _FEWEST_SOFT = 8, 0.01, 32  # levels, share and number of soft pixels that decide on alpha
_CHROMA_NOISE = 8  # difference of the channels (0..255) that lossy compression leaves in a grey picture


def read_pictures(path: str | Path | list[Path], pick: Pick) -> Decoded:
    """Return the picked pictures of a path, or of images that were found. Errors as `load_clip`."""
    try:
        place = Place(path, [], ()) if isinstance(path, list) else find_pictures(path)
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError) as error:
        got = cut(repr(str(path)))
        raise ValueError(f"Expected a path; got {got}: {cut(reason(error))}. Check the path.") from error
    first, suffix = place.files[0], place.files[0].suffix.lower()
    if len(place.files) > 1 or suffix in LINEAR_SUFFIXES:
        made = read_images(place.files, pick)
    else:
        made = (read_animation if suffix in IMAGE_SUFFIXES else read_video)(first, pick)
    light = ("linear light shown in sRGB; what is beyond white is cut",) if suffix in LINEAR_SUFFIXES else ()
    return replace(made, notes=(*place.notes, *light, *made.notes), masks=place.masks)


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
    notes: tuple[str, ...] = ()  # what the reader decided for the user, one line each
    source_frames: tuple[int, ...] = ()  # the number of each frame in its source, counted from 0

    def __post_init__(self) -> None:
        shape = self.frames.shape
        if len(shape) != 4 or shape[-1] not in (3, 4) or 0 in shape or self.frames.dtype != np.uint8:
            raise ValueError(
                f"Expected frames [T, H, W, 3 or 4], in 8 bits, one at least; got {list(shape)} "
                f"{self.frames.dtype}. Give pictures in colour, with or without alpha."
            )
        check_fps(self.fps, self.name or "the clip")
        if self.masks is None:
            return
        if self.masks.dtype != np.uint8 or self.masks.ndim != 3:
            raise ValueError(
                f"Expected masks [T, H, W], in 8 bits; got {list(self.masks.shape)} {self.masks.dtype}. Give "
                f"one channel, without an axis of its own."
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
        alpha: str = "auto",
        numbers: Sequence[int] | None = None,
    ) -> Clip:
        """Return a clip, in 8 bits, of the images that are picked as in `load_clip`, or of the ``numbers``.

        There may be a mask for each image, for each that is taken, or a single one. Raises ValueError: wrong
        shapes or counts, NaN or infinite values, a range that is not 0..1.
        """
        if 0 < len(images) <= start:
            raise ValueError(_too_few(start, name or "the clip", len(images)))
        pick = Pick(start, every, frames).numbers if numbers is None else [*numbers]
        numbers = tuple(range(len(images))[pick] if isinstance(pick, slice) else pick)
        picked = to_uint8(images[pick], "images")
        picked, notes = straight_alpha(picked, alpha)
        if masks is None:
            return cls(picked, float(fps), None, name, notes, numbers)
        masks = masks[pick] if masks.ndim == 3 and len(masks) == len(images) else masks
        return cls(picked, float(fps), mask_levels(masks, len(picked)), name, notes, numbers)


def mask_levels(masks: Tensor, n_frames: int) -> np.ndarray:
    """Return masks [T or 1, H, W] or [H, W] in 0..1 in 8 bits, a single one for each of the frames."""
    levels = to_uint8(masks[None] if masks.ndim == 2 else masks, "masks")
    return np.repeat(levels, n_frames, axis=0) if len(levels) == 1 else levels


def load_clip(
    path: str | Path,  # video (mp4, mov, webm, ...), animation (gif, webp, apng), image, folder or pattern
    *,
    frames: int | None = 21,  # at most; None: all
    start: int = 0,
    every: int = 1,
    fps: float | None = None,  # of the result; None: by the picked frames' times (8 / every for images)
    mask: str | Path | list[Path] | None = None,  # as ``path``, picked like the frames; one mask serves all
    alpha: str = "auto",  # straight, premultiplied, or auto: as the colours over soft pixels show
    window: tuple[float, float] = WHOLE,  # time stamps, seconds, from and before; frames count from there
) -> Clip:
    """Return the clip in a file, or in the images of a folder or pattern (``*.png``, ``%04d.png``).

    Of a folder one group of names that differ in a number is taken, ordered by it; a group of masks beside
    it serves where ``mask`` is None. With ``fps`` a source that has times (a video, an animation) is
    resampled by time: frame k is the one nearest to k * every / fps seconds after frame ``start``. Images
    have no times: fps only sets their pace.

    In a mask white (or opaque, where it has transparency) is the object, in a coloured one all but black.

    Raises FileNotFoundError where nothing is there, or a folder or pattern gives no images; ValueError for
    several groups, files that cannot be read or hold no such frames, sizes or counts that do not fit.
    """
    pick = Pick(start, every, frames, fps, window=window)
    if fps is not None:
        check_fps(fps, str(path))
    source = read_pictures(path, pick)
    if not source.pictures:
        raise ValueError(_too_few(start, path, source.total))
    masks, notes = None, source.notes
    if mask is None and source.masks:
        mask = source.masks
        notes = (*notes, f"masks beside the frames taken: {mask[0].name} to {mask[-1].name}")
    with hdr_first(notes):
        if mask is not None:
            read = _read_masks(mask, path, pick, source)
            notes += tuple(f"masks: {note}" for note in read.notes if "colour" not in note)
            opacities = [mask_opacity(picture) for picture in read.pictures]
            masks = stack_pictures(opacities, _numbered(mask, len(opacities)))
        stacked = stack_pictures(source.pictures, _numbered(path, len(source.pictures)))
        stacked, said = straight_alpha(stacked, alpha)
        rate = source.fps if fps is None else float(fps)
        return Clip(stacked, rate, masks, str(path), notes + said, tuple(source.numbers))


@contextmanager
def hdr_first(notes: Sequence[str]) -> Iterator[None]:
    """Let errors about a clip begin with its HDR where that could not be converted."""
    try:
        yield
    except ValueError as error:
        if said := [note for note in notes if note.startswith(UNCONVERTED)]:
            raise ValueError(" ".join([*said, str(error)])) from error
        raise


def _read_masks(mask: str | Path | list[Path], path: str | Path, pick: Pick, source: Decoded) -> Decoded:
    """Return a mask picture for each frame of the source, by number or, where the rates differ, by time."""
    wanted, numbers = len(source.pictures), source.numbers
    read = read_pictures(mask, pick if pick.fps is None else Pick(only=frozenset(numbers)))
    if read.total == 1:
        single = read.pictures or read_pictures(mask, Pick(count=1)).pictures
        return replace(read, pictures=single * wanted)
    if pick.fps is not None:
        place = {number: i for i, number in enumerate(read.numbers)}
        present = [place[number] for number in numbers if number in place]
        times, pictures = ([given[i] for i in present if given] for given in (read.times, read.pictures))
        read = replace(read, pictures=pictures, times=times)
    (step, _), late = _step_and_length(source), [np.inf]
    if len(read.times) == wanted == len(source.times):
        late = np.abs(np.subtract(read.times, source.times))
    if source.times and read.times and max(late) > step / 2:
        whole, whole_masks = (read_pictures(place, Pick(every=sys.maxsize)) for place in (path, mask))
        # As many masks as frames belong to them one by one, whatever rate they were saved at.
        if whole.total != whole_masks.total:
            (step, length), (mask_step, mask_length) = map(_step_and_length, (whole, whole_masks))
            rates = f"{1 / mask_step:.4g} fps to the clip's {1 / step:.4g}"
            if abs(mask_length - length) > max(step, mask_step):
                raise ValueError(
                    f"Expected masks of the clip's length or of its frames; {mask} has {whole_masks.total} "
                    f"at {1 / mask_step:.4g} fps ({mask_length:.2f} s), {path} has {whole.total} frames at "
                    f"{1 / step:.4g} fps ({length:.2f} s). Make the masks from the same frames."
                )
            read = read_pictures(mask, Pick(times=source.times))
            read = replace(read, notes=(*read.notes, f"matched by time, {rates}"))
    if len(read.pictures) != wanted:
        raise ValueError(
            f"Expected {wanted} masks in {mask}, one for each frame, or a single one; got "
            f"{len(read.pictures)} of {read.total}. Make the masks from the same frames."
        )
    return read


def count_pictures(path: str | Path, window: tuple[float, float] = WHOLE) -> int:
    """Return how many pictures there are, all of which are decoded for it."""
    return read_pictures(path, Pick(every=sys.maxsize, window=window)).total


def _step_and_length(source: Decoded) -> tuple[float, float]:
    """Return the mean time between frames, and how long what was seen of a source lasts, seconds."""
    step = source.seconds / max(source.total - 1, 1) or 1 / source.fps
    return step, source.seconds + step


def _too_few(start: int, path: str | Path, total: int) -> str:
    return f"Expected at least {start + 1} frames in {path}; got {total}. Lower start."


def _numbered(path: str | Path | list[Path], count: int) -> list[str]:
    if isinstance(path, list):
        return [*map(str, path[:count])]
    return [f"number {i + 1} of {path}" for i in range(count)]


def straight_alpha(frames: np.ndarray, alpha: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return frames uint8 [T, H, W, 3 or 4] with straight alpha, and what to say of it.

    Premultiplied colours never exceed their alpha; straight ones do, wherever a border is soft.
    """
    if alpha not in ALPHAS:
        raise ValueError(f"Expected alpha {' or '.join(ALPHAS)}; got {alpha!r}.")
    if frames.shape[-1] != 4 or alpha == "straight":
        return frames, ()
    opacity = frames[..., 3]
    soft = (opacity > 0) & (opacity < 255)
    colours, opacities = frames[soft][:, :3].astype(np.uint16), opacity[soft].astype(np.uint16)[:, None]
    if alpha == "auto":
        above = np.count_nonzero(colours.max(axis=-1, initial=0) > opacities[:, 0] + _LOSSY)
        if len(colours) < _FEWEST_SOFT or above > _FEW_ABOVE * len(colours):
            return frames, ()
    frames = frames.copy()
    frames[soft, :3] = ((colours * 255 + opacities // 2) // opacities.clip(1)).clip(max=255)
    how = "looks premultiplied (no colour above it)" if alpha == "auto" else "is taken for premultiplied"
    return frames, (f"alpha {how}: colours are divided by it; alpha straight leaves them as they are",)


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
