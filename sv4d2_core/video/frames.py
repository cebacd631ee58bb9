"""A clip as numbers: frames, frame rate and masks, from a file, a folder, a glob pattern or tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from .pictures import DEFAULT_FPS, read_pictures, to_uint8

# Frames per second that a clip can have.
_FPS_RANGE = (0.1, 1000.0)
# Masks that stay below this grey level everywhere hold labels (0 and 1), not opacity.
_LOWEST_WHITE = 128
# Difference between the channels (0..255) that lossy compression leaves in a grey picture.
_CHROMA_NOISE = 8


@dataclass(frozen=True)
class Clip:
    """T frames of a moving object as they were read, before any crop.

    Args:
        frames: uint8 [T, H, W, 3] RGB or [T, H, W, 4] RGBA with straight alpha.
        fps: frames per second.
        masks: uint8 [T, H, W] opacity, 0..255, or None. Masks win over alpha.
        name: where the clip came from, for messages.

    Raises:
        ValueError: wrong shapes or types, no frames, a frame rate outside 0.1..1000, masks that hold small
            numbers instead of 255.
    """

    frames: np.ndarray
    fps: float = DEFAULT_FPS
    masks: np.ndarray | None = None
    name: str = ""

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
                f"Expected masks of the frames' size {_size_text(shape[1:3])}; got "
                f"{_size_text(self.masks.shape[1:])}. Resize the masks to the frames."
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
        """Return a clip of float images, rounded to 8 bits; a single mask serves all frames.

        Args:
            images, masks: may be more than are taken; masks of the picked frames alone fit, too.
            fps: frames per second of the result.
            name: where the clip came from, for messages.
            frames: largest number of frames; None takes all.
            start: first frame, counted from 0.
            every: take each ``every``-th frame from there.

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
        picked = to_uint8(images[pick].detach().float().cpu().numpy(), "images")
        if masks is None:
            return cls(picked, float(fps), None, name)
        if masks.ndim not in (2, 3):
            raise ValueError(f"Expected masks [T or 1, H, W]; got shape {list(masks.shape)}.")
        masks = masks[None] if masks.ndim == 2 else masks
        if len(masks) == len(images):
            masks = masks[pick]
        opacity = to_uint8(masks.detach().float().cpu().numpy(), "masks")
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
    masks = None if mask is None else _read_masks(mask, pick, len(pictures))
    stacked = _stack(_with_equal_channels(pictures), str(path))
    return Clip(stacked, source_fps / every if fps is None else float(fps), masks, str(path))


def _pick(frames: int | None, start: int, every: int) -> slice:
    """Return which frames of a clip are taken. Raises ValueError for numbers out of range."""
    if (frames is not None and frames < 1) or start < 0 or every < 1:
        raise ValueError(
            f"Expected frames >= 1 (or none for all), start >= 0 and every >= 1; got frames = {frames}, "
            f"start = {start}, every = {every}."
        )
    return slice(start, None if frames is None else start + (frames - 1) * every + 1, every)


def _read_masks(path: str | Path, pick: slice, n_frames: int) -> np.ndarray:
    pictures, _, total = read_pictures(path, pick)
    if total == 1:
        pictures = read_pictures(path, slice(0, 1, 1))[0] * n_frames
    if len(pictures) != n_frames:
        raise ValueError(
            f"Expected {n_frames} masks in {path}, one for each frame, or a single one; got {len(pictures)} "
            f"of {total} (start {pick.start}, every {pick.step}). Make the masks from the same frames."
        )
    return _stack([mask_opacity(picture) for picture in pictures], str(path))


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


def _with_equal_channels(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return all pictures as RGBA when any of them has alpha."""
    channels = max(picture.shape[-1] for picture in pictures)
    return [
        picture
        if picture.shape[-1] == channels
        else np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
        for picture in pictures
    ]


def _stack(pictures: Sequence[np.ndarray], name: str) -> np.ndarray:
    first = pictures[0].shape[:2]
    for index, picture in enumerate(pictures):
        if picture.shape[:2] != first:
            raise ValueError(
                f"Expected frames of one size in {name}; got {_size_text(first)} for the first and "
                f"{_size_text(picture.shape[:2])} for number {index + 1}. Resize them to one size."
            )
    return np.stack(pictures)


def _size_text(height_width: tuple[int, ...]) -> str:
    return f"{height_width[1]} x {height_width[0]}"
