"""Prints what given views could give at best, without any prior: the true shape in colours copied from them.

    python tests/bench/ceiling.py [--scenes owl butterfly] [--size 64] [--rig sv4d2]

Every point has the colour of the view that sees it most squarely, read bilinearly; what no view sees, that of
the nearest point that one does. "seen" is the share of the surface in the pictures of `HELD_OUT` that a view
sees at the same time. As the shape is the true one, foreground and union PSNR are the same.
"""

import argparse

import torch
from torch import Tensor
from torch.nn import functional as F

from sv4d2_core.cameras import OFFICIAL_AZIMUTHS_DEG, Cameras
from sv4d2_core.metrics.image import psnr
from sv4d2_core.views import ViewGrid
from sv4d2_core.world.render import Rendering, render_creature
from sv4d2_core.world.suite import HELD_OUT, SCENE_NAMES, BenchmarkScene, benchmark_scenes

# Rays per pixel and axis of the pictures, as the benchmark's own, and of the maps of what the cameras see.
_SAMPLES, _FINE = 2, 4
# Distance, world units, below which a point is the surface on a pixel's ray, and the cosine of the most
# slanting way in which a camera sees it.
_SAME_SURFACE, _LEAST_COSINE = 0.02, 0.1


def ceiling(scene: BenchmarkScene, shown: ViewGrid) -> tuple[float, float]:
    """Return the PSNR in dB and the share that is seen, means over frames and novel views of `HELD_OUT`."""
    size, times = shown.images.shape[2], torch.tensor(shown.frame_times(), dtype=torch.float64)
    truth = scene.views(HELD_OUT, size)
    known = render_creature(scene.creature, shown.cameras, times, size * _FINE, samples=1)
    fine = render_creature(scene.creature, HELD_OUT, times, size * _SAMPLES, samples=1)
    eyes, rays = (x.float() for x in HELD_OUT.rays(size * _SAMPLES))
    rows = []
    for t in range(len(times)):
        for v in range(1, HELD_OUT.n_views + 1):
            hit = fine.mask[t, v] > 0
            points = eyes[v] + fine.depth[t, v][hit][:, None] * rays[v][hit]
            colours, cosines = _in_views(points, fine.normal[t, v][hit], shown, known, t)
            seen = cosines.amax(dim=0) > 0
            copied = colours[cosines.argmax(dim=0), torch.arange(len(points))]
            copied[~seen] = copied[seen][torch.cdist(points[~seen], points[seen]).argmin(dim=1)]
            picture = torch.ones(*hit.shape, 3)
            picture[hit] = copied
            picture = F.avg_pool2d(picture.movedim(-1, 0)[None], _SAMPLES).movedim(1, -1)
            decibels = psnr(picture, truth.images[t, v][None], truth.masks[t, v][None])
            rows.append((float(decibels), float(seen.double().mean())))
    decibels, share = torch.tensor(rows, dtype=torch.float64).mean(dim=0).tolist()
    return decibels, share


def _in_views(
    points: Tensor, normals: Tensor, shown: ViewGrid, known: Rendering, t: int
) -> tuple[Tensor, Tensor]:
    """Return the colours [V + 1, N, 3] of surface points [N, 3] in all views, and how squarely they are seen.

    That is the cosine [V + 1, N] between normal and ray, 0 where a view does not see the point.
    """
    size, cameras = shown.images.shape[2], shown.cameras
    to_pixels = (cameras.intrinsics(size) @ cameras.w2c_opencv()[:, :3]).float()
    pixels = torch.einsum("vij,nj->vni", to_pixels[..., :3], points) + to_pixels[:, None, :, 3]
    places = (pixels[..., :2] / pixels[..., 2:] * (2 / size) - 1)[:, None]
    # Ink alone is read: the white around the object is none of its colours.
    ink = torch.cat([shown.images[t] - (1 - shown.masks[t][..., None]), shown.masks[t][..., None]], dim=-1)
    values = F.grid_sample(ink.movedim(-1, 1), places, align_corners=False)[:, :, 0].mT
    colours = (values[..., :3] / values[..., 3:].clamp(min=0.2)).clamp(0, 1)
    first = F.grid_sample(known.depth[t][:, None], places, mode="nearest", align_corners=False)[:, 0, 0]
    ways = cameras.eyes().float()[:, None] - points
    distances = ways.norm(dim=-1)
    cosines = (ways * normals).sum(dim=-1) / distances
    visible = ((first - distances).abs() < _SAME_SURFACE) & (cosines > _LEAST_COSINE)
    return colours, torch.where(visible, cosines, 0)


def main() -> None:
    """Print a row per scene, then the means."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scenes", nargs="+", default=SCENE_NAMES, choices=SCENE_NAMES)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rig", default="sv4d2", choices=tuple(OFFICIAL_AZIMUTHS_DEG))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| scene | ceiling dB | seen |\n|---|---|---|")
    rows = []
    for scene in benchmark_scenes():
        if scene.name in args.scenes:
            rows.append(ceiling(scene, scene.views(Cameras.official(args.rig), args.size)))
            print(f"| {scene.name} | {rows[-1][0]:.2f} | {rows[-1][1]:.3f} |", flush=True)
    decibels, share = torch.tensor(rows, dtype=torch.float64).mean(dim=0).tolist()
    print(f"| mean | {decibels:.2f} | {share:.3f} |")


if __name__ == "__main__":
    main()
