"""What a backend does for the loop of `fit.py`: it holds a scene and adds up the gradients of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..views import ViewGrid
from .scene import Scene4D


@dataclass(frozen=True)
class Draw:
    """What one step looks at.

    Args:
        step: 0..total_steps - 1.
        frames: [F] int64 indices of frames, on the CPU.
        n_views: views per frame, the input view 0 always among them.
        timed: False while the anchor frame is fitted alone: the scene then knows no time.
        generator: on the CPU; every random number of the step comes from it.
        admitted: the first and the last frame that a step may look at; None: all may be.
        known: the first and the last frame that were admitted before this step, where others come in with
            it; else None.
    """

    step: int
    frames: Tensor
    n_views: int
    timed: bool
    generator: torch.Generator
    admitted: tuple[int, int] | None = None
    known: tuple[int, int] | None = None


class SceneFit(Protocol):
    """A scene that is being fitted."""

    @property
    def scene(self) -> Scene4D:
        """The scene, which changes with every step."""
        ...

    def groups(self) -> list[dict]:
        """Return the optimiser's groups: ``params``, and ``rate`` for the learning rate at step 0."""
        ...

    def aim(self, views: ViewGrid, weights: Tensor, normals: Tensor | None = None) -> None:
        """Fit to these views from now on.

        Args:
            views: checked, with masks; the frames and the picture size never change, the cameras may.
            weights: [T, V + 1, H, W] how much a pixel's colour counts.
            normals: [T, V + 1, H, W, 3] unit in the camera's OpenGL axes, 0 where not known, or None.
        """
        ...

    def prepare(self, draw: Draw) -> None:
        """Do what is due before a step: refresh, prune, move. The shapes of parameters stay the same."""
        ...

    def accumulate(self, draw: Draw) -> float:
        """Add the gradients of one step to the parameters and return its loss."""
        ...

    def knobs(self) -> str:
        """Return the settings, with their values, that are too high where a fit diverges."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of everything but the optimiser that decides how the fit goes on."""
        ...

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` returned."""
        ...
