"""Random numbers from one seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

Option = TypeVar("Option")


class Dice:
    """Random numbers from one seed, independent of torch's global generator and the same on every machine.

    Only the lower 32 bits of the seed count.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def between(self, low: float, high: float) -> float:
        """Return a number from ``low`` to ``high``."""
        return low + (high - low) * float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def whole(self, low: int, high: int) -> int:
        """Return a whole number from ``low`` to ``high``, both included."""
        return low + int(torch.randint(high - low + 1, (), generator=self._generator))

    def chance(self, probability: float) -> bool:
        """Return whether something happens that has this probability."""
        return self.between(0, 1) < probability

    def choose(self, options: Sequence[Option]) -> Option:
        """Return one of the options, all alike likely."""
        return options[self.whole(0, len(options) - 1)]
