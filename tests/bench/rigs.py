"""Prints what a rig's views are worth for a scene, one row per rig.

    python tests/bench/rigs.py [--rigs official 4d] [--scenes owl] [--steps 200] [--corrupt 1] [--seed 0]

One frame of each benchmark scene is fitted small (16 features, 512 rays per step), so that many rigs can be
compared. Means over the scenes, of the five cameras of `HELD_OUT`, then of four from 60 degrees above and of
four from 25 below: foreground PSNR. "ghost" is the opacity beside the true mask as a share of it, from above.
"""

import argparse
import time
from dataclasses import replace

import torch

from sv4d2_core.cameras import OFFICIAL_AZIMUTHS_DEG, Cameras
from sv4d2_core.metrics.image import mask_iou, psnr
from sv4d2_core.scene.config import RefineConfig
from sv4d2_core.scene.refine import refine_scene
from sv4d2_core.scene.scene import Scene4D
from sv4d2_core.views import ViewGrid
from sv4d2_core.world.suite import HELD_OUT, SCENE_NAMES, BenchmarkScene, benchmark_scenes, corrupt_views

COLUMNS = ("PSNR fg", "PSNR union", "mask IoU", "from above", "from below", "ghost", "s")
FRAME, SIZE = 6, 64
FROM_ABOVE = Cameras((0, 60, 60, 60, 60), (0, 10, 100, 190, 280))
FROM_BELOW = Cameras((0, -25, -25, -25, -25), (0, 20, 110, 200, 290))


def _ring(azimuths: tuple[float, ...], *elevations: float) -> tuple[tuple[float, float], ...]:
    """Return pairs of azimuth and elevation, the elevations again and again."""
    return tuple((azimuth, elevations[i % len(elevations)]) for i, azimuth in enumerate(azimuths))


_OFFICIAL, _EIGHT = (OFFICIAL_AZIMUTHS_DEG[variant][1:] for variant in ("sv4d2", "sv4d2_8views"))
_EVEN, _BETWEEN, _FOR_SCENES = (72, 144, 216, 288), (90, 150, 210, 300), Cameras.for_scenes()
# Novel views of a rig, (azimuth, elevation).
RIGS = {
    "official": _ring(_OFFICIAL, 0),
    "even": _ring(_EVEN, 0),
    "official at 30, -15": _ring(_OFFICIAL, 30, -15),
    "official at 0, 30": _ring(_OFFICIAL, 0, 30),
    "official at 20": _ring(_OFFICIAL, 20),
    "even at 30, -15": _ring(_EVEN, 30, -15),
    "even at 0, 30": _ring(_EVEN, 0, 30),
    "eight official": _ring(_EIGHT, 0),
    "eight official at 0, 30": _ring(_EIGHT, 0, 30),
    "official and 4 between at 30": _ring(_OFFICIAL, 0) + _ring(_BETWEEN, 30),
    "official and 4 between at 30, -20": _ring(_OFFICIAL, 0) + _ring(_BETWEEN, 30, -20),
    "official and 4 between at 45, -20": _ring(_OFFICIAL, 0) + _ring(_BETWEEN, 45, -20),
    "even and 4 between at 30": _ring(_EVEN, 0) + _ring((36, 108, 252, 324), 30),
    "4d": _ring(_FOR_SCENES.azimuths_deg[1:], *_FOR_SCENES.elevations_deg[1:]),
    "twelve in three passes": _ring(_OFFICIAL, 0) + _ring(_BETWEEN, 30) + _ring((30, 90, 210, 300), -20),
    "twelve even": _ring(tuple(360 / 13 * k for k in range(1, 13)), 0),
}


def of_one_frame(scene: BenchmarkScene, cameras: Cameras) -> ViewGrid:
    """Return the true views of the scene's frame alone."""
    grid = scene.views(cameras, SIZE)
    assert grid.masks is not None
    return replace(grid, images=grid.images[[FRAME]], masks=grid.masks[[FRAME]], times=(0.0,))


def scores(scene: BenchmarkScene, fitted: Scene4D) -> list[float]:
    """Return the columns of one fit, the seconds left out."""
    found = []
    for cameras in (HELD_OUT, FROM_ABOVE, FROM_BELOW):
        seen = fitted.render(cameras, [0.0], SIZE)
        images, masks = (x[0, 1:].clamp(0, 1) for x in (seen.rgb, seen.alpha))
        true, solid = of_one_frame(scene, cameras).all_views(include_input=False)
        found.append(float(psnr(images, true, solid).mean()))
        if cameras is HELD_OUT:
            found.append(float(psnr(images, true, torch.maximum(masks, solid)).mean()))
            found.append(float(mask_iou(masks, solid).mean()))
        if cameras is FROM_ABOVE:
            ghost = float((masks * (solid < 0.01)).sum() / solid.sum())
    return [*found, ghost]


def main() -> None:
    """Fit every scene to the views of every rig and print the means."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rigs", nargs="+", default=tuple(RIGS), choices=tuple(RIGS))
    parser.add_argument("--scenes", nargs="+", default=SCENE_NAMES, choices=SCENE_NAMES)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--corrupt", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    config = RefineConfig(weight_by_trust=args.corrupt > 0, features=16, rays_per_step=512, seed=args.seed)
    config = config.with_steps(args.steps, 1)
    print("| rig | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    for name in args.rigs:
        azimuths, elevations = zip(*((0, 0), *RIGS[name]), strict=True)
        rows, began = [], time.perf_counter()
        for number, scene in enumerate(benchmark_scenes()):
            if scene.name in args.scenes:
                given = of_one_frame(scene, Cameras(elevations, azimuths))
                shown = corrupt_views(given, args.seed * 100 + number, args.corrupt)
                rows.append(scores(scene, refine_scene(shown, config, input_elevation_deg=0.0)))
        means = torch.tensor(rows, dtype=torch.float64).mean(dim=0).tolist()
        cells = [*(f"{mean:.2f}" if mean > 1.5 else f"{mean:.3f}" for mean in means)]
        print(f"| {name} | {' | '.join(cells)} | {time.perf_counter() - began:.0f} |", flush=True)


if __name__ == "__main__":
    main()
