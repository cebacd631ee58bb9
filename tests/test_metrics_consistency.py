"""Metrics that need no reference: known answers."""

import math

import pytest
import torch
from torch import Tensor

from sv4d2_core.cameras import Cameras
from sv4d2_core.metrics.consistency import (
    fit_residuals,
    match_errors,
    mean_change,
    quietest_pixels,
    tangency_errors,
    warping_errors,
)
from sv4d2_core.world import make_creature, render_views
from sv4d2_core.world.suite import corrupt_views

EIGHT = Cameras.official("sv4d2_8views")
EVERYWHERE = torch.ones(8, 8, dtype=torch.bool)


def waves(n_frames: int, size: int = 48, speed: float = 0.0) -> Tensor:
    """Return a smooth texture [T, size, size, 3] that moves to the right by ``speed`` pixels per frame."""
    t, y, x = torch.meshgrid(*map(torch.arange, (n_frames, size, size)), indexing="ij")
    return torch.stack([0.4 * torch.sin((x - speed * t) / k + y / (k + 1)) + 0.5 for k in (2, 3, 4)], -1)


@pytest.mark.parametrize(
    ("levels", "flicker", "acceleration"),
    [((0.5, 0.6, 0.5, 0.6), 0.1, 0.2), ((0.2, 0.3, 0.4, 0.5), 0.1, 0.0)],
    ids=["blinking", "brightening"],
)
def test_flicker_and_acceleration_of_known_clips(levels, flicker, acceleration):
    clip = torch.tensor(levels)[:, None, None, None].expand(4, 8, 8, 3)
    assert mean_change(clip, EVERYWHERE, order=1) == pytest.approx(flicker)
    assert mean_change(clip, EVERYWHERE, order=2) == pytest.approx(acceleration, abs=1e-6)


def test_quiet_pixels_of_an_object_of_more_than_sixteen_million():
    images = torch.zeros(2, 4100, 4100, 1)
    images[1, :, 1000:] = 0.5
    quiet = quietest_pixels(images, torch.ones(2, 4100, 4100))
    assert int(quiet.sum()) == 4100 * 4100, "a quarter is not below the change of most"
    images[1, :, 1100:] = 0.7
    assert int(quietest_pixels(images, torch.ones(2, 4100, 4100)).sum()) == 4100 * 1100


def test_only_static_pixels_count_the_quietest_of_the_object():
    images = torch.full((3, 8, 8, 3), 0.5)
    images[1, :4] = 0.9
    lower = torch.zeros(8, 8, dtype=torch.bool)
    lower[4:] = True
    assert mean_change(images, lower, order=1) == 0
    assert mean_change(images, ~lower, order=1) == pytest.approx(0.4)
    images = torch.full((3, 8, 8, 3), 0.5)
    images[1, :, :6] += torch.linspace(0.1, 0.4, 6)[:, None]
    masks = torch.zeros(3, 8, 8)
    masks[:, :, :4] = 1
    chosen = quietest_pixels(images, masks)
    assert chosen.sum() == 8 and bool(chosen[:, 0].all())


def test_too_few_pixels_or_frames_have_no_value():
    few = torch.zeros(8, 8, dtype=torch.bool)
    few[0, :3] = True
    assert math.isnan(mean_change(torch.rand(4, 8, 8, 3), few, order=1))
    assert math.isnan(mean_change(torch.rand(2, 8, 8, 3), EVERYWHERE, order=2))
    assert not quietest_pixels(torch.rand(4, 8, 8, 3), torch.zeros(4, 8, 8)).any()


def test_optical_flow_explains_motion_but_not_change():
    masks = torch.zeros(3, 48, 48)
    masks[:, 12:36, 12:36] = 1
    still, moving = waves(3), waves(3, speed=1.0)
    assert warping_errors(still, masks).max() < 1e-6
    unexplained = (moving[1:] - moving[:-1]).abs().mean()
    assert warping_errors(moving, masks).mean() < 0.25 * unexplained
    darker = moving * torch.tensor([1.0, 0.8, 1.0])[:, None, None, None]
    assert warping_errors(darker, masks).mean() > 4 * warping_errors(moving, masks).mean()
    # Frames without an object have no error.
    masks[2] = 0
    errors = warping_errors(waves(3), masks)
    assert errors[0] < 1e-6 and errors[1].isnan()


def discs(cameras: Cameras, size: int, shift: dict[int, int] | None = None) -> Tensor:
    """Return masks [V + 1, size, size] of a ball at the origin, some pictures shifted down by some pixels."""
    offset = torch.arange(size) - size / 2 + 0.5
    disc = (offset[:, None] ** 2 + offset**2 <= (0.3 * size) ** 2).float()
    masks = disc.repeat(cameras.n_views + 1, 1, 1)
    for view, pixels in (shift or {}).items():
        masks[view] = disc.roll(pixels, dims=0)
    return masks


def test_outlines_of_a_ball_contradict_nothing_until_one_is_moved():
    cameras = Cameras((0, 0, 0), (0, 60, 120))
    assert tangency_errors(discs(cameras, 64), cameras).max() < 1e-3
    # Moving one outline by 3 of 64 pixels sets it against both others by 4.7 %, and them by half of that.
    moved = tangency_errors(discs(cameras, 64, {1: 3}), cameras)
    assert moved.tolist() == pytest.approx([2.34, 4.69, 2.34], rel=0.15)


def test_views_that_face_each_other_or_are_empty_are_left_out():
    facing = Cameras((0, 0), (0, 180))
    assert tangency_errors(discs(facing, 32), facing).isnan().all()
    # The cosine of these two is above 1 by rounding.
    facing = Cameras((0, 0, 0), (0, 120, 300))
    apart = tangency_errors(discs(facing, 64, {0: 6}), facing)
    alone = tangency_errors(discs(Cameras((0, 0), (0, 120)), 64, {0: 6}), Cameras((0, 0), (0, 120)))
    assert apart[1] == pytest.approx(float(alone[1]), rel=1e-6)
    cameras = Cameras((0, 0, 0), (0, 60, 120))
    masks = discs(cameras, 32)
    masks[2] = 0
    errors = tangency_errors(masks, cameras)
    assert errors[2].isnan() and errors[0] < 1e-3


@pytest.mark.parametrize("azimuths", [(0, 0, 60, 120), (0, 60, 120, 360)])
def test_a_view_at_the_place_of_another_says_nothing_with_it(azimuths):
    twice, once = Cameras((0,) * 4, azimuths), Cameras((0, 0, 0), (0, 60, 120))
    last = azimuths.index(120)
    apart = tangency_errors(discs(twice, 64, {last: 3}), twice)[last]
    alone = tangency_errors(discs(once, 64, {2: 3}), once)[2]
    assert apart == pytest.approx(float(alone), rel=0.15)
    assert tangency_errors(discs(Cameras((0, 0), (0, 360)), 64), Cameras((0, 0), (0, 360))).isnan().all()
    twice, once = Cameras((0, 0, 0), (0, 40, 360 if 360 in azimuths else 0)), Cameras((0, 0), (0, 40))
    found, alone = (
        match_errors(render_views(make_creature(5), x, 1, 96).images[0], x) for x in (twice, once)
    )
    assert found[0] == pytest.approx(float(alone[0])) and found[2] == pytest.approx(float(alone[0]))


def test_true_matches_lie_near_their_epipolar_lines_and_false_cameras_show():
    grid = render_views(make_creature(5), EIGHT, 1, 96)
    right = match_errors(grid.images[0], EIGHT)
    tilted = Cameras((0, 10, -10, 10, -10, 10, -10, 10, -10), EIGHT.azimuths_deg)
    wrong = match_errors(grid.images[0], tilted)
    assert right.nanmean() < 2.5 < 3 < wrong.nanmean() < 5


def test_pictures_without_corners_or_near_neighbours_have_no_match_errors():
    blank = torch.ones(9, 48, 48, 3)
    assert match_errors(blank, EIGHT).isnan().all()
    four = Cameras.official("sv4d2")
    grid = render_views(make_creature(5), four, 1, 64)
    assert match_errors(grid.images[0], four).isnan().all()


def test_fit_residuals_are_the_error_over_the_object():
    grid = render_views(make_creature(5), Cameras.official("sv4d2"), 2, 32)
    views = corrupt_views(grid, 0, 0.0)
    views.images[1, 2] = (views.images[1, 2] - 0.25).clamp(min=0)
    residuals = fit_residuals(grid, views)
    assert residuals.shape == (2, 5)
    change = (views.images[1, 2] - grid.images[1, 2]).abs().mean(dim=-1)
    expected = float((change * grid.masks[1, 2]).sum() / grid.masks[1, 2].sum())
    assert residuals[1, 2].item() == pytest.approx(expected, rel=1e-4)
    residuals[1, 2] = 0
    assert residuals.abs().max() == 0
