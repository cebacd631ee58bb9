"""What counts as the object: mask, alpha, near-white background, in that order; specks and haze do not."""

import dataclasses

import numpy as np
import pytest
import torch

from sv4d2_core.video.foreground import foreground_masks, near_white_masks, object_boxes, opacity_source
from sv4d2_core.video.prepare import prepare_clip
from sv4d2_core.video.read import Clip

NAMES_THE_WAYS_OUT = r"(?s)(?=.*RemoveBackground)(?=.*SAM3)(?=.*--mask)"


def white_clip(channels: int = 3, n_frames: int = 2) -> np.ndarray:
    """A dark square of 20 x 20 on white, 100 x 80 pixels."""
    frames = np.full((n_frames, 80, 100, channels), 255, np.uint8)
    frames[:, 30:50, 40:60, :3] = 90
    return frames


def square_at(left: int, top: int, side: int, level: int = 255, n_frames: int = 2) -> np.ndarray:
    opacity = np.zeros((n_frames, 80, 100), np.uint8)
    opacity[:, top : top + side, left : left + side] = level
    return opacity


def test_a_mask_wins_over_alpha_and_alpha_over_white():
    frames = white_clip(4)
    assert opacity_source(Clip(frames)) == "near-white background"
    for opaque in (frames, white_clip(3)):
        np.testing.assert_array_equal(foreground_masks(Clip(opaque)), square_at(40, 30, 20))
    frames[..., 3] = square_at(10, 10, 20)
    masked = Clip(frames, masks=square_at(60, 50, 20))
    assert opacity_source(masked) == "mask" and opacity_source(Clip(frames)) == "alpha"
    np.testing.assert_array_equal(foreground_masks(masked), square_at(60, 50, 20))
    np.testing.assert_array_equal(foreground_masks(Clip(frames)), square_at(10, 10, 20))
    frames[..., 3] = square_at(40, 30, 20, level=1)
    assert foreground_masks(Clip(frames)).max() == 1, "soft alpha is kept"


@pytest.mark.parametrize(
    ("colour", "is_object"), [((250, 250, 250), 1), ((251, 250, 250), 0), ((255, 255, 240), 1)]
)
def test_near_white_is_the_mean_of_the_channels(colour, is_object):
    frames = white_clip(n_frames=1)
    frames[0, 30:50, 40:60] = colour
    images = torch.from_numpy(frames).float() / 255
    for dtype in (torch.float32, torch.float64):
        mask = near_white_masks(images.to(dtype)[None])
        assert mask.dtype == dtype and mask.shape == (1, 1, 80, 100)
        assert mask.sum() == 400 * is_object
    if is_object:
        np.testing.assert_array_equal(foreground_masks(Clip(frames)) > 0, mask[0].numpy() > 0)


def test_specks_and_the_haze_of_a_mask_do_not_count_unless_asked_for():
    """0.05 % of 80 x 100 is 4 pixels."""
    frames = white_clip()
    frames[:, 2, 2:5] = 0
    assert object_boxes(foreground_masks(Clip(frames)))[0].tolist() == [40, 30, 60, 50]
    assert object_boxes(foreground_masks(Clip(frames), ignore_specks=False))[0].tolist() == [2, 2, 60, 50]
    frames[:, 3, 5] = 0
    assert object_boxes(foreground_masks(Clip(frames)))[0].tolist() == [2, 2, 60, 50], "4 pixels, diagonal"

    hazy = np.maximum(square_at(40, 30, 20), 6)
    clip = Clip(white_clip(), masks=hazy)
    np.testing.assert_array_equal(foreground_masks(clip), square_at(40, 30, 20))
    np.testing.assert_array_equal(foreground_masks(clip, ignore_specks=False), hazy)
    seen = Clip(np.concatenate([white_clip() // 3, hazy[..., None]], axis=-1))  # as alpha of a lossy video
    np.testing.assert_array_equal(foreground_masks(seen), square_at(40, 30, 20))
    for hazed in (clip, seen):
        dark = dataclasses.replace(hazed, frames=hazed.frames // 3)
        prepared = prepare_clip(dark, size=64)
        assert prepared.images[:, 0].min() == 1 and prepared.masks[:, 0].max() == 0
        assert prepare_clip(dark, size=64, ignore_specks=False).images[:, 32, 8].max() < 1


def test_no_foreground_names_numbers_and_the_ways_out():
    white, speck = np.full((2, 3, 80, 100, 3), 255, np.uint8)
    speck[:, 5, 5] = 0
    for clip, text in (
        (Clip(white), "no foreground in 3 frames"),
        (Clip(white, masks=np.zeros((3, 80, 100), np.uint8)), "masks that are black"),
        (Clip(np.zeros((3, 80, 100, 4), np.uint8)), "transparent everywhere"),
        (Clip(speck), "only 3 foreground pixels"),
    ):
        with pytest.raises(ValueError, match=f"{NAMES_THE_WAYS_OUT}.*{text}"):
            foreground_masks(clip)


@pytest.mark.parametrize("level", [0, 128, 245])
def test_a_background_that_is_not_white_is_refused(level):
    frames = np.full((2, 80, 100, 3), level, np.uint8)
    frames[:, 30:50, 40:60] = 255
    with pytest.raises(ValueError, match=NAMES_THE_WAYS_OUT + ".*100 % of the border darker"):
        foreground_masks(Clip(frames))
    assert foreground_masks(Clip(frames, masks=square_at(40, 30, 20))).any()


def test_an_object_that_leaves_through_the_border_is_accepted():
    frames = np.full((2, 80, 100, 3), 255, np.uint8)
    frames[0, 20:, 10:90] = 60
    assert object_boxes(foreground_masks(Clip(frames))).tolist() == [[10, 20, 90, 80], [0, 0, 0, 0]]
