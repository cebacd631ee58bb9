"""A camera that goes around a scene while its motion is played."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from ..cameras import Cameras
from .scene import Scene4D, SceneRendering

_MAPS = ("rgb", "alpha", "depth", "normal")


def turntable(
    scene: Scene4D,
    cameras: Cameras,
    n_pictures: int,
    size: int,
    *,
    turns: float = 1.0,
    callback: Callable[[int, int], None] | None = None,
) -> tuple[SceneRendering, Cameras]:
    """Return pictures [1, N, ...] around the scene, its motion to and fro at its own pace, and their cameras.

    Args:
        scene: to be seen.
        cameras: give radius, field of view and the input's elevation.
        n_pictures: N.
        size: of the pictures, pixels.
        turns: around the scene; negative: the other way.
        callback: called with (pictures done, all pictures); may raise to cancel.

    Raises:
        ValueError: fewer than two pictures.
    """
    if n_pictures < 2:
        raise ValueError(f"Expected at least 2 pictures of a turntable; got {n_pictures}. Raise frames.")
    azimuths = tuple(360 * turns * i / n_pictures for i in range(n_pictures))
    around = replace(cameras, elevations_deg=(0.0,) * n_pictures, azimuths_deg=azimuths)
    seen = []
    for i, time in enumerate(_to_and_fro(n_pictures, scene.times)):
        seen.append(scene.render(around, [time], size, views=[i]))
        if callback is not None:
            callback(i + 1, n_pictures)
    parts = [torch.cat([getattr(one, name) for one in seen], dim=1) for name in _MAPS]
    return SceneRendering(*parts), around


def _to_and_fro(count: int, times: tuple[float, ...]) -> list[float]:
    """Return ``count`` of the times, which run to the end and back."""
    last = max(len(times) - 1, 1)
    places = [i % (2 * last) for i in range(count)]
    return [times[min(place, 2 * last - place, len(times) - 1)] for place in places]
