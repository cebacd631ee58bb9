"""Closed-form pictures of ellipsoids: colour, opacity, depth and normals from any camera at any time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import Cameras
from ..views import ViewGrid
from .body import Creature, Parts, parts_at
from .coat import shade


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
    samples: int = 2,
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
    samples: int = 2,
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
    samples: int = 2,  # a pixel is the mean of samples x samples rays
    device: torch.device | str = "cpu",
) -> Rendering:
    """Return pictures of ellipsoids by the exact first hit of every ray.

    Raises ValueError for a size or samples below 1, or an ellipsoid that is not in front of a camera.
    """
    if size < 1 or samples < 1:
        raise ValueError(f"Expected size >= 1 and samples >= 1; got {size} and {samples}. Give more.")
    fine = size * samples
    device = torch.device(device)
    n_times, n_cameras = len(parts.centres), cameras.n_views + 1
    windows = _windows(parts, cameras, fine)
    centres, rotations, radii = (
        values.to(device, torch.float32) for values in (parts.centres, parts.rotations, parts.radii)
    )
    coat = parts.coat.to(device, torch.float32)
    background = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], device=device)
    pictures = background.repeat(n_times, n_cameras, size, size, 1)
    for v in range(n_cameras):
        # One view at a time: the rays of a long orbit at full size would fill the memory.
        eye, directions = (values[0].to(device, torch.float32) for values in cameras.rays(fine, [v]))
        for t in range(n_times):
            frame = Parts(centres[t], rotations[t], radii, coat, parts.light)
            # The pixels that hold all ellipsoids; windows count rays.
            top, left = (windows[t, v, :, ::2].amin(0) // samples).tolist()
            bottom, right = (-(-windows[t, v, :, 1::2].amax(0) // samples)).tolist()
            rays = directions[top * samples : bottom * samples, left * samples : right * samples]
            if rays.numel() == 0:
                continue
            corner = torch.tensor([top, top, left, left]) * samples
            surface = _surface(frame, eye, rays, (windows[t, v] - corner).tolist())
            pictures[t, v, top:bottom, left:right] = _average(surface, samples)
    rgb, mask, depth, normal = pictures.split([3, 1, 1, 3], dim=-1)
    return Rendering(rgb.contiguous(), mask[..., 0].clone(), depth[..., 0].clone(), normal.contiguous())


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


def _surface(parts: Parts, eye: Tensor, directions: Tensor, windows: list[list[int]]) -> Tensor:
    """Return colour, opacity, depth and normal of every ray's first hit, [N, N, 8]; zeros where it misses."""
    distance = torch.full(directions.shape[:2], torch.inf, device=eye.device)
    part = torch.zeros_like(distance, dtype=torch.long)
    to_sphere = (parts.rotations / parts.radii[:, None, :]).mT  # [P, 3, 3]: ellipsoids become unit spheres
    origins = torch.einsum("pij,pj->pi", to_sphere, eye - parts.centres)
    for p, (top, bottom, left, right) in enumerate(windows):
        window = (slice(top, bottom), slice(left, right))
        nearest = distance[window]
        depth = _first_hit(origins[p], directions[window] @ to_sphere[p].T)
        part[window].masked_fill_(depth < nearest, p)
        torch.minimum(depth, nearest, out=nearest)

    hit = distance.isfinite()
    index, depth = part[hit], distance[hit][:, None]
    point = origins[index] + depth * torch.einsum("nij,nj->ni", to_sphere[index], directions[hit])
    normals = torch.einsum("nij,nj->ni", parts.rotations[index], point / parts.radii[index])
    normals = torch.nn.functional.normalize(normals, dim=-1)
    colours = shade(parts.coat.albedo(index, point, parts.radii), normals, parts.light)
    surface = directions.new_zeros(*directions.shape[:2], 8)
    surface[hit] = torch.cat([colours, torch.ones_like(depth), depth, normals], dim=-1)
    return surface


def _first_hit(origin: Tensor, directions: Tensor) -> Tensor:
    """Return first hits of the unit sphere ahead, in multiples of the directions [...]; inf for misses.

    The discriminant is taken from the ray's closest point to the centre: the textbook b^2 - ac loses its
    digits in float32 when the sphere is far away or small (Ray Tracing Gems, chapter 7).
    """
    squared = directions.square().sum(-1)
    along = -(directions @ origin) / squared
    closest = origin + along[..., None] * directions
    inside = (1 - closest.square().sum(-1)) / squared
    return torch.where(inside > 0, along - inside.sqrt(), torch.inf)


def _average(surface: Tensor, samples: int) -> Tensor:
    """Return pixels [size, size, 8] from rays [size * samples, size * samples, 8], the colour on white."""
    channels_first = surface.permute(2, 0, 1)[None]
    mean = torch.nn.functional.avg_pool2d(channels_first, samples)[0].permute(1, 2, 0)
    colour, mask, depth, normal = mean.split([3, 1, 1, 3], dim=-1)
    # Samples that miss hold zeros: dividing by the mask leaves the mean over those that hit.
    depth = depth / mask.clamp(min=1e-6)
    normal = torch.nn.functional.normalize(normal, dim=-1)
    return torch.cat([colour + (1 - mask), mask, depth, normal], dim=-1)
