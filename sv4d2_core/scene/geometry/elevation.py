"""The absolute elevation of the input camera, which the network never learns, from the masks alone.

The silhouettes of all views fit together only when the cameras stand where they stood: under a wrong
elevation rays through one view's object miss the visual hull of the others. A body that is round about the
vertical axis fits at every elevation; the estimate then says that it is not certain.

Measured with the rig of four views on the ten benchmark scenes at -10, 0, 10 and 20 degrees, 64 pixels, 6
frames, 0.4 s on one thread (errors in degrees; corrupted: `corrupt_views` at strength 1, two seeds):

==========  ===========  ==========  ============  =========================
masks       estimates    median      above 5       above 5 and called certain
==========  ===========  ==========  ============  =========================
true        40           0.3         1             0
corrupted   80           1.2         6             2
==========  ===========  ==========  ============  =========================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ...cameras import Cameras
from ...views import ViewGrid

# Half the length of the rays that are searched for the object, in shares of the camera radius: the object is
# about 1 large at radius 2.
_REACH = 0.375
_SAMPLES = 64
# Larger masks are shrunk to this side, longer clips thinned to this many frames.
_SIZE = 48
_MOST_FRAMES = 6
# Candidates at least this far from the best must score lower by the margin, or the estimate is not certain.
_APART_DEG = 10.0
_MARGIN = 0.01


@dataclass(frozen=True)
class ElevationEstimate:
    """The input's elevation and how well every candidate fits the masks.

    Args:
        elevation_deg: the estimate, between candidates by a parabola through the best and its neighbours.
        candidates_deg: [C] ascending.
        scores: [C] mean silhouette IoU of the visual hull, 0..1.
        margin: how much lower the best of the candidates 10 degrees or more away scores.
        certain: False when the curve is too flat to tell (margin below 0.01), or the best lies at an end.
    """

    elevation_deg: float
    candidates_deg: tuple[float, ...]
    scores: tuple[float, ...]
    margin: float
    certain: bool


def estimate_elevation(
    masks: Tensor,  # [T, V + 1, H, W] opacity in 0..1
    cameras: Cameras,
    candidates_deg: Sequence[float] = range(-20, 41, 5),
) -> ElevationEstimate:
    """Return the absolute elevation of the input view under which the silhouettes fit together best.

    Candidates that would place a view beyond a pole are left out; `Cameras.input_elevation_deg` is not read.

    Raises:
        ValueError: masks that do not fit the cameras or hold no object, fewer than three candidates that fit.
    """
    small = _few_small_masks(masks, cameras)
    candidates = sorted(
        {float(e) for e in candidates_deg if max(abs(e + x) for x in cameras.elevations_deg) < 90}
    )
    if len(candidates) < 3:
        raise ValueError(
            f"Expected at least 3 candidate elevations that keep all views between the poles; got "
            f"{candidates} of {list(candidates_deg)} for relative elevations up to "
            f"{max(cameras.elevations_deg):g}. Give more candidates."
        )
    scores = [hull_iou(small, replace(cameras, input_elevation_deg=e)) for e in candidates]
    best = max(range(len(scores)), key=scores.__getitem__)
    rivals = [s for e, s in zip(candidates, scores, strict=True) if abs(e - candidates[best]) >= _APART_DEG]
    margin = scores[best] - max(rivals, default=scores[best])
    inside = 0 < best < len(scores) - 1
    return ElevationEstimate(
        _peak(candidates, scores, best) if inside else candidates[best],
        tuple(candidates),
        tuple(scores),
        margin,
        inside and margin >= _MARGIN,
    )


def with_elevation(views: ViewGrid, elevation_deg: float | None = None) -> tuple[ViewGrid, str]:
    """Return the views with the input's absolute elevation, and a sentence that says where it comes from.

    Args:
        views: with masks, else nothing is estimated.
        elevation_deg: degrees; None: the cameras' own where it is not 0, else by the silhouettes.

    Raises:
        ValueError: an elevation that lifts a view over a pole.
    """
    if elevation_deg is None and (views.cameras.input_elevation_deg != 0 or views.masks is None):
        return views, f"Elevation of the input camera: {views.cameras.input_elevation_deg:.1f} degrees."
    how = "as given"
    if elevation_deg is None and views.masks is not None:
        found = estimate_elevation(views.masks, views.cameras)
        elevation_deg = found.elevation_deg if found.certain else 0.0
        how = "by the silhouettes" if found.certain else "taken for granted, as the silhouettes do not tell"
    cameras = replace(views.cameras, input_elevation_deg=float(elevation_deg or 0))
    said = f"Elevation of the input camera: {elevation_deg:.1f} degrees, {how}."
    return replace(views, cameras=cameras), said


def hull_iou(
    masks: Tensor,  # [T, V + 1, N, N] opacity in 0..1
    cameras: Cameras,
) -> float:
    """Return how well the silhouettes fit together: mean IoU of each view's mask with the others' hull.

    A pixel belongs to the hull's silhouette as far as some point of its ray lies in all other views' masks.
    The hull of all views never shows outside the mask, so only the mask's own pixels are looked at.
    """
    size = masks.shape[-1]
    origins, directions = (x.to(masks) for x in cameras.rays(size))
    distances = cameras.radius * (1 + _REACH * torch.linspace(-1, 1, _SAMPLES)).to(masks)
    to_pixels = (cameras.intrinsics(size) @ cameras.w2c_opencv()[:, :3]).to(masks)  # [V + 1, 3, 4]
    ious = []
    for view in range(cameras.n_views + 1):
        covered = (masks[:, view] > 0).any(0)
        points = origins[view] + directions[view][covered][:, None] * distances[:, None]  # [P, S, 3]
        inside = torch.ones((), device=masks.device, dtype=masks.dtype)
        for other in range(cameras.n_views + 1):
            if other != view:
                inside = torch.minimum(inside, _mask_at(points, to_pixels[other], masks[:, other]))
        hull, mask = inside.amax(-1), masks[:, view, covered]  # [T, P]
        overlap, area = torch.minimum(hull, mask).sum(-1), mask.sum(-1)
        ious.append((overlap / area)[area > 0])
    return float(torch.cat(ious).mean())


def _mask_at(points: Tensor, to_pixels: Tensor, masks: Tensor) -> Tensor:
    """Return the opacities of ``masks`` [T, N, N] at world points [P, S, 3], [T, P, S]; 0 off the picture."""
    pixels = points @ to_pixels[:, :3].T + to_pixels[:, 3]
    places = pixels[..., :2] / pixels[..., 2:] * (2 / masks.shape[-1]) - 1
    return F.grid_sample(masks[None], places[None], mode="bilinear", align_corners=False)[0]


def _few_small_masks(masks: Tensor, cameras: Cameras) -> Tensor:
    """Return at most 6 frames of the masks, evenly spread, [T', V + 1, N, N] with N at most 48."""
    shape = tuple(masks.shape)
    if len(shape) != 4 or shape[1] != cameras.n_views + 1 or shape[2] != shape[3]:
        raise ValueError(
            f"Expected square masks [T, {cameras.n_views + 1}, N, N] for {cameras.n_views} novel views and "
            f"the input view; got {list(shape)}. Give the masks of the same grid as the cameras."
        )
    frames = torch.linspace(0, shape[0] - 1, min(shape[0], _MOST_FRAMES)).round().long()
    few = masks[frames].float()
    if shape[-1] > _SIZE:
        few = F.interpolate(few, (_SIZE, _SIZE), mode="bilinear", antialias=True).clamp(0, 1)
    if not bool((few.amax(dim=(2, 3)) > 0.5).any(0).all()):
        raise ValueError(
            "Expected masks that show the object in every view; at least one view is empty in all frames. "
            "Check the masks, or set the elevation by hand."
        )
    return few


def _peak(positions: Sequence[float], values: Sequence[float], best: int) -> float:
    """Return where the parabola through the best value and its two neighbours is highest."""
    (x0, x1, x2), (y0, y1, y2) = positions[best - 1 : best + 2], values[best - 1 : best + 2]
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (right - left) / (x2 - x0)
    if curvature >= 0 or not math.isfinite(curvature):
        return x1
    return min(max((x0 + x1) / 2 - left / (2 * curvature), x0), x2)
