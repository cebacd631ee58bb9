"""The colours of the report: a ramp for amounts, and one colour per method."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Lightness (CIELAB) falls evenly from 98 to 18, so that equal steps look equal, printed in grey as well.
_ANCHORS = np.array(
    [
        (251, 250, 235),
        (253, 203, 127),
        (249, 150, 92),
        (231, 95, 96),
        (183, 57, 117),
        (117, 43, 117),
        (54, 33, 84),
    ],
    dtype=float,
)
# Distinguishable for colour-blind people (Okabe and Ito 2008); their yellow is too pale on white.
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
REFERENCE_COLOUR = "#444444"


def ramp(amounts: ArrayLike) -> NDArray[np.uint8]:
    """Return the colours [..., 3] of amounts from 0 (nearly white) to 1 (dark); others are clipped."""
    places = np.clip(np.asarray(amounts, dtype=float), 0, 1) * (len(_ANCHORS) - 1)
    steps = np.arange(len(_ANCHORS))
    channels = [np.interp(places, steps, channel) for channel in _ANCHORS.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def ramp_hex(amount: float) -> str:
    """Return the colour of one amount as #rrggbb."""
    return "#" + ramp(amount).tobytes().hex()


def series_colour(number: int) -> str:
    """Return the colour of the method of that number; after six they begin again."""
    return _SERIES[number % len(_SERIES)]
