"""How much every pixel of the views counts: by view angle, silhouette rim, visibility and fit.

The farther a view is from the input, the more of it was made up. The soft visibility is SV3D's (2403.12008);
the other weights are ours, measured in `tests/bench/README.md`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...cameras import Cameras
from ...views import ViewGrid
from ..scene import SceneRendering

_FARTHEST_TRUST = 0.35  # in views far from the input
_TRUST_ANGLE_DEG = 75.0  # at which the rest of it has fallen to 1 / e
# Weight of a silhouette's rim, which is 2 pixels wide in pictures of 64. Rims of larger pictures than 144 are
# found at that size: the work grows with the fourth power of it.
_RIM_WEIGHT, _RIM_PIXELS, _RIM_SIZE, _LARGEST_RIM_SIZE = 0.5, 2, 64, 144
_FIT_DISTANCE = 0.15  # of colours, at which the confidence in the fit has fallen to 1 / e
_FIT_WINDOW = 5
_LEAST_CONFIDENCE = 0.2
_GRAZING, _FACING = 0.0, 0.5  # smoothstep edges of the cosine between normal and view direction (SV3D)
_SAME_SURFACE = 0.01  # of the cameras' distance, by which depths of one surface may differ
_SHOWN_BY_INPUT = 0.5  # weight in other views of what the input shows at the same time
_SURFACE_ALPHA = 0.5


def view_trust(cameras: Cameras) -> Tensor:
    """Return the weight of every view, [V + 1] float32: 0.35 + 0.65 exp(-(theta / 75)^2).

    Theta is the angle to the input, degrees. Stronger trust costs the novel views more than the input gains.
    """
    directions = F.normalize(cameras.eyes(), dim=-1)
    across = torch.linalg.cross(directions, directions[:1].expand_as(directions)).norm(dim=-1)
    theta = torch.rad2deg(torch.atan2(across, directions @ directions[0]))
    trust = _FARTHEST_TRUST + (1 - _FARTHEST_TRUST) * torch.exp(-((theta / _TRUST_ANGLE_DEG) ** 2))
    return trust.float()


def pixel_trust(views: ViewGrid) -> Tensor:
    """Return how much pixels count in stage 1, [T, V + 1, H, W]: trust in views, less at novel rims."""
    assert views.masks is not None
    size = views.images.shape[2]
    small = min(size, _LARGEST_RIM_SIZE)
    masks = F.interpolate(views.masks, (small, small), mode="area") if small < size else views.masks
    rims = rim_weights(masks.flatten(0, 1), _RIM_PIXELS * small / _RIM_SIZE)
    rims = F.interpolate(rims.unflatten(0, tuple(masks.shape[:2])), (size, size), mode="nearest")
    rims[:, 0] = 1
    return rims * view_trust(views.cameras)[None, :, None, None]


def rim_weights(masks: Tensor, pixels: float) -> Tensor:
    """Return 0.5 within ``pixels`` of the silhouettes of masks [N, H, W], on either side, and 1 elsewhere.

    Where the picture's edge cuts the object there is no silhouette. Distances are from the pixel's centre.
    """
    inside = (masks > 0.5).to(masks.dtype)
    # A pixel's centre is half a pixel from its own edge.
    rim = _widened(inside, pixels + 0.5) & _widened(1 - inside, pixels + 0.5)
    return torch.where(rim, _RIM_WEIGHT, 1.0).to(masks.dtype)


def visibility_weights(
    rendering: SceneRendering, targets: ViewGrid, *, trusted: bool = False, anew: bool = False
) -> Tensor:
    """Return how much every pixel of targets with masks counts, [T, V + 1, H, W] in 0..1; the input 1.

    ``rendering`` is the scene from their cameras, at their times and size; where all views are ``trusted`` as
    the input is, neither angle nor rim lowers their weight. Views made ``anew`` from the scene are to correct
    it: what contradicts it counts in full.
    """
    base = torch.ones_like(rendering.alpha) if trusted else pixel_trust(targets)
    surface = rendering.alpha >= _SURFACE_ALPHA
    eyes, directions = (x.float() for x in targets.cameras.rays(rendering.rgb.shape[2]))
    squarely = torch.empty_like(rendering.alpha)
    for view, eye in enumerate(eyes):
        points = eye + directions[view] * rendering.depth[:, view, ..., None]
        squarely[:, view] = facing(rendering.normal[:, view], points, eye)
    # Where the scene shows nothing there is no normal to judge by.
    squarely = torch.where(surface, squarely, 1.0)
    shown = seen_by_input(torch.where(surface, rendering.depth, 0.0), targets.cameras)
    weights = base * squarely * torch.where(shown, _SHOWN_BY_INPUT, 1.0)
    if not anew:
        pairs = zip(targets.images, rendering.rgb, strict=True)
        weights = weights * torch.stack(
            [fit_confidence(reference, rendered) for reference, rendered in pairs]
        )
    weights[:, 0] = base[:, 0]
    return weights


def facing(normals: Tensor, points: Tensor, eye: Tensor) -> Tensor:
    """Return how squarely a camera sees surface points, [...] in 0..1: smoothstep(v . n; 0, 0.5).

    Source: SV3D (2403.12008), soft visibility, of unit normals n; v points from the surface to the camera.
    """
    cosine = (F.normalize(eye.to(points) - points, dim=-1) * normals).sum(-1)
    t = ((cosine - _GRAZING) / (_FACING - _GRAZING)).clamp(0, 1)
    return t.square() * (3 - 2 * t)


def fit_confidence(reference: Tensor, rendered: Tensor) -> Tensor:
    """Return how far pictures [N, H, W, 3] agree, [N, H, W] in 0.2..1: exp(-|difference|_1 / 0.15).

    The difference is summed over the channels, the result averaged over those of 5 x 5 pixels that lie inside
    the picture. Targets that no other view supports are outvoted in the fit; this lowers their weight.
    """
    agreement = torch.exp(-(reference - rendered).abs().sum(-1) / _FIT_DISTANCE)
    mean = F.avg_pool2d(agreement[:, None], _FIT_WINDOW, 1, padding=_FIT_WINDOW // 2, count_include_pad=False)
    return mean[:, 0].clamp(min=_LEAST_CONFIDENCE)


def seen_by_input(depths: Tensor, cameras: Cameras) -> Tensor:
    """Return which pixels show surface that the input view sees at the same time, bool [T, V + 1, N, N].

    ``depths`` are distances along the unit rays, world units, 0 where there is no surface. A point is seen
    when the input's depth map shows the same distance there; the input itself is False. On the benchmark at
    64 pixels it finds 73 % of what is seen, and 82 % of what it marks is: one pixel of a steep surface spans
    more depth than the tolerance.
    """
    size = depths.shape[-1]
    origins, directions = (x.to(depths) for x in cameras.rays(size))
    to_pixels = (cameras.intrinsics(size) @ cameras.w2c_opencv()[0, :3]).to(depths)
    seen = torch.zeros_like(depths, dtype=torch.bool)
    for view in range(1, cameras.n_views + 1):
        depth = depths[:, view]
        points = origins[view] + directions[view] * depth[..., None]
        pixels = points @ to_pixels[:, :3].T + to_pixels[:, 3]
        places = pixels[..., :2] / pixels[..., 2:] * (2 / size) - 1
        shown = F.grid_sample(depths[:, :1], places, mode="nearest", align_corners=False)[:, 0]
        distance = (points - origins[0]).norm(dim=-1)
        same = (distance - shown).abs() <= _SAME_SURFACE * cameras.radius
        seen[:, view] = (depth > 0) & (shown > 0) & same
    return seen


def _widened(inside: Tensor, radius: float) -> Tensor:
    """Return which pixels have one of ``inside`` [N, H, W] within a radius between centres, bool."""
    reach = int(radius)
    offsets = torch.arange(-reach, reach + 1, device=inside.device)
    disc = offsets[:, None] ** 2 + offsets**2 <= radius**2
    return F.conv2d(inside[:, None], disc.to(inside)[None, None], padding=reach)[:, 0] > 0.5
