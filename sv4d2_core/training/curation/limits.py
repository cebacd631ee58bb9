"""What a clip must be like to be learnt from."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class CurationLimits:
    """Limits of the measures; a clip beyond one of them is rejected.

    Args:
        least_frames: T, as many as the model samples at once.
        least_cover: share of the picture that the object covers, in every picture.
        largest_cut: length along which the object touches the border, in sides of the picture.
        largest_dark: share of the object that is nearly black, in every frame.
        largest_blown: share of the object that is nearly white, in every frame.
        least_motion: mean change of the object's pixels between two key frames, 0 to 1.
        largest_rescaling: change of size that all views share, as a logarithm: 0.1 is about 10 %.
        largest_zoom: enlargement that makes the object fill the picture.

    Raises:
        ValueError: a limit that is negative or not finite.
    """

    least_frames: int = 12
    least_cover: float = 0.005
    largest_cut: float = 0.03
    largest_dark: float = 0.5
    largest_blown: float = 0.3
    least_motion: float = 0.04
    largest_rescaling: float = 0.06
    largest_zoom: float = 3.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < math.inf:
                raise ValueError(f"Expected {field.name} of at least 0 and finite; got {value}.")
