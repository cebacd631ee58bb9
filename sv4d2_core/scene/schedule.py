"""The schedule of a fit: for every step its phase, its learning rate, its picture size and its frames.

All frames are fitted from the start, or, where the motion is large, admitted outward from an anchor frame and
replayed, so that none is forgotten, as in SC-GS (Huang et al. 2024, 2312.14937, public code).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..views import ViewGrid
from .config import RefineConfig

# Frames of one dynamic step, of Gaussians as many as it has pictures: among fewer, new ones leave no other.
FRAMES = {"dynerf": 4, "gaussians": 2}
_VIEWS = 4  # of each frame, the input view included
_GROWTH_PERCENT = 35  # share of the steps at which all frames are admitted
_RINGS = 5  # of equal length
# Mean mask IoU with the anchor frame that is large motion; the benchmark: slow 0.67..0.94, fast 0.23, 0.28.
LARGE_MOTION_IOU = 0.3
# From this size on pictures are fitted from coarse to fine: (share of stage 1, how many times smaller).
_COARSE_TO_FINE_FROM, _COARSE_TO_FINE = 256, ((0.0, 4), (0.4, 2), (0.7, 1))
_LAST_RATE, _REFINE_RATE = 0.1, 0.3  # factors on the learning rates: at a stage's end, at the second's start


@dataclass(frozen=True)
class Step:
    number: int  # 0..total_steps - 1
    round: int  # of the second stage, from 1; 0: the first stage
    begins_round: bool
    learning_rate: float  # the factor on all learning rates
    shrink: int  # how often the pictures that it uses are smaller than the views, along a side
    timed: bool  # False while the anchor frame is fitted alone: the scene then knows no time
    n_views: int  # of each frame, the input view always among them; fewer where there are fewer
    allowed: tuple[int, ...]  # the frames that it may look at, rising
    newest: tuple[int, ...] = ()  # those of them that were admitted last; (): all are alike
    known: tuple[int, int] | None = None  # first and last frame known before, where others come in with it
    n_frames: int = FRAMES["dynerf"]  # that it draws; fewer where there are fewer

    def frames(self, n_frames: int, generator: torch.Generator) -> Tensor:
        """Return the frames of the step out of T, [F] int64; while not timed, the anchor alone."""
        if not self.timed:
            return torch.tensor(self.allowed)
        return draw_frames(self.allowed, self.newest, min(self.n_frames, n_frames), generator)


def schedule(config: RefineConfig, views: ViewGrid, first: int = 0) -> Iterator[Step]:
    """Yield the steps of a fit to checked views, from number ``first`` on."""
    assert views.masks is not None
    n_frames, anchor = views.n_frames, anchor_frame(views.masks)
    outward = config.progressive
    if outward is None:
        outward = motion_score(views.masks, anchor) <= LARGE_MOTION_IOU
    coarse_to_fine = views.images.shape[2] >= _COARSE_TO_FINE_FROM
    for number in range(first, config.total_steps):
        moving, after = number - config.steps_static, number - config.stage_one_steps
        done = number / max(config.stage_one_steps, 1)
        shrinks = [shrink for start, shrink in _COARSE_TO_FINE if coarse_to_fine and start <= done]
        allowed, newest, known = list(range(n_frames)), list[int](), None
        if moving < 0:
            allowed = [anchor]
        elif outward and after < 0:
            allowed, newest = allowed_frames(moving, config.steps, n_frames, anchor)
            before = [anchor]
            if moving > 0:
                before, _ = allowed_frames(moving - 1, config.steps, n_frames, anchor)
            known = None if before == allowed else (before[0], before[-1])
        yield Step(
            number,
            round_of(config, number),
            begins_round=after >= 0 and after % config.steps_refine == 0,
            learning_rate=_learning_rate(config, number),
            shrink=min(shrinks, default=1),
            timed=moving >= 0,
            n_views=_VIEWS if moving >= 0 else views.n_views + 1,
            allowed=tuple(allowed),
            newest=tuple(newest),
            known=known,
            n_frames=FRAMES[config.backend],
        )


def round_of(config: RefineConfig, number: int) -> int:
    """Return which round of the second stage a step belongs to, from 1; 0: it belongs to the first stage."""
    after = number - config.stage_one_steps
    return 0 if after < 0 else min(after // config.steps_refine + 1, config.rounds)


def _learning_rate(config: RefineConfig, number: int) -> float:
    """Return the factor on the learning rates: it falls evenly (in its logarithm) per stage."""
    after = number - config.stage_one_steps
    if after < 0:
        return config.learning_rate_factor * _LAST_RATE ** (number / config.stage_one_steps)
    share = after / (config.rounds * config.steps_refine)
    return config.learning_rate_factor * _REFINE_RATE * (_LAST_RATE / _REFINE_RATE) ** share


def anchor_frame(masks: Tensor) -> int:
    """Return the frame of largest area of masks [T, V + 1, H, W], the first of equals: it hides least."""
    return int(masks.sum(dim=(1, 2, 3), dtype=torch.float64).argmax())


def motion_score(masks: Tensor, anchor: int) -> float:
    """Return the mean IoU, 0..1, of masks [T, V + 1, H, W] with the anchor's; 1 where both are empty."""
    inside = masks > 0.5
    both = (inside & inside[anchor]).sum(dim=(2, 3)).double()
    either = (inside | inside[anchor]).sum(dim=(2, 3)).double()
    return float(torch.where(either > 0, both / either.clamp(min=1), 1.0).mean())


def allowed_frames(step: int, steps: int, n_frames: int, anchor: int) -> tuple[list[int], list[int]]:
    """Return the frames that a dynamic step may use, and those admitted last; none: all are alike.

    Stage k = 1..5 admits |t - anchor| <= ceil(k T / 5); stage 5 begins at 35 % of the steps, and once it has
    lasted as long as the others, none of its frames counts as new.
    """
    stage = 1 + (_RINGS - 1) * 100 * step // (_GROWTH_PERCENT * steps)

    def within(stage: int) -> list[int]:
        reach = -(-min(stage, _RINGS) * n_frames // _RINGS)
        return list(range(max(0, anchor - reach), min(n_frames, anchor + reach + 1)))

    before = set(within(stage - 1)) if stage > 1 else set()
    return within(stage), [t for t in within(stage) if t not in before]


def draw_frames(
    allowed: Sequence[int], newest: Sequence[int], count: int, generator: torch.Generator
) -> Tensor:
    """Return frames [count] int64, the larger half from the newest, none twice if there are enough."""
    new = min(len(newest), (count + 1) // 2)
    drawn = [newest[i] for i in shuffled(len(newest), new, generator).tolist()]
    others = [t for t in allowed if t not in drawn] or allowed
    drawn += [others[i] for i in shuffled(len(others), count - new, generator).tolist()]
    return torch.tensor(drawn)


def shuffled(n: int, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` of n indices in random order, none again before all have been drawn, [count] int64."""
    rounds = [torch.randperm(n, generator=generator) for _ in range(0, count, max(n, 1))]
    return torch.cat([torch.zeros(0, dtype=torch.long), *rounds])[:count]
