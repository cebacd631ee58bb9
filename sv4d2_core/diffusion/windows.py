"""Which frames each window of a long clip covers.

Source: specification section 10; no frame is dropped and no window repeated.
"""

from __future__ import annotations


def plan_windows(n_frames: int, window: int) -> list[int]:
    """Return the first frame of each window of ``window`` frames over ``n_frames`` frames.

    Consecutive windows share at least one frame, whose generated views condition the later window.

    Raises:
        ValueError: fewer frames than one window, or a window without room for a shared frame.
    """
    if n_frames < window or window < 1:
        raise ValueError(f"Expected at least {window} frames (one window); got {n_frames}. Extend the clip.")
    if window == 1 and n_frames > 1:
        raise ValueError("Windows of one frame cannot share a frame; got a window of 1 for several frames.")
    starts = [0]
    while starts[-1] + window < n_frames:
        starts.append(min(starts[-1] + window - 1, n_frames - window))
    return starts


def ping_pong(n_frames: int, at_least: int) -> list[int]:
    """Return frame numbers that play a clip forward and backward until there are ``at_least``.

    The first ``n_frames`` numbers are the clip itself, so a longer result can be trimmed back to it.
    """
    if n_frames < 1:
        raise ValueError("Expected at least 1 frame; got 0.")
    forward = list(range(n_frames))
    cycle = forward + forward[-2:0:-1]
    return [cycle[i % len(cycle)] for i in range(max(n_frames, at_least))]
