"""In which order the images of a grid of T frames and V views are watched as clips.

The four orders of SV4D's Frechet video distances; each clip is a list of (frame, view), counted from 0 over
the novel views.

Source: SV4D, section 4.1; specification of the four orders.
"""

from __future__ import annotations

Clip = list[tuple[int, int]]


def over_frames(n_frames: int, n_views: int) -> list[Clip]:
    """Return V clips of length T, the frames of each view (FVD-F)."""
    return [[(t, v) for t in range(n_frames)] for v in range(n_views)]


def over_views(n_frames: int, n_views: int) -> list[Clip]:
    """Return T clips of length V, the views of each frame (FVD-V)."""
    return [[(t, v) for v in range(n_views)] for t in range(n_frames)]


def diagonal(n_frames: int, n_views: int) -> list[Clip]:
    """Return V clips of length T; clip v0 shows view (v0 + t) mod V at frame t (FVD-Diag)."""
    return [[(t, (start + t) % n_views) for t in range(n_frames)] for start in range(n_views)]


def raster(n_frames: int, n_views: int) -> list[Clip]:
    """Return V clips of length T, a scan through all images that turns round at each view's end (FV4D)."""
    return [
        [(t, v) for t in (range(n_frames) if v % 2 == 0 else reversed(range(n_frames)))]
        for v in range(n_views)
    ]


ORDERS = {"F": over_frames, "V": over_views, "Diag": diagonal, "4D": raster}
