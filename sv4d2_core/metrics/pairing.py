"""Brings predicted views into the order of the reference's, and says what does not fit."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ..cameras import Cameras
from ..views import ViewGrid

# Views whose angles differ by less are the same view.
_SAME_VIEW_DEG = 0.5


def paired_views(predicted: ViewGrid, reference: ViewGrid, name: str = "") -> tuple[ViewGrid, list[int]]:
    """Return the predicted views in the reference's order, and which novel views (1 to V) are missing.

    Views are the same where their angles relative to the input view agree to 0.5 degrees. A missing view's
    images are NaN. Views that the reference does not have are left out.

    Args:
        predicted, reference: grids of equal frames and size.
        name: what to call the predicted views in messages.

    Raises:
        ValueError: other numbers of frames, other sizes, or no common novel view.
    """
    who = f" of {name}" if name else ""
    if predicted.n_frames != reference.n_frames:
        fewer = min(predicted.n_frames, reference.n_frames)
        raise ValueError(
            f"Expected {reference.n_frames} frames{who}, as the reference has; got {predicted.n_frames}. "
            f"Compare the same moments, for example the first {fewer} frames of both (--frames {fewer})."
        )
    (height, width), (true_height, true_width) = predicted.images.shape[2:4], reference.images.shape[2:4]
    if (height, width) != (true_height, true_width):
        raise ValueError(
            f"Expected images of {true_width} x {true_height} pixels{who}, as the reference has; got "
            f"{width} x {height}. Resize both to one size (--size {min(width, true_width)})."
        )
    places = [_find(predicted.cameras, reference.cameras, v) for v in range(1, reference.n_views + 1)]
    missing = [v + 1 for v, place in enumerate(places) if place is None]
    if len(missing) == reference.n_views:
        raise ValueError(
            f"Expected views{who} from the reference's cameras ({_angles(reference.cameras)}); got "
            f"{_angles(predicted.cameras)}. Give the cameras of the predicted views, relative to the input."
        )
    if places == list(range(1, predicted.n_views + 1)):
        return replace(predicted, cameras=reference.cameras), missing
    order = torch.tensor([0, *(0 if place is None else place for place in places)])
    images = predicted.images[:, order]
    masks = None if predicted.masks is None else predicted.masks[:, order]
    if missing:
        images[:, missing] = math.nan
    if masks is not None and missing:
        masks[:, missing] = math.nan
    return replace(predicted, images=images, masks=masks, cameras=reference.cameras, latents=None), missing


def _find(cameras: Cameras, wanted: Cameras, view: int) -> int | None:
    """Return which of ``cameras`` stands where view ``view`` of ``wanted`` stands."""
    for place in range(1, cameras.n_views + 1):
        turn = (cameras.azimuths_deg[place] - wanted.azimuths_deg[view] + 180) % 360 - 180
        lift = cameras.elevations_deg[place] - wanted.elevations_deg[view]
        if abs(turn) <= _SAME_VIEW_DEG and abs(lift) <= _SAME_VIEW_DEG:
            return place
    return None


def _angles(cameras: Cameras) -> str:
    pairs = zip(cameras.azimuths_deg[1:5], cameras.elevations_deg[1:5], strict=True)
    text = ", ".join(f"azimuth {a:g} elevation {e:g}" for a, e in pairs)
    return text + (" ..." if cameras.n_views > 4 else "")


Clip = list[tuple[int, int]]


def over_frames(n_frames: int, n_views: int) -> list[Clip]:
    """Return V clips of length T, the frames of each view (FVD-F)."""
    return [[(t, v) for t in range(n_frames)] for v in range(n_views)]


def over_views(n_frames: int, n_views: int) -> list[Clip]:
    """Return T clips of length V, the views of each frame (FVD-V)."""
    return [[(t, v) for v in range(n_views)] for t in range(n_frames)]


def diagonal(n_frames: int, n_views: int) -> list[Clip]:
    """Return V clips of length T; clip v0 shows view (v0 + t) mod V at frame t (FVD-Diag)."""
    return [[(t, (start + t) % n_views) for t in range(n_frames)] for start in range(n_views)]


def raster(n_frames: int, n_views: int) -> list[Clip]:
    """Return V clips of length T, a scan through all images that turns round at each view's end (FV4D)."""
    return [
        [(t, v) for t in (range(n_frames) if v % 2 == 0 else reversed(range(n_frames)))]
        for v in range(n_views)
    ]


ORDERS = {"F": over_frames, "V": over_views, "Diag": diagonal, "4D": raster}
