"""The report: every warning appears when it should, and not on a good clip."""

import dataclasses

import numpy as np
import pytest

from sv4d2_core.video.prepare import prepare_clip
from sv4d2_core.video.read import Clip


def moving_square(
    corners: list[tuple[int, int]], side: int = 100, canvas: int = 240, waving: bool = True
) -> Clip:
    """A square on white at (x, y) in each frame, its stripes moving when it waves."""
    frames = np.full((len(corners), canvas, canvas, 3), 255, np.uint8)
    for t, (x, y) in enumerate(corners):
        part = frames[t, y : y + side, x : x + side]
        rows = np.arange(part.shape[0])[:, None, None] + (3 * t if waving else 0)
        part[:] = np.where(rows // 8 % 2, 40, 200)
    return Clip(frames, 10.0)


def test_notes_of_a_clip_stand_at_the_front_of_its_report():
    """What the reader decides for the user ends there."""
    clip = dataclasses.replace(moving_square([(70, 70)]), notes=("turned", "slowed"))
    report = prepare_clip(clip, size=160).report
    assert report[:2] == ("turned", "slowed") and report[2].startswith("1 frame of 240 x 240")


def report(clip: Clip, **options) -> str:
    return "\n".join(prepare_clip(clip, size=160, **options).report)


def test_a_good_clip_gives_one_line():
    lines = prepare_clip(moving_square([(70, 70)] * 21), size=160).report
    assert len(lines) == 1
    for fact in ("21 frames of 240 x 240", "10 fps", "near-white background", "17 %", "becomes 160"):
        assert fact in lines[0]


def test_touched_borders_are_counted():
    text = report(moving_square([(0, 70)] * 3 + [(70, 140)] * 2 + [(70, 70)] * 16))
    assert "left border in 3 of 21 frames" in text
    assert "bottom border in 2 of 21 frames" in text
    assert "right border" not in text and "top border" not in text


def test_tiny_wandering_and_jumping_objects_are_named():
    text = report(moving_square([(110, 110)] * 21, side=30))
    assert "object is tiny: 1.6 % of the frame, 30 pixels large" in text and "enlarged 3.6 times" in text
    wander = moving_square([(8 * t, 70) for t in range(21)], side=70)
    assert "centering smooth or per_frame" in report(wander)
    assert "centering smooth" not in report(wander, centering="smooth")
    text = report(moving_square([(70, 70)] * 10 + [(10, 70)] * 11))
    assert "object jumps by 60 % of its size at frame 10" in text
    # What lies between two steps over empty frames is no jump.
    clip = moving_square([(70, 70)] * 10 + [(10, 70)] * 5 + [(130, 130)] * 6)
    clip.frames[13:15] = 255
    assert "object jumps by 60 % of its size at frame 10:" in report(clip)


@pytest.mark.parametrize(("n_frames", "warned"), [(1, True), (11, True), (12, False)])
def test_few_frames(n_frames, warned):
    text = report(moving_square([(70, 70)] * n_frames))
    assert (f"only {n_frames} frame" in text) == warned == ("sampler extends a clip" in text)
    assert "4-view" not in text, "the report does not know which model comes next"
    assert "little motion" not in text


def test_little_motion_and_empty_frames():
    assert "little motion (largest change 0.0 %" in report(moving_square([(70, 70)] * 12, waving=False))
    clip = moving_square([(70, 70)] * 13)
    clip.frames[[4, 7]] = 255
    assert "2 of 13 frames are empty: 4, 7 (counted from 0)" in report(clip)


@pytest.mark.parametrize(("n_frames", "every"), [(60, None), (61, 2), (120, 2), (121, 3), (205, 4), (240, 4)])
def test_a_long_clip_is_told_what_to_do(n_frames, every):
    text = report(moving_square([(20, 20)] * n_frames, side=20, canvas=60))
    assert ("frames are many" in text) == (every is not None)
    if every is not None:
        frames = len(range(0, n_frames, every))
        assert f"{n_frames} frames are many" in text and frames <= 60
        assert f"every {every} times as large, frames {frames})" in text
        assert "drift and lose detail" in text and "interpolate" in text


def test_an_inverted_mask_is_recognised():
    clip = moving_square([(20, 20), (24, 20)], side=20, canvas=60)
    object_is_black = np.where(clip.frames.mean(-1) < 250, 0, 255).astype(np.uint8)
    inverted = dataclasses.replace(clip, masks=object_is_black)
    right = dataclasses.replace(clip, masks=255 - object_is_black)
    assert "it looks inverted" in report(inverted) and "it looks inverted" not in report(right)
