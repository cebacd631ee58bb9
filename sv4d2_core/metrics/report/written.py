"""How numbers are written for people."""

from __future__ import annotations

import math

NO_VALUE = "–"


def written(value: float, digits: int) -> str:
    """Return a value with so many digits after the point; a dash for NaN, the sign for infinity."""
    if math.isnan(value):
        return NO_VALUE
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    # Adding 0 to what was rounded makes a negative zero positive.
    return f"{round(value, digits) + 0.0:.{digits}f}"
