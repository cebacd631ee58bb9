"""What is measured on a clip, each a number for the whole clip and the picture where it is worst."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...export.pictures import pick_frames
from ...video.foreground import masks_of
from ...views import ViewGrid

# Grey levels, 0 to 1, below and above which a pixel of the object shows next to nothing of it.
_DARK, _BLOWN = 0.08, 0.92
_KEY_FRAMES = 6
# Frames among which the size is compared, pair by pair.
_SIZED_FRAMES = 48
# Share of the views' sizes that need not agree with a common change of size.
_DISSENT = 0.1


class Found(NamedTuple):
    """A measured value, and the picture that shows it best where one does.

    Args:
        value: in the unit of its limit in `CurationLimits`.
        frame, view: of the picture, or None.
    """

    value: float
    frame: int | None = None
    view: int | None = None


def cover(grid: ViewGrid) -> Found:
    """Return the smallest share of a picture that the object covers."""
    return _lowest(masks_of(grid).mean((-2, -1)))


def cut(grid: ViewGrid) -> Found:
    """Return the greatest length along which the object touches the border, in sides of the picture."""
    solid = (masks_of(grid) >= 0.5).float()
    sides = torch.stack([solid[..., 0, :], solid[..., -1, :], solid[..., 0], solid[..., -1]])
    return _highest(sides.mean(-1).sum(0))


def dark(grid: ViewGrid) -> Found:
    """Return the share of the object that is nearly black, in the frame where most of it is."""
    return _share_of_object(grid, grid.images.mean(-1) < _DARK)


def blown(grid: ViewGrid) -> Found:
    """Return the share of the object that is nearly white, in the frame where most of it is."""
    return _share_of_object(grid, grid.images.mean(-1) > _BLOWN)


def motion(grid: ViewGrid) -> Found:
    """Return the largest mean change of the object's pixels between two of six key frames.

    The change of a pixel is that of its colour or of its opacity, whichever is larger; the mean is taken over
    what the object covers in either frame, then over the views.
    """
    keys = pick_frames(grid.n_frames, _KEY_FRAMES)
    images, masks = grid.images[keys], masks_of(grid)[keys]
    changes = [0.0]
    for a in range(len(keys)):
        for b in range(a):
            change = torch.maximum((images[a] - images[b]).abs().mean(-1), (masks[a] - masks[b]).abs())
            covered = torch.maximum(masks[a], masks[b]).sum((-2, -1)).clamp(min=1)
            changes.append(float((change.sum((-2, -1)) / covered).mean()))
    return Found(max(changes))


def rescaling(grid: ViewGrid) -> Found:
    """Return the largest change of size between two frames that all views share, as a logarithm.

    A view's size is measured three times, by height, width and area of the silhouette. An object that moves
    grows in some of them and not in others; one that is rescaled grows in all. So of the changes of all
    views and measures the least tenth is left out, and the next counts. An object that truly grows to all
    sides, such as a balloon, looks the same.
    """
    frames = pick_frames(grid.n_frames, _SIZED_FRAMES)
    masks = masks_of(grid)[frames]
    solid = (masks >= 0.5).float()
    height, width = solid.amax(-1).sum(-1), solid.amax(-2).sum(-1)
    sizes = torch.stack([height, width, masks.sum((-2, -1)).sqrt()], dim=-1)
    sizes = sizes.clamp(min=1).log().flatten(1)  # [T, (V + 1) * 3]
    shared = (sizes[:, None] - sizes).quantile(_DISSENT, dim=-1)  # [T, T], later frame minus earlier
    larger, smaller = divmod(int(shared.argmax()), len(frames))
    return Found(max(float(shared[larger, smaller]), 0.0), frames[larger])


def not_finite(grid: ViewGrid) -> int:
    """Return how many pictures hold NaN or infinite values."""
    bad = ~(grid.images.isfinite().all(-1) & masks_of(grid).isfinite())
    return int(bad.flatten(2).any(-1).sum())


def _share_of_object(grid: ViewGrid, pixels: Tensor) -> Found:
    """Return the largest share over the frames that ``pixels`` have of the object in all views."""
    solid = masks_of(grid) >= 0.5
    share = (pixels & solid).sum((1, 2, 3)) / solid.sum((1, 2, 3)).clamp(min=1)
    worst = int(share.argmax())
    return Found(float(share[worst]), worst)


def _highest(values: Tensor) -> Found:
    """Return the highest of values [T, V + 1] and where it is."""
    frame, view = divmod(int(values.argmax()), values.shape[1])
    return Found(float(values[frame, view]), frame, view)


def _lowest(values: Tensor) -> Found:
    return _highest(-values)._replace(value=float(values.min()))
