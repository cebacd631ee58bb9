"""Whether views are steady over time and can be pictures of one object, without knowing the truth.

Over time: flicker, acceleration and what optical flow cannot explain. Across the views of one moment, judged
by their cameras alone and in per cent of the picture's width: `tangency_errors` needs outlines only and
compares all views that do not face each other; `match_errors` needs texture and nearby views.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..cameras import Cameras
from ..video.foreground import masks_of
from ..views import ViewGrid, resize_images
from .image import paired_views

_QUIET_SHARE, _FEWEST = 0.25, 4  # of the object's pixels, taken for static; fewer pixels say nothing
_FLOW_SIDE = 128  # pixels of a picture for the optical flow
_SAME_PLACE_DEG = 0.1  # between two views, which then have no baseline
_SMALLEST_ANGLE_TO_BASELINE_DEG = 25.0  # views along their baseline see no tangent outline
_WIDEST_MATCH_DEG = 50.0  # beyond this turn corners look too different to be matched
_WORST_MATCH = 0.05  # of the width: worse matches are mistaken, and count as just so bad
_MATCH_SIDE = 256
_LARGEST_RATIO = 0.85


def finite_masks(grid: ViewGrid) -> Tensor:
    """Return the masks [T, V + 1, H, W] of a grid, found on its white background where it has none."""
    return torch.nan_to_num(masks_of(grid))


def fit_residuals(rendered: ViewGrid, views: ViewGrid) -> Tensor:
    """Return how far a fitted scene's pictures are from the views that it was fitted to, [T, V + 1].

    The mean of |rendered - view| over pixels that show the object in either. A scene can only show what is
    consistent, so this measures inconsistency without the truth.
    """
    rendered, _ = paired_views(rendered, views, "the rendered scene")
    weights = torch.maximum(finite_masks(rendered), finite_masks(views))
    error = (rendered.images - views.images).abs().mean(dim=-1)
    return (error * weights).double().sum(dim=(2, 3)) / weights.double().sum(dim=(2, 3))


def quietest_pixels(images: Tensor, masks: Tensor) -> Tensor:
    """Return the quietest quarter of the pixels that always show the object, [H, W] bool: the static ones.

    Taken from the reference where there is one. Without it what stands still cannot be known, but the
    quietest pixels move least if anything does, and all of them flicker if the views do.
    """
    always = masks.amin(dim=0) >= 0.5
    change = images.diff(dim=0).abs().mean(dim=(0, -1))
    if not always.any() or len(images) < 2:
        return always
    # Not torch.quantile, which takes 16 million values at most.
    changes = change[always]
    limit = changes.kthvalue(1 + int(_QUIET_SHARE * (len(changes) - 1))).values
    return always & (change <= limit)


def mean_change(images: Tensor, static: Tensor, order: int) -> float:
    """Return the mean absolute difference over time of static pixels [H, W], in 0..1; NaN for too few.

    Order 1 is flicker, |I(t+1) - I(t)|; order 2 is acceleration, |I(t+1) - 2 I(t) + I(t-1)|.
    """
    if int(static.sum()) < _FEWEST or len(images) <= order:
        return math.nan
    return float(images[:, static].double().diff(n=order, dim=0).abs().mean())


def warping_errors(images: Tensor, masks: Tensor) -> Tensor:
    """Return how badly each frame follows from the one before along the optical flow, [T - 1] float64.

    The mean of |I(t) - I(t+1) moved back| over the pixels that show the object in both; NaN where there is
    none. Pictures above 128 pixels are reduced first. True pictures have a value above 0, too: what comes
    into sight follows from nothing.

    Source: Lai et al. 2018, "Learning Blind Video Temporal Consistency" (the error), Kroeger et al. 2016,
    "Fast Optical Flow using Dense Inverse Search" (the flow).
    """
    import cv2
    from kornia.geometry.transform import remap

    height, width = images.shape[1:3]
    scale = min(1.0, _FLOW_SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    pictures = resize_images(torch.cat([images, masks[..., None]], dim=-1).detach().float().cpu(), *size)
    grey = (pictures[..., :3].mean(dim=-1) * 255).round().byte().numpy()
    search: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(0)
    y, x = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    errors = []
    for t in range(len(pictures) - 1):
        flow = torch.from_numpy(search.calc(grey[t], grey[t + 1], None))
        following = pictures[t + 1].permute(2, 0, 1)[None]
        places = (x + flow[..., 0])[None], (y + flow[..., 1])[None]
        moved = remap(following, *places, padding_mode="border", align_corners=True)[0].permute(1, 2, 0)
        weights = pictures[t, ..., 3] * moved[..., 3]
        error = (pictures[t, ..., :3] - moved[..., :3]).abs().mean(dim=-1)
        errors.append(float((error * weights).sum() / weights.sum()) if weights.sum() >= 1 else math.nan)
    return torch.tensor(errors, dtype=torch.float64)


def tangency_errors(masks: Tensor, cameras: Cameras) -> Tensor:
    """Return how far each view's outline misses the planes that touch the object in others, [V + 1].

    The planes through two camera centres that touch the object are the same for both cameras, so both
    outlines of masks [V + 1, H, W] must touch their images of them. The error of a pair is the mean distance
    over both planes and both views, the error of a view the mean over its pairs, per cent of the width; NaN
    where an outline is empty or no pair can be compared.

    Source: Hernandez, Schmitt, Cipolla 2007, "Silhouette Coherence for Camera Calibration".
    """
    size = masks.shape[-1]
    eyes = cameras.eyes()
    axes, focal = -F.normalize(eyes, dim=-1), float(cameras.intrinsics(size)[0, 0])
    rays = [_outline_rays(*view) for view in zip(cameras.rays(size)[1], masks, strict=True)]
    errors: list[list[float]] = [[] for _ in rays]
    for i, j in itertools.combinations(range(len(rays)), 2):
        if _at_one_place(axes[i], axes[j]):
            continue
        baseline = F.normalize(eyes[j] - eyes[i], dim=-1)
        angles = [float(torch.rad2deg(torch.acos((axes[v] @ baseline).abs().clamp(max=1)))) for v in (i, j)]
        if min(angles) < _SMALLEST_ANGLE_TO_BASELINE_DEG or not (len(rays[i]) and len(rays[j])):
            continue
        error = 100 / size * focal * _touching_planes_apart(rays[i], rays[j], baseline, axes[i] + axes[j])
        errors[i].append(error)
        errors[j].append(error)
    return _means(errors)


def match_errors(images: Tensor, cameras: Cameras) -> Tensor:
    """Return how far each view's matched corners lie from their partners' epipolar lines, [V + 1].

    SIFT corners of images [V + 1, H, W, 3] at most 50 degrees apart are matched by appearance alone (mutual
    best, ratio 0.85 in both directions); distances are symmetric (mean of both views) and count as 5 % where
    they are larger: such matches are mistaken. Of true views' matches a fifth to a third are. The error of a
    view is the mean over its matches, per cent of the width; NaN where it has none.

    Source: Hartley and Zisserman 2004, "Multiple View Geometry", chapter 11; Lowe 2004 (SIFT).
    """
    from kornia.feature import match_smnn
    from kornia.geometry import epipolar

    size = min(images.shape[-2], _MATCH_SIDE)
    corners = [_corners(image) for image in resize_images(images.detach().float().cpu(), size, size)]
    projections = cameras.intrinsics(size) @ cameras.w2c_opencv()[:, :3]  # [V + 1, 3, 4]
    towards = F.normalize(cameras.eyes(), dim=-1)
    nearest = math.cos(math.radians(_WIDEST_MATCH_DEG))
    errors: list[list[float]] = [[] for _ in corners]
    for i, j in itertools.combinations(range(len(images)), 2):
        if towards[i] @ towards[j] < nearest or _at_one_place(towards[i], towards[j]):
            continue
        (points_i, words_i), (points_j, words_j) = corners[i], corners[j]
        pairs = match_smnn(words_i, words_j, _LARGEST_RATIO)[1]
        if not len(pairs):
            continue
        matched = points_i[pairs[:, 0]], points_j[pairs[:, 1]]
        fundamental = epipolar.fundamental_from_projections(projections[i], projections[j])
        apart = 0.5 * (
            epipolar.left_to_right_epipolar_distance(*matched, fundamental)
            + epipolar.right_to_left_epipolar_distance(*matched, fundamental)
        )
        shares = ((apart / size).clamp(max=_WORST_MATCH) * 100).tolist()
        errors[i] += shares
        errors[j] += shares
    return _means(errors)


def _at_one_place(one: Tensor, other: Tensor) -> bool:
    """Return whether unit directions [3] of two cameras are the same."""
    return float((one - other).norm()) < math.radians(_SAME_PLACE_DEG)


def _means(values: list[list[float]]) -> Tensor:
    return torch.tensor([sum(v) / len(v) if v else math.nan for v in values], dtype=torch.float64)


def _outline_rays(rays: Tensor, mask: Tensor) -> Tensor:
    """Return the directions [N, 3] through the outermost pixels of an object, from rays [H, W, 3]."""
    inside = F.pad(mask.cpu() >= 0.5, (1, 1, 1, 1))
    surrounded = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return rays[inside[1:-1, 1:-1] & ~surrounded]


def _touching_planes_apart(rays: Tensor, others: Tensor, baseline: Tensor, forward: Tensor) -> float:
    """Return how far the extreme planes of two outlines differ, as a slope (per focal length in pixels)."""
    front = F.normalize(forward - (forward @ baseline) * baseline, dim=-1)
    side = torch.linalg.cross(baseline, front)
    apart = 0.0
    planes = [torch.atan2(r @ side, r @ front) for r in (rays, others)]
    for end in (torch.argmin, torch.argmax):
        first, second = int(end(planes[0])), int(end(planes[1]))
        touching = torch.stack([rays[first], others[second]])
        lever = torch.linalg.cross(touching, baseline.expand_as(touching)).norm(dim=-1).mean()
        apart += 0.5 * float(lever * (planes[0][first] - planes[1][second]).abs())
    return apart


def _corners(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the SIFT corners (x, y) [N, 2] of a picture in pixels and their descriptors [N, 128]."""
    import cv2

    grey = (image.mean(dim=-1) * 255).round().byte().numpy()
    keypoints, descriptors = cv2.SIFT.create().detectAndCompute(grey, None)
    if descriptors is None:
        return torch.zeros(0, 2, dtype=torch.float64), torch.zeros(0, 128)
    # OpenCV counts from the middle of the first pixel.
    points = torch.tensor([keypoint.pt for keypoint in keypoints], dtype=torch.float64) + 0.5
    return points, torch.from_numpy(descriptors)
