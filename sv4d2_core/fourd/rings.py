"""The cameras of the second stage: those of the views, and rings between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..cameras import Cameras

# Cameras stay this far from the poles, degrees.
_FROM_POLE = 5.0


def ring_cameras(cameras: Cameras, ring_elevations_deg: Sequence[float]) -> Cameras:
    """Return the cameras and, per ring, as many novel ones between them: V (1 + rings) novel views.

    A model samples V views at a time, so every ring is one pass of it. Of the V + 1 gaps between neighbouring
    azimuths, one next to the input view is left out: the input shows most of it already.

    Args:
        cameras: of the views.
        ring_elevations_deg: of each ring, relative to the input view.
    """
    azimuths = sorted({a % 360 for a in cameras.azimuths_deg})
    gaps = [(b - a, (a + b) / 2) for a, b in zip(azimuths, [*azimuths[1:], 360.0], strict=True)]
    # Views at one azimuth and several elevations leave fewer gaps than views: the widest are parted again.
    while len(gaps) < cameras.n_views + 1:
        width, middle = max(gaps)
        gaps.remove((width, middle))
        gaps += [(width / 2, middle - width / 4), (width / 2, middle + width / 4)]
    first = min(gaps, key=lambda gap: (min(gap[1], 360 - gap[1]), gap[1]))
    between = sorted(middle for width, middle in gaps if (width, middle) != first)[: cameras.n_views]
    lowest = -90 + _FROM_POLE - cameras.input_elevation_deg
    highest = 90 - _FROM_POLE - cameras.input_elevation_deg
    elevations, added = list(cameras.elevations_deg), list(cameras.azimuths_deg)
    for ring in ring_elevations_deg:
        elevations += [min(max(float(ring), lowest), highest)] * len(between)
        added += between
    return replace(cameras, elevations_deg=tuple(elevations), azimuths_deg=tuple(added))
