"""The benchmark: ten fixed scenes whose every view at every time is known exactly.

A method is shown the frame times from a training rig, `Cameras.official("sv4d2")` or
`Cameras.official("sv4d2_8views")`. It is judged on the views of `HELD_OUT`, at the frame times and half-way
between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..cameras import Cameras
from ..views import ViewGrid
from .anatomy import fitted, make_creature
from .animals import butterfly, flamingo, owl
from .creature import Creature
from .render import render_creature
from .toys import aeroplane, carousel, robot_arm, rocking_horse, windmill

TRAITS = ("slow", "fast", "rigid", "articulated", "thin", "self-occluded", "textured", "crossing")
# Views that are on neither training rig, most of them lifted or lowered.
HELD_OUT = Cameras((0, 0, 20, 0, -10, 30), (0, 45, 150, 195, 285, 20))


@dataclass(frozen=True)
class BenchmarkScene:
    """One moving object of the benchmark.

    Args:
        name: unique, fit for a file name.
        what: one sentence, what is hard about it.
        traits: out of `TRAITS`.
        creature: the object and its motion.
        n_frames: T, the times t / (T - 1) that a method is shown.
    """

    name: str
    what: str
    traits: tuple[str, ...]
    creature: Creature
    n_frames: int = 12

    def views(self, cameras: Cameras, size: int) -> ViewGrid:
        """Return the true views at the T frame times, with masks."""
        return self._at(torch.linspace(0, 1, self.n_frames, dtype=torch.float64), cameras, size)

    def between(self, cameras: Cameras, size: int) -> ViewGrid:
        """Return the true views at the T - 1 times half-way between two frames, with masks."""
        frames = torch.linspace(0, 1, self.n_frames, dtype=torch.float64)
        return self._at((frames[:-1] + frames[1:]) / 2, cameras, size)

    def _at(self, times: Tensor, cameras: Cameras, size: int) -> ViewGrid:
        rendering = render_creature(self.creature, cameras, times, size)
        return ViewGrid(
            rendering.rgb,
            cameras,
            rendering.mask,
            settings={"scene": self.name},
            times=tuple(times.tolist()),
        )


def benchmark_scenes() -> tuple[BenchmarkScene, ...]:
    """Return the ten scenes, the same on every machine."""
    return tuple(BenchmarkScene(name, what, traits, make()) for name, what, traits, make in _SCENES)


def _walker() -> Creature:
    """Return a spotted animal that walks on the spot."""
    return make_creature(10)


def _runner() -> Creature:
    """Return a fox that runs from the left of the input view to its right."""
    fox = make_creature(0)
    return fitted(replace(fox, heading_deg=80.0, cycles=2, path=(0.0, 0.0, 1.55), marking_frequency=11.0))


_SCENES: tuple[tuple[str, str, tuple[str, ...], Callable[[], Creature]], ...] = (
    (
        "walker",
        "Legs that look alike pass in front of each other, under a coat of dark patches.",
        ("slow", "articulated", "textured"),
        _walker,
    ),
    (
        "runner",
        "A fox crosses the picture, small in it, and its legs move on by a fifth of a stride per frame.",
        ("fast", "articulated", "crossing"),
        _runner,
    ),
    (
        "rocking_horse",
        "One rigid body with thin runners rocks gently: every error of shape shows as false motion.",
        ("slow", "rigid", "textured"),
        rocking_horse,
    ),
    (
        "windmill",
        "Thin sails turn by a seventh of a turn per frame in front of a tower that stands still.",
        ("fast", "articulated", "thin"),
        windmill,
    ),
    (
        "carousel",
        "Ponies on thin poles vanish behind a striped drum; one of them is hidden in frame 0.",
        ("articulated", "thin", "self-occluded", "textured"),
        carousel,
    ),
    (
        "robot_arm",
        "Four joints in a row add up their small turns at a gripper far from the base.",
        ("slow", "articulated"),
        robot_arm,
    ),
    (
        "aeroplane",
        "A rigid biplane crosses the picture and rolls over: no view sees one side of it for long.",
        ("fast", "rigid", "crossing"),
        aeroplane,
    ),
    (
        "flamingo",
        "Legs two pixels wide at 64 pixels, with little colour to tell the parts apart.",
        ("slow", "articulated", "thin"),
        flamingo,
    ),
    (
        "owl",
        "The face is on the far side of the head in frame 0 and turns to the input view.",
        ("slow", "articulated", "self-occluded", "textured"),
        owl,
    ),
    (
        "butterfly",
        "Flat wings, edge-on in some views, move on by a fifth of a beat per frame.",
        ("fast", "articulated", "thin", "textured"),
        butterfly,
    ),
)

SCENE_NAMES = tuple(name for name, *_ in _SCENES)
