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
# Share of the border that may be foreground before the background cannot be called white.
LARGEST_BORDER_SHARE = 0.8
# Opacity of a given mask (0..255) that does not yet count: networks and video codecs leave such a haze.
_HAZE = 8

_HOW_TO_CUT_OUT = (
    "Give a mask: in ComfyUI from RemoveBackground or SAM3, on the command line with --mask (white = object)."
)


def near_white_masks(images: Tensor) -> Tensor:
    """Return 1 where the mean over the channels of images [..., H, W, 3] is at most 250 / 255, else 0."""
    # The small allowance keeps an 8-bit grey of exactly 250 foreground in spite of float rounding.
    return (images.mean(dim=-1) <= (NEAR_WHITE + 1e-2) / 255).to(images.dtype)


def masks_of(grid: ViewGrid) -> Tensor:
    """Return the masks [T, V + 1, H, W] of a grid; where it has none, all that is not near white."""
    return near_white_masks(grid.images) if grid.masks is None else grid.masks


def opacity_source(clip: Clip) -> str:
    """Return what tells the object from the background: ``mask``, ``alpha`` or ``near-white background``."""
    if clip.masks is not None:
        return "mask"
    # Alpha that is opaque everywhere says nothing: animations often carry it.
    has_alpha = clip.frames.shape[-1] == 4 and clip.frames[..., 3].min() < 255
    return "alpha" if has_alpha else "near-white background"


def foreground_masks(clip: Clip, *, ignore_specks: bool = True) -> np.ndarray:
    """Return the object's opacity in every frame, uint8 [T, H, W]; every value above 0 belongs to the object.

    Masks win over alpha, alpha over the near-white rule. ``ignore_specks`` leaves out connected parts below
    0.05 % of the frame, and a given mask's haze.

    Raises:
        ValueError: no frame has any foreground, or the background is not white and nothing else tells.
    """
    source = opacity_source(clip)
    if clip.masks is not None:
        opacity = np.where(clip.masks > _HAZE, clip.masks, 0) if ignore_specks else clip.masks
    elif source == "alpha":
        opacity = clip.frames[..., 3]
    else:
        # In whole numbers: the mean over RGB is at most 250.
        dark = clip.frames[..., :3].sum(axis=-1, dtype=np.uint16) <= 3 * NEAR_WHITE
        opacity = np.where(dark, 255, 0).astype(np.uint8)
        _check_background_is_white(clip, opacity)
    found = int(np.count_nonzero(opacity))
    if ignore_specks:
        opacity = np.stack([_without_specks(frame) for frame in opacity])
    if not opacity.any():
        raise ValueError(_nothing_found(clip, source, found))
    return opacity


def object_boxes(opacity: np.ndarray) -> np.ndarray:
    """Return each frame's box of pixels above 0, int64 [T, 4]: left, top, right, bottom, or all zero."""
    boxes = np.zeros((len(opacity), 4), dtype=np.int64)
    for box, frame in zip(boxes, opacity > 0, strict=True):
        columns, rows = np.flatnonzero(frame.any(axis=0)), np.flatnonzero(frame.any(axis=1))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def _without_specks(opacity: np.ndarray) -> np.ndarray:
    """Return [H, W] opacity without its connected parts (8 neighbours) below 0.05 % of the frame."""
    import cv2

    _, parts, measures, _ = cv2.connectedComponentsWithStats((opacity > 0).astype(np.uint8))
    keep = measures[:, cv2.CC_STAT_AREA] >= SPECK_SHARE * opacity.size
    return np.where(keep[np.asarray(parts, np.intp)], opacity, 0)


def _check_background_is_white(clip: Clip, opacity: np.ndarray) -> None:
    share = border_pixels(opacity > 0).mean()
    if share > LARGEST_BORDER_SHARE:
        level = np.median(border_pixels(clip.frames[..., :3].mean(axis=-1, dtype=np.float32)))
        raise ValueError(
            f"Expected a near-white background (grey level above {NEAR_WHITE}) in a clip without mask or "
            f"alpha; got {100 * share:.0f} % of the border pixels below that (median level {level:.0f}), so "
            f"there is no foreground to be told from it. {_HOW_TO_CUT_OUT}"
        )


def border_pixels(frames: np.ndarray) -> np.ndarray:
    """Return the outermost pixels of [T, H, W] frames, flat."""
    sides = (frames[:, 0], frames[:, -1], frames[:, :, 0], frames[:, :, -1])
    return np.concatenate([side.ravel() for side in sides])


def _nothing_found(clip: Clip, source: str, found: int) -> str:
    n_frames, height, width = clip.frames.shape[:3]
    if found:
        return (
            f"Expected an object; got only {found} foreground pixels in {n_frames} frames of {width} x "
            f"{height}, in parts below {100 * SPECK_SHARE:g} % of the frame "
            f"({SPECK_SHARE * width * height:.0f} pixels). Crop the clip closer to the object. "
            f"{_HOW_TO_CUT_OUT}"
        )
    seen = {
        "mask": "masks that are black everywhere",
        "alpha": "alpha that is transparent everywhere",
        "near-white background": f"no pixel with a grey level of {NEAR_WHITE} or less",
    }[source]
    return f"Expected an object; got no foreground in {n_frames} frames: {seen}. {_HOW_TO_CUT_OUT}"
