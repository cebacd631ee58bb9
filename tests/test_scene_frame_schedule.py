"""Which frames a step may see: outward from the anchor, all by 35 % of the steps, old ones again."""

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from sv4d2_core.cameras import Cameras
from sv4d2_core.scene.config import RefineConfig
from sv4d2_core.scene.schedule import (
    LARGE_MOTION_IOU,
    allowed_frames,
    anchor_frame,
    draw_frames,
    motion_score,
    schedule,
)
from sv4d2_core.views import ViewGrid
from sv4d2_core.world import benchmark_scenes


def squares(*positions: int) -> Tensor:
    """Return masks [T, 2, 8, 8] of a 4 x 4 square that starts at these columns."""
    masks = torch.zeros(len(positions), 2, 8, 8)
    for t, x in enumerate(positions):
        masks[t, :, 2:6, x : x + 4] = 1
    return masks


@pytest.mark.parametrize("steps", [7, 100, 1500])
@pytest.mark.parametrize("n_frames", [1, 2, 5, 12, 21])
def test_frames_are_admitted_outward_and_all_by_35_percent(steps: int, n_frames: int):
    for anchor in (0, n_frames // 2, n_frames - 1):
        before: set[int] = set()
        for step in range(steps):
            allowed, newest = allowed_frames(step, steps, n_frames, anchor)
            stage = min(5, math.floor(5 * (0.2 + 0.8 * step / (0.35 * steps)) + 1e-9))
            reach = math.ceil(stage * n_frames / 5)
            assert allowed == [t for t in range(n_frames) if abs(t - anchor) <= reach]
            assert set(newest) <= set(allowed)
            # With very few steps, one step may pass several stages.
            assert steps < 20 or set(allowed) - before <= set(newest)
            before = set(allowed)


def test_the_rings_of_a_long_clip():
    rings = [allowed_frames(step, 100, 20, 0)[1] for step in (0, 9, 18, 27, 35, 44)]
    bounds = [(0, 5), (5, 9), (9, 13), (13, 17), (17, 20), (0, 0)]
    assert rings == [list(range(*ends)) for ends in bounds]
    assert allowed_frames(34, 100, 20, 0)[0] == list(range(17))


def test_half_of_the_drawn_frames_are_new_and_none_comes_twice():
    generator = torch.Generator("cpu").manual_seed(3)
    # Without new ones all are drawn alike.
    drawn = torch.cat([draw_frames(list(range(6)), [], 3, generator) for _ in range(1000)])
    assert torch.bincount(drawn, minlength=6).float().sub(500).abs().max() < 75
    counts: Counter[int] = Counter()
    for _ in range(2000):
        frames = draw_frames(list(range(9)), [5, 6, 7, 8], 4, generator).tolist()
        assert len(set(frames)) == 4 and sum(t >= 5 for t in frames[:2]) == 2
        counts.update(frames)
    # Two of four from the ring, then two of the seven that are left.
    for t in range(9):
        expected = 2000 * (1 / 2 + 1 / 2 * 2 / 7) if t >= 5 else 2000 * 2 / 7
        assert counts[t] == pytest.approx(expected, rel=0.15)


def test_too_few_frames_are_repeated_and_a_seed_repeats_the_draw():
    def drawn(seed: int) -> list[int]:
        return draw_frames([2, 3], [3], 5, torch.Generator("cpu").manual_seed(seed)).tolist()

    assert drawn(1) == drawn(1) and len(drawn(1)) == 5 and set(drawn(1)) == {2, 3}
    assert draw_frames([4], [4], 1, torch.Generator("cpu")).tolist() == [4]


def test_the_anchor_shows_most_and_motion_score_of_known_shifts():
    masks = squares(0, 0, 0, 0)
    masks[2, 1, 0] = 1
    assert anchor_frame(masks) == 2 and anchor_frame(squares(0, 1)) == 0
    assert motion_score(squares(1, 1, 1), 0) == 1
    # A shift by one of four columns leaves 12 of 20 pixels in common.
    assert motion_score(squares(0, 1), 0) == pytest.approx((1 + 12 / 20) / 2)
    assert motion_score(torch.zeros(3, 2, 4, 4), 1) == 1
    # Disjoint but for one frame of four.
    assert motion_score(squares(0, 4, 4, 4), 0) == 1 / 4


def test_fast_scenes_have_large_motion_and_a_turning_owl_has_not():
    rig = Cameras.official("sv4d2")
    large = set()
    for scene in benchmark_scenes():
        if scene.name in ("runner", "aeroplane", "owl"):
            masks = scene.views(rig, 32).masks
            if motion_score(masks, anchor_frame(masks)) <= LARGE_MOTION_IOU:
                large.add(scene.name)
    assert large == {"runner", "aeroplane"}


def grid(masks: Tensor) -> ViewGrid:
    """Return views with these masks."""
    return ViewGrid(torch.ones(*masks.shape, 3), Cameras((0, 0), (0, 90)), masks)


def test_learning_rates_fall_in_each_stage_and_rounds_begin_when_they_are_due():
    config = RefineConfig().with_steps(2500, 2)
    steps = list(schedule(config, grid(squares(0, 1))))
    start = config.stage_one_steps
    rates = [step.learning_rate for step in steps]
    assert rates[0] == 1 and rates[start] == pytest.approx(0.3)
    assert rates[start - 1] == pytest.approx(0.1, rel=0.01) == rates[-1]
    assert [steps[i].round for i in (0, start - 1, start, -1)] == [0, 0, 1, 2]
    begins = [step.number for step in steps if step.begins_round]
    assert begins == [start, start + config.steps_refine] and len(steps) == config.total_steps
    assert [step.timed for step in steps] == [i >= config.steps_static for i in range(2500)]
    assert {step.allowed for step in steps[: config.steps_static]} == {(0,)}


def test_pictures_grow_from_coarse_to_fine():
    config = RefineConfig(rounds=1, steps_static=0, steps=100, steps_refine=10)
    for size, expected in ((256, [64, 64, 128, 128, 256, 256, 256]), (64, [64] * 7)):
        steps = list(schedule(config, grid(torch.ones(1, 2, size, size))))
        assert [size // steps[i].shrink for i in (0, 39, 41, 69, 71, 99, 109)] == expected


def test_a_schedule_goes_on_where_it_was_left_and_says_which_frames_come_in():
    config = RefineConfig(steps_static=2, steps=20, rounds=1, steps_refine=3, progressive=True)
    views = grid(squares(0, 1, 2, 3, 4))
    whole = list(schedule(config, views))
    assert list(schedule(config, views, first=7)) == whole[7:]
    known = [(step.number, step.known) for step in whole if step.known]
    assert known == [(2, (0, 0)), (4, (0, 1)), (6, (0, 2)), (8, (0, 3))]
    assert whole[-1].allowed == (0, 1, 2, 3, 4)
