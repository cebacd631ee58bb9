"""Which pixels are the object: a given mask, else alpha, else all that is not a near-white background."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..views import ViewGrid
from .read import Clip

# Grey level (mean of the channels, 0..255) up to which a pixel on white is foreground; the reference's rule.
NEAR_WHITE = 250
# A connected part below this share of the frame is dirt, not the object.
SPECK_SHARE = 0.0005
# Opacity of a given mask (0..255) that does not yet count: networks and video codecs leave such a haze.
_HAZE = 8
# Share of the frame's border that may be foreground before the background cannot be called white.
_LARGEST_BORDER_SHARE = 0.8

_HOW_TO_CUT_OUT = (
    "Give a mask: in ComfyUI from RemoveBackground or SAM3, on the command line with --mask (white = object)."
)


def near_white_masks(images: Tensor) -> Tensor:
    """Return 1 where the mean over the channels is at most 250 / 255, else 0.

    Args:
        images: [..., H, W, 3] float in 0..1, on white.

    Returns:
        [..., H, W], the images' dtype and device.
    """
    # The small allowance keeps an 8-bit grey of exactly 250 foreground in spite of float rounding.
    return (images.mean(dim=-1) <= (NEAR_WHITE + 1e-2) / 255).to(images.dtype)


def masks_of(grid: ViewGrid) -> Tensor:
    """Return the masks [T, V + 1, H, W] of a grid; where it has none, all that is not near white."""
    return near_white_masks(grid.images) if grid.masks is None else grid.masks


def opacity_source(clip: Clip) -> str:
    """Return what tells the object from the background: ``mask``, ``alpha`` or ``near-white background``.

    Alpha that is opaque everywhere says nothing (animations often carry it) and counts as none.
    """
    if clip.masks is not None:
        return "mask"
    has_alpha = clip.frames.shape[-1] == 4 and clip.frames[..., 3].min() < 255
    return "alpha" if has_alpha else "near-white background"


def foreground_masks(clip: Clip, *, ignore_specks: bool = True) -> np.ndarray:
    """Return the object's opacity in every frame, uint8 [T, H, W]; every value above 0 belongs to the object.

    Args:
        clip: the clip; its masks win over its alpha, alpha over the near-white rule.
        ignore_specks: leave out connected parts below 0.05 % of the frame, and a given mask's haze.

    Raises:
        ValueError: no frame has any foreground, or the background is not white and nothing else tells.
    """
    source = opacity_source(clip)
    if source == "mask" and clip.masks is not None:
        opacity = np.where(clip.masks > _HAZE, clip.masks, 0) if ignore_specks else clip.masks
    elif source == "alpha":
        opacity = clip.frames[..., 3]
    else:
        opacity = np.stack([_not_near_white(frame) for frame in clip.frames])
        _check_background_is_white(clip, opacity)
    found = int(np.count_nonzero(opacity))
    if ignore_specks:
        opacity = np.stack([_without_specks(frame) for frame in opacity])
    if not opacity.any():
        raise ValueError(_nothing_found(clip, source, found))
    return opacity


def object_boxes(opacity: np.ndarray) -> np.ndarray:
    """Return the box of the pixels above 0 of each frame of [T, H, W], int64 [T, 4].

    A row is (left, top, right, bottom) in pixels, right and bottom exclusive; all zero for an empty frame.
    """
    boxes = np.zeros((len(opacity), 4), dtype=np.int64)
    for box, frame in zip(boxes, opacity > 0, strict=True):
        columns, rows = np.flatnonzero(frame.any(axis=0)), np.flatnonzero(frame.any(axis=1))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def _not_near_white(frame: np.ndarray) -> np.ndarray:
    """Return uint8 [H, W]: 255 where the mean over RGB is at most 250, else 0; in whole numbers."""
    red, green, blue = (frame[..., channel].astype(np.uint16) for channel in range(3))
    return np.where(red + green + blue <= 3 * NEAR_WHITE, 255, 0).astype(np.uint8)


def _without_specks(opacity: np.ndarray) -> np.ndarray:
    """Return [H, W] opacity without its connected parts (8 neighbours) below 0.05 % of the frame."""
    from skimage.measure import label

    parts = np.asarray(label(opacity > 0, connectivity=2))
    keep = np.bincount(parts.ravel()) >= SPECK_SHARE * opacity.size
    return np.where(keep[parts], opacity, 0).astype(np.uint8)


def _check_background_is_white(clip: Clip, opacity: np.ndarray) -> None:
    share = _border(opacity > 0).mean()
    if share > _LARGEST_BORDER_SHARE:
        level = np.median(_border(clip.frames[..., :3].mean(axis=-1, dtype=np.float32)))
        raise ValueError(
            f"Expected a near-white background (grey level above {NEAR_WHITE}) in a clip without mask or "
            f"alpha; got {100 * share:.0f} % of the border pixels below that (median level {level:.0f}), so "
            f"there is no foreground to be told from it. {_HOW_TO_CUT_OUT}"
        )


def _border(frames: np.ndarray) -> np.ndarray:
    """Return the outermost pixels of [T, H, W] frames, flat."""
    sides = (frames[:, 0], frames[:, -1], frames[:, :, 0], frames[:, :, -1])
    return np.concatenate([side.ravel() for side in sides])


def _nothing_found(clip: Clip, source: str, found: int) -> str:
    n_frames, height, width = clip.frames.shape[:3]
    if found:
        seen = (
            f"only {found} foreground pixels in {n_frames} frames of {width} x {height}, in parts below "
            f"{100 * SPECK_SHARE:g} % of the frame ({SPECK_SHARE * width * height:.0f} pixels)"
        )
        return f"Expected an object; got {seen}. Crop the clip closer to the object. {_HOW_TO_CUT_OUT}"
    seen = {
        "mask": "masks that are black everywhere",
        "alpha": "alpha that is transparent everywhere",
        "near-white background": f"no pixel with a grey level of {NEAR_WHITE} or less",
    }[source]
    return f"Expected an object; got no foreground in {n_frames} frames: {seen}. {_HOW_TO_CUT_OUT}"
