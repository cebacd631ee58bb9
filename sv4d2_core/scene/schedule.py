"""Which frames a step may look at: all of them, or outward from an anchor while the motion is large.

Source: specification of the 4D part, section 2.5. The anchor is fitted first, its neighbours follow ring by
ring, and frames that were admitted before are seen again (replay) so that they are not forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..views import ViewGrid
from .scene import Scene4D

# All frames are admitted when this share of the steps is done, in this many equal rings.
_GROWTH_PERCENT = 35
_RINGS = 5
# Mean mask IoU with the anchor frame up to which the motion counts as large. The benchmark's slow scenes lie
# between 0.67 and 0.94, the fast ones that cross the picture at 0.23 and 0.28.
_LARGE_MOTION_IOU = 0.3


def anchor_frame(masks: Tensor) -> int:
    """Return the frame with the largest mask area summed over the views of ``masks`` [T, V + 1, H, W].

    The first of equal ones. The largest picture of the object hides least of it.

    Raises:
        ValueError: no frame, or not four dimensions.
    """
    _check_masks(masks)
    return int(masks.sum(dim=(1, 2, 3), dtype=torch.float64).argmax())


def motion_score(masks: Tensor, anchor: int) -> float:
    """Return how alike the silhouettes stay, 0..1: mean mask IoU of every frame and view with the anchor.

    A pixel belongs to the object above an opacity of 0.5; views that are empty in both frames are equal.

    Args:
        masks: [T, V + 1, H, W] opacity in 0..1.
        anchor: the frame to compare with, itself counted as 1.

    Raises:
        ValueError: masks without a frame, an anchor that is no frame.
    """
    _check_masks(masks)
    _check_anchor(anchor, len(masks))
    inside = masks > 0.5
    both = (inside & inside[anchor]).sum(dim=(2, 3)).double()
    either = (inside | inside[anchor]).sum(dim=(2, 3)).double()
    return float(torch.where(either > 0, both / either.clamp(min=1), 1.0).mean())


def motion_is_large(masks: Tensor, anchor: int) -> bool:
    """Return whether admitting frames bit by bit is worth it: a `motion_score` of at most 0.3."""
    return motion_score(masks, anchor) <= _LARGE_MOTION_IOU


def allowed_frames(step: int, steps: int, n_frames: int, anchor: int) -> tuple[list[int], list[int]]:
    """Return the frames that a step may use, and those of them that were admitted last.

    Stage k = 1..5 admits all frames t with |t - anchor| <= ceil(k T / 5); stage 5 begins at 35 % of the
    steps. The second list is empty when the stage has brought nothing new, and once stage 5 has lasted as
    long as the others: from then on all frames are alike.

    Args:
        step: 0..steps - 1, counted from the start of the dynamic phase.
        steps: number of steps of the dynamic phase.
        n_frames: T.
        anchor: the frame to start from.

    Raises:
        ValueError: a step or an anchor out of range.
    """
    if not 0 <= step < steps:
        raise ValueError(f"Expected a step from 0 to {steps - 1}; got {step}. Count from the phase's start.")
    _check_anchor(anchor, n_frames)
    stage = 1 + (_RINGS - 1) * 100 * step // (_GROWTH_PERCENT * steps)
    before = set(_within(stage - 1, n_frames, anchor)) if stage > 1 else set()
    allowed = _within(stage, n_frames, anchor)
    return allowed, [t for t in allowed if t not in before]


def draw_frames(allowed: list[int], newest: list[int], count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` frames for one step, half from the newest and the rest from all others, [count] int64.

    The larger half is new where there are that many new ones. No frame comes twice unless there are too few.

    Args:
        allowed: all frames that may be drawn, at least one.
        newest: those of them that were admitted last; empty: all are alike.
        count: number of frames, at least 1.
        generator: on the CPU.

    Raises:
        ValueError: no frame to draw from, a count below 1.
    """
    if not allowed or count < 1:
        raise ValueError(
            f"Expected at least one frame to draw from and a count of at least 1; got {len(allowed)} frames "
            f"and a count of {count}. Give the frames of `allowed_frames`."
        )
    drawn = _draw(newest, min(len(newest), (count + 1) // 2), generator)
    others = [t for t in allowed if t not in drawn] or allowed
    return torch.tensor(drawn + _draw(others, count - len(drawn), generator))


def _within(stage: int, n_frames: int, anchor: int) -> list[int]:
    reach = -(-min(stage, _RINGS) * n_frames // _RINGS)
    return list(range(max(0, anchor - reach), min(n_frames, anchor + reach + 1)))


def _draw(frames: list[int], count: int, generator: torch.Generator) -> list[int]:
    """Return ``count`` frames in random order, none again before all have been drawn."""
    drawn: list[int] = []
    while len(drawn) < count:
        order = torch.randperm(len(frames), generator=generator)[: count - len(drawn)]
        drawn += [frames[i] for i in order.tolist()]
    return drawn


def _check_masks(masks: Tensor) -> None:
    if masks.ndim != 4 or masks.numel() == 0:
        raise ValueError(f"Expected masks [T, V + 1, H, W]; got {list(masks.shape)}. Give a grid's masks.")


def _check_anchor(anchor: int, n_frames: int) -> None:
    if not 0 <= anchor < n_frames:
        raise ValueError(
            f"Expected an anchor frame from 0 to {n_frames - 1}; got {anchor}. Use `anchor_frame`."
        )


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
