"""Scenes of the procedural world for training: any object, seen from many cameras at a few moments."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..cameras import Cameras
from ..views import ViewGrid
from ..world.creature import parts_at
from ..world.distribution import TRAINING_SEEDS, draw_object
from ..world.framing import framed
from ..world.render import render_parts

ELEVATIONS_DEG = (-10.0, 40.0)
# Seconds do not exist in the world: a frame's share of an object's whole motion, slow to fast.
_FRAME_STEP = (0.02, 0.1)
# Between the first scenes of neighbouring seeds.
_APART = 0x9E3779B1
# How far the object reaches from the middle of the picture, in halves of its side.
_FILL = (0.8, 0.95)


@dataclass(frozen=True)
class ProceduralScenes:
    """Seeded scenes without end; scene ``i`` is the same on every machine.

    Args:
        seed: another seed gives other objects, cameras and times.
        size: H and W, pixels.
        n_cameras: cameras per scene, any of which may be the input view.
        n_frames: moments per scene.
        ring_share: share of the scenes with cameras all around at one elevation, as the official orbits have
            them; the others are seen from cameras anywhere.
    """

    seed: int = 0
    size: int = 32
    n_cameras: int = 12
    n_frames: int = 4
    ring_share: float = 0.9

    def scene(self, index: int) -> ViewGrid:
        """Return scene ``index`` with its masks."""
        # A generator uses no more than 32 bits of its seed.
        dice = torch.Generator("cpu").manual_seed((self.seed * _APART + index) % 2**32)
        thing = draw_object(int(torch.randint(len(TRAINING_SEEDS), (), generator=dice)))
        cameras = self._cameras(dice)
        step = float(_between(*_FRAME_STEP, torch.rand((), generator=dice)))
        step = min(step, 1 / max(1, self.n_frames - 1))
        start = float(torch.rand((), generator=dice)) * (1 - step * (self.n_frames - 1))
        times = start + step * torch.arange(self.n_frames, dtype=torch.float64)
        fill = float(_between(*_FILL, torch.rand((), generator=dice)))
        rendering = render_parts(framed(parts_at(thing, times), cameras, fill), cameras, self.size)
        return ViewGrid(rendering.rgb, cameras, rendering.mask, times=tuple(times.tolist()))

    def _cameras(self, dice: torch.Generator) -> Cameras:
        n = self.n_cameras
        if float(torch.rand((), generator=dice)) < self.ring_share:
            azimuths = 360 * torch.arange(n) / n
            elevations = _between(*ELEVATIONS_DEG, torch.rand((), generator=dice)).expand(n)
        else:
            azimuths = 360 * torch.rand(n, generator=dice)
            elevations = _between(*ELEVATIONS_DEG, torch.rand(n, generator=dice))
        relative = (elevations - elevations[0]).tolist()
        turned = ((azimuths - azimuths[0]) % 360).tolist()
        return Cameras(tuple(relative), tuple(turned), input_elevation_deg=float(elevations[0]))


def _between(low: float, high: float, share: torch.Tensor) -> torch.Tensor:
    return low + (high - low) * share
