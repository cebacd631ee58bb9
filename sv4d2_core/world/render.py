"""Closed-form pictures of ellipsoids: colour, opacity, depth and normals from any camera at any time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import Cameras
from ..views import ViewGrid
from .body import Creature, Parts, parts_at
from .coat import LOOKS, lit

SAMPLES = 2  # by which each side of a pixel is divided into rays


@dataclass(frozen=True)
class Rendering:
    """Pictures of T times from V + 1 cameras, float32; depth and normals are 0 where the mask is 0."""

    rgb: Tensor  # [T, V + 1, H, W, 3] in 0..1, on white
    mask: Tensor  # [T, V + 1, H, W] opacity in 0..1
    depth: Tensor  # [T, V + 1, H, W] world units along the ray, mean over what a pixel shows of the object
    normal: Tensor  # [T, V + 1, H, W, 3] outward unit normals in the world


def render_creature(
    creature: Creature,
    cameras: Cameras,
    times: Tensor,  # [T] in 0..1
    size: int,
    *,
    samples: int = SAMPLES,
    device: torch.device | str = "cpu",
) -> Rendering:
    """Return pictures of a creature; see `render_parts`."""
    return render_parts(parts_at(creature, times), cameras, size, samples=samples, device=device)


def render_views(
    creature: Creature,
    cameras: Cameras,
    n_frames: int,
    size: int,
    fps: float = 8.0,
    *,
    samples: int = SAMPLES,
    device: torch.device | str = "cpu",
) -> ViewGrid:
    """Return the true grid of views of a creature; frame t shows the time t / (T - 1), or 0 if T is 1."""
    if n_frames < 1:
        raise ValueError(f"Expected at least one frame; got {n_frames}. Give n_frames >= 1.")
    times = torch.linspace(0, 1, n_frames, dtype=torch.float64)
    rendering = render_creature(creature, cameras, times, size, samples=samples, device=device)
    return ViewGrid(rendering.rgb, cameras, rendering.mask, fps)


def render_parts(
    parts: Parts,  # at T times, in front of all cameras
    cameras: Cameras,  # V + 1
    size: int,  # H and W, pixels
    *,
    samples: int = SAMPLES,  # a pixel is the mean of samples x samples rays
    device: torch.device | str = "cpu",
) -> Rendering:
    """Return pictures of ellipsoids by the exact first hit of every ray.

    Raises ValueError for a size or samples below 1, or an ellipsoid that is not in front of a camera.
    """
    if size < 1 or samples < 1:
        raise ValueError(f"Expected size >= 1 and samples >= 1; got {size} and {samples}. Give more.")
    seen, shape = [seen_by(parts, cameras, size * samples)], (len(parts.centres), cameras.n_views + 1)
    pictures = draw(seen, size, samples, cameras.fov_deg, device).unflatten(0, shape)
    rgb, mask, depth, normal = pictures.split([3, 1, 1, 3], dim=-1)
    return Rendering(rgb.contiguous(), mask[..., 0].clone(), depth[..., 0].clone(), normal.contiguous())


def seen_by(parts: Parts, cameras: Cameras, size: int) -> dict[str, Tensor]:
    """Return the tables on the CPU from which `draw` makes T x (V + 1) pictures; ``size`` counts rays.

    Raises ValueError for an ellipsoid that is not in front of a camera.
    """
    to_sphere = (parts.rotations / parts.radii[:, None, :]).mT  # [T, P, 3, 3]: they become unit spheres
    away = cameras.eyes()[:, None] - parts.centres[:, None]  # [T, V + 1, P, 3]
    n_times, n_views, n_parts = away.shape[:3]
    pose = torch.arange(n_times * n_parts, dtype=torch.int32).view(n_times, 1, n_parts)
    tables = {
        # Of each ellipsoid in each picture: its box, its place in the tables of poses, the camera's axes and
        # centre where it is the unit sphere.
        "window": _windows(parts, cameras, size).flatten(0, 2),
        "pose": pose.expand(-1, n_views, -1).flatten(),
        "axes": (to_sphere[:, None] @ cameras.c2w_opengl()[:, None, :3, :3]).flatten(0, 2),
        "eye": (to_sphere[:, None] @ away[..., None]).flatten(0, 3).view(-1, 3),
        # Of each ellipsoid at each time.
        "part": (pose % n_parts).flatten(),
        "rotation": parts.rotations.flatten(0, 1),
        # Of each ellipsoid.
        "radii": parts.radii,
        **parts.coat.looks(parts.light),
    }
    return {
        name: (x.float() if x.is_floating_point() else x.int()).contiguous() for name, x in tables.items()
    }


# Pairs of an ellipsoid and a ray in its box that are worked on at a time, about 200 bytes each, if they are
# of several pictures: a CPU keeps few in its cache, a GPU would wait for the next call.
_PAIRS_AT_A_TIME = {"cpu": 2**17}
_MANY_PAIRS = 2**23


def draw(
    scenes: Sequence[Mapping[str, Tensor]],  # of `seen_by`, with equal numbers of pictures
    size: int,
    samples: int,
    fov_deg: float,
    device: torch.device | str,
) -> Tensor:
    """Return the pictures of all scenes, [N, size, size, 8]: RGB on white, opacity, depth and normal."""
    device, fine = torch.device(device), size * samples
    n_pictures = len(scenes[0]["pose"]) // (len(scenes[0]["radii"]))
    tables = {name: torch.cat([scene[name] for scene in scenes]) for name in scenes[0]}
    sizes = [[len(scene[name]) for scene in scenes] for name in ("pose", "part", "radii")]
    for name, counts, lengths in (("pose", sizes[1], sizes[0]), ("part", sizes[2], sizes[1])):
        first = torch.tensor([0, *counts[:-1]]).cumsum(0)
        tables[name] = tables[name].long() + first.repeat_interleave(torch.tensor(lengths))
    per_picture = torch.tensor([len(scene["radii"]) for scene in scenes]).repeat_interleave(n_pictures)
    top, bottom, left, right = tables.pop("window").long().unbind(-1)
    width = (right - left).clamp(min=0)
    area = width * (bottom - top).clamp(min=0)
    picture = torch.arange(len(per_picture)).repeat_interleave(per_picture)
    boxes = torch.stack([top, left, width, area, picture])
    pairs = torch.zeros(len(per_picture), dtype=torch.long).index_add_(0, picture, area).cumsum(0)
    ends, limit = per_picture.cumsum(0), _PAIRS_AT_A_TIME.get(device.type, _MANY_PAIRS)

    on_device = {name: x.to(device) for name, x in tables.items()}
    directions = _directions(fine, fov_deg).to(device)
    pictures, begun = [], 0
    while begun < len(per_picture):
        before = int(pairs[begun - 1]) if begun else 0
        end = max(begun + 1, int(torch.searchsorted(pairs, before + limit, right=True)))
        rows = slice(int(ends[begun - 1]) if begun else 0, int(ends[end - 1]))
        boxes_now = boxes[:, rows].clone()
        boxes_now[4] -= begun
        total = int(pairs[end - 1]) - before
        surface = _surface(on_device, rows, boxes_now.to(device), total, directions, end - begun)
        pictures.append(_average(surface.view(end - begun, fine, fine, 8), samples))
        begun = end
    return torch.cat(pictures)


def _directions(size: int, fov_deg: float) -> Tensor:
    """Return the directions of a camera's rays in its own axes (OpenGL), [size * size, 3] of length 1."""
    offset = (torch.arange(size, dtype=torch.float64) + 0.5) * 2 / size - 1
    offset = offset * math.tan(math.radians(fov_deg) / 2)
    y, x = torch.meshgrid(offset, offset, indexing="ij")
    rays = torch.nn.functional.normalize(torch.stack([x, -y, -torch.ones_like(x)], -1), dim=-1)
    return rays.float().view(-1, 3)


def _windows(parts: Parts, cameras: Cameras, size: int) -> Tensor:
    """Return the pixel box (top, bottom, left, right) of every ellipsoid, [T, V + 1, P, 4] integers.

    The outline of an ellipsoid is a conic; its dual is M Q M^T with the 3 x 4 camera matrix M and the dual
    quadric Q (Hartley and Zisserman, Multiple View Geometry, chapter 8); its upright tangents are the box.
    """
    to_pixels = cameras.intrinsics(size) @ cameras.w2c_opencv()[:, :3]  # [V + 1, 3, 4]
    shape = (parts.rotations * parts.radii.square()[:, None, :]) @ parts.rotations.mT
    centre = torch.nn.functional.pad(parts.centres, (0, 1), value=1.0)  # homogeneous
    dual = torch.nn.functional.pad(shape, (0, 1, 0, 1)) - centre[..., :, None] * centre[..., None, :]
    conic = torch.einsum("vij,tpjk,vlk->tvpil", to_pixels, dual, to_pixels)
    forward = torch.einsum("vj,tpj->tvp", to_pixels[:, 2], centre)
    if bool(((conic[..., 2, 2] >= 0) | (forward <= 0)).any()):
        raise ValueError(
            f"Expected all ellipsoids in front of the cameras; one reaches a camera plane at radius "
            f"{cameras.radius:g}. Use a larger camera radius or a smaller object."
        )
    middle = conic[..., :2, 2] / conic[..., 2:, 2]
    spread = torch.stack([conic[..., 0, 0], conic[..., 1, 1]], -1) / conic[..., 2:, 2]
    reach = (middle.square() - spread).sqrt()
    low = (middle - reach).floor().clamp(0, size)
    high = (middle + reach).ceil().clamp(0, size)
    return torch.stack([low[..., 1], high[..., 1], low[..., 0], high[..., 0]], dim=-1).long()


_INFINITY = 0x7F800000  # the bits of a float32; those of positive numbers are in the order of the numbers


def _surface(
    tables: Mapping[str, Tensor], rows: slice, boxes: Tensor, total: int, directions: Tensor, n_pictures: int
) -> Tensor:
    """Return colour, opacity, depth and normal of every ray's first hit, [N rays, 8]; zeros where it misses.

    ``boxes`` [5, K]: top, left, width, area and picture of the ``rows`` of the tables; their areas are
    ``total`` pairs of a box and a ray.
    """
    n_rays = len(directions)
    fine = math.isqrt(n_rays)
    top, left, width, area, picture = boxes
    device = boxes.device
    box = torch.repeat_interleave(torch.arange(len(area), device=device), area, output_size=total)
    inside = torch.arange(total, device=device) - (area.cumsum(0) - area)[box]
    across = width[box]
    down = torch.div(inside, across, rounding_mode="floor")
    ray = (top[box] + down) * fine + left[box] + inside - down * across
    axes, eyes = tables["axes"][rows], tables["eye"][rows]
    local = (axes[box] * directions[ray][:, None, :]).sum(-1)
    depth = _first_hit(eyes[box], local)

    # The nearest pair of each ray, of equals the first, as whole numbers: depth in front, the pair behind.
    pair = (depth.view(torch.int32).long() << 32) + torch.arange(total, device=device)
    nearest = torch.full((n_pictures * n_rays,), _INFINITY << 32, device=device)
    nearest.scatter_reduce_(0, picture[box] * n_rays + ray, pair, "amin")
    hit = (nearest < _INFINITY << 32).nonzero()[:, 0]
    pair = nearest[hit] & 0xFFFFFFFF
    depth, box = depth[pair][:, None], box[pair]
    point = eyes[box] + depth * local[pair]
    pose = tables["pose"][rows][box]
    part = tables["part"][pose]
    radii = tables["radii"][part]
    normals = (tables["rotation"][pose] * (point / radii)[:, None, :]).sum(-1)
    normals = torch.nn.functional.normalize(normals, dim=-1)
    looks = {name: tables[name][part] for name in LOOKS}
    colours = lit(looks, point, point * radii, normals)
    surface = directions.new_zeros(n_pictures * n_rays, 8)
    surface[hit] = torch.cat([colours, torch.ones_like(depth), depth, normals], dim=-1)
    return surface


def _first_hit(origins: Tensor, directions: Tensor) -> Tensor:
    """Return first hits of the unit sphere ahead [N], in multiples of the directions [N, 3]; inf for misses.

    The discriminant is taken from the ray's closest point to the centre: the textbook b^2 - ac loses its
    digits in float32 when the sphere is far away or small (Ray Tracing Gems, chapter 7).
    """
    squared = directions.square().sum(-1)
    along = -(directions * origins).sum(-1) / squared
    closest = origins + along[..., None] * directions
    inside = (1 - closest.square().sum(-1)) / squared
    return torch.where(inside > 0, along - inside.sqrt(), torch.inf)


def _average(surface: Tensor, samples: int) -> Tensor:
    """Return pixels [N, size, size, 8] from rays [N, size * samples, size * samples, 8], on white."""
    mean = torch.nn.functional.avg_pool2d(surface.permute(0, 3, 1, 2), samples).permute(0, 2, 3, 1)
    colour, mask, depth, normal = mean.split([3, 1, 1, 3], dim=-1)
    # Samples that miss hold zeros: dividing by the mask leaves the mean over those that hit.
    depth = depth / mask.clamp(min=1e-6)
    normal = torch.nn.functional.normalize(normal, dim=-1)
    return torch.cat([colour + (1 - mask), mask, depth, normal], dim=-1)
