"""What the reader decides for the user ends in the report."""

import numpy as np

from sv4d2_core.video.prepare import prepare_clip
from sv4d2_core.video.read import Clip


def test_notes_of_a_clip_stand_at_the_front_of_its_report():
    frames = np.full((1, 40, 40, 3), 255, np.uint8)
    frames[:, 10:30, 10:30] = 90
    report = prepare_clip(Clip(frames, notes=("turned", "slowed")), size=32).report
    assert report[:2] == ("turned", "slowed") and report[2].startswith("1 frame of 40 x 40")
