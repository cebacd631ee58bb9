"""Display colours (sRGB) as the linear values that glTF and USD keep at vertices."""

from __future__ import annotations

import numpy as np


def srgb_to_linear(colours: np.ndarray) -> np.ndarray:
    """Return linear values in 0..1, float64, of display values in 0..1; values outside are clipped.

    Source: IEC 61966-2-1.
    """
    values = np.clip(colours.astype(np.float64), 0.0, 1.0)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
