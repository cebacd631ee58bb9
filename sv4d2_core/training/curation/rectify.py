"""Turns and zooms all cameras so that one point is the middle of every picture and the object fills it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ...cameras import Cameras
from ...video.foreground import masks_of
from ...views import ViewGrid
from .static_centre import pictured

# Opacity from which a pixel belongs to what must not be cut off.
_LEAST_OPACITY = 0.1


@dataclass(frozen=True)
class Rectification:
    """How the pictures of a clip are to be turned and zoomed, alike in all frames.

    Args:
        cameras: the new cameras, on an orbit around what was the static centre.
        to_source: [V + 1, 3, 3] float64 homographies from new to old positions (right, down, 1), which run
            from -1 to 1 across a picture.
        centre: the new origin in the old world.
        offset: how far from the middle of the pictures the centre was, in sides, mean over the views.
        zoom: how many times larger the object becomes, mean over the views.
    """

    cameras: Cameras
    to_source: Tensor
    centre: tuple[float, float, float]
    offset: float
    zoom: float


def plan_rectification(grid: ViewGrid, centre: Tensor, object_ratio: float = 0.9) -> Rectification:
    """Return the rectification that puts ``centre`` into the middle of all views.

    A camera that turns about its own centre changes its picture by a homography, exactly. The cameras'
    different distances to the new centre are made alike by zooming, which is exact for the plane through the
    centre and leaves a small difference of perspective in front of it and behind.

    Args:
        grid: of `measured_grid`.
        centre: [3] world units, of `static_centre`.
        object_ratio: share of the picture's side that the object takes where it reaches farthest in any view
            and frame.

    Raises:
        ValueError: the object is nowhere, or a camera would stand at a pole.
    """
    old = grid.cameras
    to_eye = old.eyes() - centre
    distances = to_eye.norm(dim=-1)
    elevations = torch.rad2deg(torch.asin(to_eye[:, 1] / distances))
    azimuths = torch.rad2deg(torch.atan2(to_eye[:, 0], to_eye[:, 2]))
    new = Cameras(
        tuple((elevations - elevations[0]).tolist()),
        tuple(((azimuths - azimuths[0]) % 360).tolist()),
        radius=float(distances.mean()),
        fov_deg=old.fov_deg,
        input_elevation_deg=float(elevations[0]),
    )
    # The new world is turned so that the input camera stands at azimuth 0.
    turn = torch.deg2rad(azimuths[0])
    back = torch.tensor([[turn.cos(), 0, turn.sin()], [0, 1, 0], [-turn.sin(), 0, turn.cos()]]).double()
    rotation = old.c2w_opencv()[:, :3, :3].mT @ back @ new.c2w_opencv()[:, :3, :3]
    focal = _focal(old)
    ones = torch.ones_like(distances)
    lens = torch.stack([new.radius / distances, new.radius / distances, ones], dim=-1)
    # From positions of a new camera whose picture reaches to 45 degrees.
    unzoomed = torch.tensor([focal, focal, 1.0]).double()[:, None] * rotation * lens[:, None]
    reach = _reach(grid, torch.linalg.inv(unzoomed))
    half = reach / object_ratio
    cameras = replace(new, fov_deg=2 * math.degrees(math.atan(half)))
    to_source = unzoomed * torch.tensor([half, half, 1.0]).double()
    offset = pictured(centre[None], old).norm(dim=-1).mean() / 2
    x, y, z = centre.tolist()
    return Rectification(cameras, to_source, (x, y, z), float(offset), 1 / (half * focal))


def rectify(grid: ViewGrid, plan: Rectification, size: int) -> ViewGrid:
    """Return the grid with its pictures turned and zoomed; what lies beyond the old pictures is white.

    Args:
        grid: the clip at full size.
        plan: of `plan_rectification`.
        size: of the new pictures, pixels.
    """
    masks = masks_of(grid)
    # Where pictures shrink, several samples a pixel keep fine lines from breaking up.
    samples = max(1, math.ceil(grid.images.shape[2] / (size * plan.zoom)))
    images = torch.empty(grid.n_frames, grid.n_views + 1, size, size, 3)
    opacity = torch.empty(images.shape[:4])
    for v, matrix in enumerate(plan.to_source):
        lattice = _lattice(matrix, size * samples)
        for t in range(grid.n_frames):
            # Ink instead of colour: beyond the old picture there is none.
            planes = torch.cat([1 - grid.images[t, v], masks[t, v, ..., None]], dim=-1).movedim(-1, 0)
            new = F.grid_sample(planes[None], lattice, mode="bicubic", align_corners=False)
            new = F.avg_pool2d(new, samples)[0].clamp(0, 1).movedim(0, -1)
            images[t, v], opacity[t, v] = 1 - new[..., :3], new[..., 3]
    return replace(grid, images=images, masks=opacity, cameras=plan.cameras, latents=None)


def _focal(cameras: Cameras) -> float:
    """Return the focal length in half sides of the picture."""
    return 1 / math.tan(math.radians(cameras.fov_deg) / 2)


def _reach(grid: ViewGrid, from_source: Tensor) -> float:
    """Return the largest distance, right or down, of the object from the middle of any new picture."""
    height, reach = grid.images.shape[2], 0.0
    for covered, matrix in zip(masks_of(grid).amax(0) >= _LEAST_OPACITY, from_source, strict=True):
        rows, columns = covered.nonzero().unbind(-1)
        middle = torch.stack([columns, rows], dim=-1).double() + 0.5
        corners = torch.tensor([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]]).double()
        places = (middle[:, None] + corners).flatten(0, 1) / height * 2 - 1
        x, y, z = (F.pad(places, (0, 1), value=1.0) @ matrix.T).unbind(-1)
        if len(x):
            reach = max(reach, float((torch.stack([x, y]) / z).abs().max()))
    if reach == 0:
        raise ValueError("Expected an object; the masks are empty in all views.")
    return reach


def _lattice(matrix: Tensor, size: int) -> Tensor:
    """Return where the pixels of a new picture lie in the old one, [1, size, size, 2] in -1..1."""
    middle = (torch.arange(size).double() + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    old = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ matrix.T
    return (old[..., :2] / old[..., 2:]).float()[None]
