"""How many steps a machine does in a given time."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from ..views import ViewGrid
from .config import RefineConfig
from .fit import Fit
from .validate import checked_views

_WARM_UP, _TIMED = 5, 20


def steps_in(
    minutes: float, views: ViewGrid, config: RefineConfig, device: torch.device | str = "cpu"
) -> int:
    """Return about how many steps of a fit take ``minutes``, by doing a few; at least 4.

    Not counted is what the model of a second stage, a perceptual distance and normals take. Equal steps give
    equal scenes; equal minutes need not.

    Raises:
        ValueError: views that cannot be fitted.
    """
    probe = replace(config, steps_static=0, steps=_WARM_UP + _TIMED, rounds=0, patch_start=0.0)
    fit = Fit(checked_views(views), probe, device)
    for _ in range(_WARM_UP):
        fit.advance()
    began = time.perf_counter()
    for _ in range(_TIMED):
        fit.advance()
    return max(int(60 * minutes * _TIMED / (time.perf_counter() - began)), 4)
