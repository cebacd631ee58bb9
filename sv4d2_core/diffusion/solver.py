"""How the sampler's differential equation is solved: what a user may switch to trade accuracy for time."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from .sampler import SAMPLERS


@dataclass(frozen=True)
class Solver:
    """The method and its shortcuts; the default is the official computation without any.

    Args:
        sampler: a name in `SAMPLERS`.
        guidance_interval: lowest and highest noise level with guidance; elsewhere the conditional half of the
            network alone is computed. None: guidance everywhere. Source: Kynkäänniemi et al. 2024.
        step_cache: `StepCache` reuses the network's output while it is expected to change by less than this
            share; 0: never.

    Raises:
        ValueError: an unknown sampler, or numbers out of range.
    """

    sampler: str = "euler"
    guidance_interval: tuple[float, float] | None = None
    step_cache: float = 0.0

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"Expected sampler {' or '.join(SAMPLERS)}; got {self.sampler!r}.")
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            if not 0 <= low < high < math.inf:
                raise ValueError(
                    f"Expected a guidance interval of two noise levels, 0 <= low < high; got {low:g} to "
                    f"{high:g}. Give the smaller number first."
                )
        if not 0 <= self.step_cache < math.inf:
            raise ValueError(
                f"Expected a step cache threshold from 0 (off) on; got {self.step_cache:g}. Try 0.1."
            )

    def changed(self) -> dict[str, object]:
        """Return the fields that differ from the default, as JSON values."""
        default, ours = asdict(Solver()), asdict(self)
        changed = {name: value for name, value in ours.items() if value != default[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}
