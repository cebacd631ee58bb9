"""The clip that comes with the pack is what the procedural world renders, ready for the small model."""

from __future__ import annotations

import numpy as np
import torch
from sample_clip import sample_frames

from sv4d2_core.shipped import SAMPLE_CLIP, SAMPLE_FPS, SAMPLE_FRAMES
from sv4d2_core.video.prepare import prepare_clip
from sv4d2_core.video.read import load_clip

MOST_BYTES = 300_000


def test_file_is_small_and_says_its_frames_and_rate():
    assert SAMPLE_CLIP.stat().st_size <= MOST_BYTES
    clip = load_clip(SAMPLE_CLIP, frames=None)
    assert clip.frames.shape == (SAMPLE_FRAMES, 576, 576, 4) and clip.fps == SAMPLE_FPS


def test_pictures_are_the_rendered_ones():
    clip = load_clip(SAMPLE_CLIP, frames=None)
    times = torch.tensor([0.0, 0.25], dtype=torch.float64)
    rendered = sample_frames(times).numpy()
    shown = clip.frames[[0, (SAMPLE_FRAMES - 1) // 4]].astype(np.float32) / 255
    assert np.abs(shown[..., 3] - rendered[..., 3]).max() < 0.01
    assert _psnr_on_white(shown, rendered) > 40
    # Another moment is told apart.
    assert _psnr_on_white(shown[::-1], rendered) < 25


def test_it_is_prepared_without_a_remark():
    prepared = prepare_clip(load_clip(SAMPLE_CLIP, frames=None), size=32, centering="none")
    assert prepared.images.shape == (SAMPLE_FRAMES, 32, 32, 3)
    assert len(prepared.report) == 1, prepared.report


def _psnr_on_white(one, other):
    on_white = [rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:] for rgba in (one, other)]
    return -10 * np.log10(((on_white[0] - on_white[1]) ** 2).mean())
