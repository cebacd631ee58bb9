"""Parsers of option values that commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..cameras import Cameras
from ..orbits import CUSTOM, orbit
from ..scene.scene import even_times
from ..shipped import TINY_MODEL


def checkpoint_file(text: str) -> Path:
    """Return the path of a checkpoint; ``tiny`` is the small model that comes with the pack."""
    return TINY_MODEL if text == "tiny" else Path(text)


def at_least(minimum: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from ``minimum`` on."""

    def parse(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {minimum}, got {text}")
        return int(text)

    return parse


def positive_number(text: str) -> float:
    """Return a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def listed_cameras(
    azimuths_deg: Sequence[float] | None, elevations_deg: Sequence[float] | None, **more: Any
) -> Cameras:
    """Return the cameras of --azimuths and --elevations; ``more`` are further arguments of `orbit`.

    Raises:
        ValueError: lists that do not fit together.
    """
    azimuths, elevations = (" ".join(map(str, angles or [])) for angles in (azimuths_deg, elevations_deg))
    return orbit(CUSTOM, azimuths=azimuths, elevations=elevations, **more)


def listed_times(times: Sequence[float] | None, frames: int | None) -> tuple[float, ...] | None:
    """Return the times of --times or --frames; None where neither is given.

    Raises:
        ValueError: both are given.
    """
    if times is not None and frames is not None:
        raise ValueError("Give either --times or --frames, not both.")
    if frames is None:
        return None if times is None else tuple(times)
    return even_times(frames)
