"""Clips as numbers: frames, frame rate and masks, from a file, a folder, a glob pattern or tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from .decode import (
    DEFAULT_FPS,
    Decoded,
    read_animation,
    read_image,
    read_video,
    reason,
    to_uint8,
)
from .places import IMAGE_SUFFIXES, LINEAR_SUFFIXES, Place, find_pictures

_FPS_RANGE = (0.1, 1000.0)
_LOWEST_WHITE = 128  # masks that stay below it everywhere hold labels (0 and 1), not opacity
_CHROMA_NOISE = 8  # difference of the channels (0..255) that lossy compression leaves in a grey picture


def read_pictures(path: str | Path | list[Path], pick: slice) -> Decoded:
    """Return the picked pictures of a path or of images that were found.

    ``path`` and errors are as of `load_clip`; start and step of ``pick`` are set.
    """
    try:
        place = Place(path, [], ()) if isinstance(path, list) else find_pictures(path)
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError) as error:
        raise ValueError(f"Expected a path; got {str(path)!r}: {reason(error)}. Check the path.") from error
    first, notes = place.files[0], place.notes
    if len(place.files) > 1:
        made = Decoded([read_image(file) for file in place.files[pick]], len(place.files))
    else:
        made = (read_animation if first.suffix.lower() in IMAGE_SUFFIXES else read_video)(first, pick)
    if first.suffix.lower() in LINEAR_SUFFIXES:
        notes = (*notes, "linear light turned into sRGB; what is brighter than white is cut")
    return replace(made, notes=(*notes, *made.notes), masks=place.masks)


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
        picked = to_uint8(images[pick], "images")
        if masks is None:
            return cls(picked, float(fps), None, name)
        masks = masks[None] if masks.ndim == 2 else masks
        opacity = to_uint8(masks[pick] if len(masks) == len(images) else masks, "masks")
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
    mask: str | Path | list[Path] | None = None,  # as ``path``, picked like the frames; one mask serves all
) -> Clip:
    """Return the clip in a file, or in the images of a folder or pattern (``*.png``, ``%04d.png``).

    Of a folder one group of names that differ in a number is taken, ordered by it; a group of masks beside
    it serves where ``mask`` is None. In a mask white (or opaque, where it has transparency) is the object,
    in a coloured one all but black.

    Raises FileNotFoundError where nothing is there, or a folder or pattern gives no images; ValueError for
    several groups, files that cannot be read or hold no such frames, sizes or counts that do not fit.
    """
    pick = _pick(frames, start, every)
    if fps is not None:
        _check_fps(fps, str(path))
    source = read_pictures(path, pick)
    pictures, notes = source.pictures, source.notes
    if not pictures:
        raise ValueError(_too_few(start, path, source.total))
    masks = None
    if mask is None and source.masks:
        mask = source.masks
        notes = (*notes, f"masks beside the frames taken: {mask[0].name} to {mask[-1].name}")
    if mask is not None:
        read = read_pictures(mask, pick)
        given, notes = read.pictures, (*notes, *(f"masks: {note}" for note in read.notes))
        if read.total == 1:
            given = read_pictures(mask, slice(0, 1, 1)).pictures * len(pictures)
        if len(given) != len(pictures):
            raise ValueError(
                f"Expected {len(pictures)} masks in {mask}, one for each frame, or a single one; got "
                f"{len(given)} of {read.total}. Make the masks from the same frames."
            )
        masks = stack_pictures([mask_opacity(picture) for picture in given], _numbered(mask, len(given)))
    stacked = stack_pictures(pictures, _numbered(path, len(pictures)))
    return Clip(stacked, source.fps / every if fps is None else float(fps), masks, str(path), notes)


def _check_fps(fps: float, name: str) -> None:
    slowest, fastest = _FPS_RANGE
    if not slowest <= fps <= fastest:
        raise ValueError(
            f"Expected a frame rate from {slowest:g} to {fastest:g}; got fps = {fps:g} for {name}. Give the "
            f"rate that it should play at."
        )


def _too_few(start: int, path: str | Path, total: int) -> str:
    return f"Expected at least {start + 1} frames in {path}; got {total}. Lower start."


def _numbered(path: str | Path | list[Path], count: int) -> list[str]:
    if isinstance(path, list):
        return [*map(str, path[:count])]
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
