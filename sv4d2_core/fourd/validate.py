"""The border of the refiner: views that can be fitted, or a text that says what to change."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from ..video.foreground import near_white_masks
from ..views import ViewGrid

_LOG = logging.getLogger(__name__)
# Silhouettes of fewer pixels, over all frames and views, hold no shape.
_LEAST_SHARE = 0.001


def checked_views(views: ViewGrid) -> ViewGrid:
    """Return float32 views on the CPU with masks, which the near-white rule makes where they are missing.

    Raises:
        ValueError: pictures that are not square, too small, not finite or out of range, pictures without an
            object, times that do not rise.
    """
    n_frames, n_views, height, width = views.images.shape[:4]
    if n_frames < 1:
        raise ValueError("Expected at least one frame; got none. Give views [T, V + 1, H, W, 3] with T >= 1.")
    if height != width or height < 16:
        raise ValueError(
            f"Expected square pictures of at least 16 pixels; got {width} x {height}. Crop or pad the views "
            f"to a square on white."
        )
    times = views.frame_times()
    if not all(0 <= time <= 1 for time in times) or any(
        a >= b for a, b in zip(times, times[1:], strict=False)
    ):
        raise ValueError(f"Expected rising times in 0..1, one per frame; got {times}. Sort the frames.")
    images = views.images.detach().cpu().float()
    _check_range("images", images)
    if views.masks is None:
        _LOG.warning("The views have no masks: every pixel that is not near-white counts as the object.")
        masks = near_white_masks(images)
    else:
        masks = views.masks.detach().cpu().float()
        _check_range("masks", masks)
    _check_silhouettes(masks)
    if float((images - images[:1, :1, :1, :1]).abs().max()) < 1 / 255:
        raise ValueError(
            f"Expected pictures of an object; got {n_frames * n_views} pictures of one colour, "
            f"{images[0, 0, 0, 0].tolist()}. Check where the views come from."
        )
    return replace(views, images=images.clamp(0, 1), masks=masks.clamp(0, 1), latents=None)


def _check_range(name: str, values: torch.Tensor) -> None:
    bad = int((~values.isfinite()).sum())
    if bad:
        raise ValueError(
            f"Expected finite {name}; got {bad} of {values.numel()} values that are NaN or infinite. The "
            f"views were sampled or decoded wrongly: try float32."
        )
    low, high = float(values.min()), float(values.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(f"Expected {name} in 0..1; got {low:g} to {high:g}. Divide 8-bit values by 255.")


def _check_silhouettes(masks: torch.Tensor) -> None:
    inside = masks >= 0.5
    share = float(inside.float().mean())
    if not _LEAST_SHARE <= share < 1:
        what = "no background" if share == 1 else f"an object on {100 * share:.2g} % of the pixels"
        raise ValueError(
            f"Expected an object on a white background; got {what} in {masks.shape[0] * masks.shape[1]} "
            f"pictures. Give masks (white = object)."
        )
    empty = (~inside.flatten(2).any(-1)).nonzero().tolist()
    if empty:
        shown = ", ".join(f"frame {t} view {v}" for t, v in empty[:4])
        raise ValueError(
            f"Expected the object in every picture; {len(empty)} of {masks.shape[0] * masks.shape[1]} are "
            f"empty ({shown}). Leave these frames out, or give better masks."
        )
