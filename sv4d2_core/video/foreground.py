"""The pixels of the object: a given mask, else alpha, else all but a near-white background."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..views import ViewGrid
from .read import Clip

NEAR_WHITE = 250  # mean of RGB (0..255) up to which a pixel on white is foreground; the reference's rule
SPECK_SHARE = 0.0005  # of the frame; a smaller connected part is dirt, not the object
_LARGEST_BORDER_SHARE = 0.8  # of the border may be foreground where the background is called white
_ROUNDED_SHARE = 0.005  # of the pixels that the rule decides otherwise once colours are of 8 bits
_NEARLY_WHITE = 0.01  # squared distance from white, of 3, below which a rim's opacity cannot be told
_HAZE = 8  # opacity of a mask or alpha (0..255) that does not count: networks and video codecs leave it

_HOW_TO_CUT_OUT = (
    "Give a mask (white = object; in ComfyUI from RemoveBackground or SAM3, on the command line with "
    "--mask), or pictures with transparency."
)


def near_white_masks(images: Tensor) -> Tensor:
    """Return 1 where the mean over the channels of images [..., H, W, 3] is at most 250 / 255, else 0."""
    # The small allowance keeps an 8-bit grey of exactly 250 foreground in spite of float rounding.
    return (images.mean(dim=-1) <= (NEAR_WHITE + 1e-2) / 255).to(images.dtype)


def soft_masks(images: Tensor, masks: Tensor) -> Tensor:
    """Return masks [..., H, W] of images [..., H, W, 3] on white, those by the near-white rule softened.

    The rule takes a pixel that an object covers by 3 % for the object, and a fit would learn its white. Here
    a rim pixel's opacity is its share between white and the mean colour of the solid pixels around it; thin
    parts without solid pixels, and what is nearly white itself, stay as they are.
    """
    softened = masks.clone()
    for index in product(*map(range, masks.shape[:-2])):
        image, mask = images[index], masks[index]
        off_rule = (mask != near_white_masks(image)).float().mean()
        if (mask != mask.round()).any() or off_rule > _ROUNDED_SHARE:
            continue
        darkness, opaque = (1 - image).movedim(-1, 0), mask[None]
        solid = 1 - F.max_pool2d(1 - opaque, 3, 1, 1)
        sums = F.avg_pool2d(torch.cat([darkness * solid, solid]), 5, 1, 2)
        inner = sums[:3] / sums[3].clamp(min=1e-6)
        length = (inner**2).sum(0)
        shares = ((darkness * inner).sum(0) / length.clamp(min=1e-6)).clamp(0, 1)
        softened[index] = torch.where((mask > solid[0]) & (length > _NEARLY_WHITE), shares, mask)
    return softened


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


def given_opacity(clip: Clip, *, ignore_specks: bool = True) -> np.ndarray | None:
    """Return what mask or alpha say, uint8 [T, H, W], without haze if ``ignore_specks``; None for neither."""
    if opacity_source(clip) == "near-white background":
        return None
    given = clip.frames[..., 3] if clip.masks is None else clip.masks
    is_hazy = ignore_specks and (given > _HAZE).any()
    return np.where(given > _HAZE, given, 0) if is_hazy else given


def foreground_masks(clip: Clip, *, ignore_specks: bool = True) -> np.ndarray:
    """Return the object's opacity in every frame, uint8 [T, H, W]; every value above 0 belongs to the object.

    ``ignore_specks`` leaves out connected parts below 0.05 % of the frame, and haze (`given_opacity`). Raises
    ValueError: no foreground in any frame, or a background that is not white and nothing else tells.
    """
    return part_of_object(clip, given_opacity(clip, ignore_specks=ignore_specks), ignore_specks)


def part_of_object(clip: Clip, opacity: np.ndarray | None, ignore_specks: bool) -> np.ndarray:
    """Return `foreground_masks` of the opacity that `given_opacity` returned."""
    if opacity is None:
        dark = clip.frames[..., :3].sum(axis=-1, dtype=np.uint16) <= 3 * NEAR_WHITE
        opacity = np.where(dark, 255, 0).astype(np.uint8)
        check_white_border(opacity, clip.name or "the clip")
    found = int(np.count_nonzero(opacity))
    if ignore_specks:
        opacity = np.stack([_without_specks(frame) for frame in opacity])
    if not opacity.any():
        raise ValueError(_nothing_found(clip, opacity_source(clip), found))
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


def check_white_border(masks: np.ndarray, name: str) -> None:
    """Raise ValueError where masks [T, H, W] by the near-white rule hold nearly all of the frames' border."""
    sides = (masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1])
    share = (np.concatenate([side.ravel() for side in sides]) > 0).mean()
    if share > _LARGEST_BORDER_SHARE:
        raise ValueError(
            f"Expected a near-white background (grey level above {NEAR_WHITE}) in pictures without mask or "
            f"transparency; got {100 * share:.0f} % of the border darker than that in {name}. "
            f"{_HOW_TO_CUT_OUT}"
        )


def _nothing_found(clip: Clip, source: str, found: int) -> str:
    n_frames, height, width = clip.frames.shape[:3]
    if found:
        return (
            f"Expected an object; got only {found} foreground pixels in {n_frames} frames of {width} x "
            f"{height}, in parts below {SPECK_SHARE * width * height:.0f} pixels. Crop the clip closer. "
            f"{_HOW_TO_CUT_OUT}"
        )
    known = {"mask": "masks that are black", "alpha": "alpha that is transparent"}
    seen = known.get(source, "near-white pixels")
    return f"Expected an object; got no foreground in {n_frames} frames: {seen} everywhere. {_HOW_TO_CUT_OUT}"
