"""Whether a clip is fit to be learnt from: every measure with its limit, and how to rectify it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...views import ViewGrid
from .limits import CurationLimits
from .measures import Found, blown, cover, cut, dark, motion, not_finite, rescaling
from .rectify import Rectification, plan_rectification
from .silhouettes import measured_grid
from .static_centre import static_centre

# Name, measure, limit, what it means to be beyond it.
_FILTERS: tuple[tuple[str, Callable[[ViewGrid], Found], str, str], ...] = (
    ("frames", lambda grid: Found(grid.n_frames), "least_frames", "too few frames"),
    ("cover", cover, "least_cover", "the object is (nearly) missing from a picture"),
    ("cut off", cut, "largest_cut", "the picture's border cuts the object off"),
    ("dark", dark, "largest_dark", "the object is too dark to show its colours"),
    ("blown out", blown, "largest_blown", "the object is blown out to white"),
    ("motion", motion, "least_motion", "the object hardly moves"),
    ("rescaling", rescaling, "largest_rescaling", "the object changes its size in all views at once"),
)


@dataclass(frozen=True)
class Check:
    """One measure of a clip against its limit.

    Args:
        name: of the measure.
        found: what was measured, and where.
        limit: the number in force.
        limit_name: its field in `CurationLimits`, which begins with ``least`` or ``largest``.
        meaning: what it means to be beyond the limit.
    """

    name: str
    found: Found
    limit: float
    limit_name: str
    meaning: str

    @property
    def is_least(self) -> bool:
        """Whether the limit is a lower one."""
        return self.limit_name.startswith("least")

    @property
    def passed(self) -> bool:
        """Whether the value keeps the limit."""
        return self.found.value >= self.limit if self.is_least else self.found.value <= self.limit

    @property
    def sentence(self) -> str:
        """What was measured and what was expected, for people."""
        _, frame, view = self.found
        where = "" if frame is None else f" in frame {frame}" + ("" if view is None else f" of view {view}")
        side = "at least" if self.is_least else "at most"
        return f"{self.name} {self.found.value:.3g}{where}, expected {side} {self.limit:.3g}"


@dataclass(frozen=True)
class Verdict:
    """What came of a clip.

    Args:
        checks: all that could be measured.
        faults: what is wrong besides: unreadable files, NaN, silhouettes that do not fit the cameras.
        plan: how to rectify the clip; None where that is not known.
    """

    checks: tuple[Check, ...] = ()
    faults: tuple[str, ...] = ()
    plan: Rectification | None = None

    @property
    def reasons(self) -> list[str]:
        """Why the clip is rejected; none if it is kept."""
        return [*self.faults, *(f"{c.meaning}: {c.sentence}" for c in self.checks if not c.passed)]

    @property
    def kept(self) -> bool:
        """Whether the clip is fit to be learnt from."""
        return not self.reasons


def judge(grid: ViewGrid, limits: CurationLimits) -> Verdict:
    """Return all measures of a clip and how to rectify it; the pictures themselves stay as they are."""
    if count := not_finite(grid):
        total = grid.n_frames * (grid.n_views + 1)
        return Verdict(faults=(f"NaN or infinite values in {count} of {total} pictures",))
    small = measured_grid(grid)
    checks = tuple(
        Check(name, measure(small), getattr(limits, limit), limit, meaning)
        for name, measure, limit, meaning in _FILTERS
    )
    try:
        plan = plan_rectification(small, static_centre(small))
    except ValueError as error:
        return Verdict(checks, (f"cannot be rectified: {error}",))
    zoom = Check(
        "zoom", Found(plan.zoom), limits.largest_zoom, "largest_zoom", "the object is too small to be sharp"
    )
    return Verdict((*checks, zoom), (), plan)
