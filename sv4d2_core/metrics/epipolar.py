"""Whether the views of one moment can be pictures of one rigid scene, judged by their cameras alone.

Two measures, both in per cent of the picture's width. `tangency_errors` needs outlines only and compares all
views that do not face each other; `match_errors` needs texture and nearby views.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from ..cameras import Cameras
from ..views import resize_images

# Views that look along the line between their cameras see no outline tangent to the planes through it.
_SMALLEST_ANGLE_TO_BASELINE_DEG = 25.0
# Beyond this turn of the camera, corners look too different to be matched.
_WIDEST_MATCH_DEG = 50.0
# Matches worse than this share of the width are mistaken ones; they count as just so bad.
_WORST_MATCH = 0.05
_MATCH_SIDE = 256
_LARGEST_RATIO = 0.85


def tangency_errors(masks: Tensor, cameras: Cameras) -> Tensor:
    """Return how far each view's outline misses the planes that touch the object in other views.

    The planes through two camera centres that touch the object are the same for both cameras, so both
    outlines must touch their images of them. The error of a pair is the mean distance over both planes and
    both views, the error of a view the mean over its pairs.

    Args:
        masks: [V + 1, H, W] opacity in 0..1 of one moment.
        cameras: V + 1 cameras.

    Returns:
        [V + 1] per cent of the width; NaN where an outline is empty or no pair can be compared.

    Source: Hernandez, Schmitt, Cipolla 2007, "Silhouette Coherence for Camera Calibration".
    """
    size = masks.shape[-1]
    eyes = cameras.eyes()
    axes, focal = -torch.nn.functional.normalize(eyes, dim=-1), float(cameras.intrinsics(size)[0, 0])
    rays = [_outline_rays(*view) for view in zip(cameras.rays(size)[1], masks, strict=True)]
    errors: list[list[float]] = [[] for _ in rays]
    for i, j in itertools.combinations(range(len(rays)), 2):
        baseline = torch.nn.functional.normalize(eyes[j] - eyes[i], dim=-1)
        angles = [float(torch.rad2deg(torch.acos((axes[v] @ baseline).abs().clamp(max=1)))) for v in (i, j)]
        if min(angles) < _SMALLEST_ANGLE_TO_BASELINE_DEG or not (len(rays[i]) and len(rays[j])):
            continue
        error = 100 / size * focal * _touching_planes_apart(rays[i], rays[j], baseline, axes[i] + axes[j])
        errors[i].append(error)
        errors[j].append(error)
    return _means(errors)


def match_errors(images: Tensor, cameras: Cameras) -> Tensor:
    """Return how far the matched corners of each view lie from their partners' epipolar lines.

    SIFT corners of views at most 50 degrees apart are matched by appearance alone (mutual best, ratio 0.85 in
    both directions); distances are symmetric (mean of both views) and count as 5 % where they are larger:
    such matches are mistaken. Of true views' matches a fifth to a third are.

    Args:
        images: [V + 1, H, W, 3] in 0..1 of one moment.
        cameras: V + 1 cameras.

    Returns:
        [V + 1] per cent of the width, the mean over a view's matches; NaN where it has none.

    Source: Hartley and Zisserman 2004, "Multiple View Geometry", chapter 11; Lowe 2004 (SIFT).
    """
    from kornia.feature import match_smnn
    from kornia.geometry import epipolar

    size = min(images.shape[-2], _MATCH_SIDE)
    corners = [_corners(image) for image in resize_images(images.detach().float().cpu(), size, size)]
    projections = cameras.intrinsics(size) @ cameras.w2c_opencv()[:, :3]  # [V + 1, 3, 4]
    towards = torch.nn.functional.normalize(cameras.eyes(), dim=-1)
    nearest = math.cos(math.radians(_WIDEST_MATCH_DEG))
    errors: list[list[float]] = [[] for _ in corners]
    for i, j in itertools.combinations(range(len(images)), 2):
        if towards[i] @ towards[j] < nearest:
            continue
        (points_i, words_i), (points_j, words_j) = corners[i], corners[j]
        pairs = match_smnn(words_i, words_j, _LARGEST_RATIO)[1]
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


def _means(values: list[list[float]]) -> Tensor:
    """Return the mean of each list, NaN for an empty one."""
    return torch.tensor([sum(v) / len(v) if v else math.nan for v in values], dtype=torch.float64)


def _outline_rays(rays: Tensor, mask: Tensor) -> Tensor:
    """Return the directions [N, 3] through the outermost pixels of an object, from rays [H, W, 3]."""
    inside = torch.nn.functional.pad(mask.cpu() >= 0.5, (1, 1, 1, 1))
    middle = inside[1:-1, 1:-1]
    surrounded = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return rays[middle & ~surrounded]


def _touching_planes_apart(rays: Tensor, others: Tensor, baseline: Tensor, forward: Tensor) -> float:
    """Return how far the extreme planes through a baseline differ between two outlines, as a slope.

    The slope times the focal length is the distance in pixels near the middle of the picture.
    """
    front = torch.nn.functional.normalize(forward - (forward @ baseline) * baseline, dim=-1)
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
