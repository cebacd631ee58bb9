"""How well a mesh that moves follows a scene: silhouettes, deviation, acceleration, file size.

    python tests/bench/moving_meshes.py SCENE.safetensors ... [--faces 20000] [--resolution 128] [--browser]

Silhouettes are compared with the scene's own pictures from all cameras that it was fitted to. With --browser
three.js plays the GLB, too (see `tests/three/viewer.py`), at every third frame seen from two of the cameras.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "three"))

import viewer
from silhouettes import overlap, silhouette

from sv4d2_core.export.glb import write_animated_glb
from sv4d2_core.scene.scene import Scene4D, own_cameras
from sv4d2_core.scene.store import load_scene
from sv4d2_core.scene.tracking.track import Tracked, coherence, track

_OPAQUE = 0.5


HEADS = (
    "scene | IoU tracked, mean (worst) | IoU frame by frame | IoU in three.js | largest deviation"
    " | acceleration tracked / nearest | MB | s"
)


def measure(place: Path, args: argparse.Namespace) -> list[str]:
    """Return the cells of one scene's row."""
    scene = load_scene(place, torch.device("cpu"))
    began = time.perf_counter()
    made = track(scene, tuple(scene.times), args.resolution, args.faces)
    seconds = time.perf_counter() - began
    masks = _scene_masks(scene, args.size)
    tracked, renewed = [], []
    for t, frame in enumerate(made.frames):
        for v in range(masks.shape[1]):
            own = (own_cameras(scene), v, args.size)
            moved = silhouette(made.animation.positions[t], made.animation.faces, *own)
            tracked.append(overlap(moved, masks[t, v]))
            renewed.append(overlap(silhouette(frame.vertices, frame.faces, *own), masks[t, v]))
    steady = coherence(made.animation, made.frames)
    if steady is None:
        raise ValueError(f"{place} has fewer than three frames.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "moving.glb"
        write_animated_glb(file, made.animation)
        return [
            place.stem,
            _mean_and_worst(tracked),
            _mean_and_worst(renewed),
            _mean_and_worst(_played(file, scene, made, masks, args.size)) if args.browser else "-",
            f"{100 * max(made.deviation):.2f} %",
            f"{steady.tracked:.4f} / {steady.nearest:.4f}",
            f"{file.stat().st_size / 1e6:.2f}",
            f"{seconds:.0f}",
        ]


def _mean_and_worst(overlaps: list[float]) -> str:
    return f"{np.mean(overlaps):.3f} ({min(overlaps):.3f})"


def _scene_masks(scene: Scene4D, size: int) -> np.ndarray:
    """Return where the scene is opaque, [T, V, size, size] bool."""
    frames = [scene.render(own_cameras(scene), [time], size).alpha[0] for time in scene.times]
    return torch.stack(frames).numpy() >= _OPAQUE


def _played(file: Path, scene: Scene4D, made: Tracked, masks: np.ndarray, size: int) -> list[float]:
    """Return the IoU of what three.js shows, per picture."""
    cameras, seconds = own_cameras(scene), made.animation.seconds()
    asked = [(t, v) for t in range(0, len(seconds), 3) for v in (0, min(2, masks.shape[1] - 1))]
    intrinsics, poses = cameras.intrinsics(size), cameras.c2w_opengl()
    shots = [viewer.Shot(file, float(seconds[t]), intrinsics, poses[v], size) for t, v in asked]
    pictures, _ = viewer.render(shots)
    return [
        overlap(np.asarray(picture)[..., 3] > 127, masks[t, v])
        for picture, (t, v) in zip(pictures, asked, strict=True)
    ]


def main() -> None:
    """Measure the scenes and print a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("scenes", type=Path, nargs="+")
    parser.add_argument("--faces", type=int, default=20_000)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--size", type=int, default=256, help="of the silhouettes, pixels")
    parser.add_argument("--browser", action="store_true", help="play the GLB in three.js, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.browser and (missing := viewer.missing()):
        parser.error(missing)
    print(f"| {HEADS} |\n" + "|---" * 8 + "|", flush=True)
    for place in args.scenes:
        print("| " + " | ".join(measure(place, args)) + " |", flush=True)


if __name__ == "__main__":
    main()
