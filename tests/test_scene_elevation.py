"""The input's elevation from silhouettes: found on true and corrupted masks, and doubted where it hides."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.scene.geometry.elevation import estimate_elevation, hull_iou
from sv4d2_core.world import benchmark_scenes, corrupt_views

torch.set_num_threads(1)

RIG = Cameras.official("sv4d2")


@functools.cache
def truth(name, elevation_deg, cameras=RIG, size=48):
    scene = next(s for s in benchmark_scenes() if s.name == name)
    return replace(scene, n_frames=2).views(replace(cameras, input_elevation_deg=elevation_deg), size)


@pytest.mark.parametrize(
    "name, elevation_deg",
    [("walker", 0.0), ("walker", 20.0), ("runner", 10.0), ("robot_arm", -10.0), ("butterfly", 7.0)],
)
def test_true_masks_give_the_elevation_within_two_degrees(name, elevation_deg):
    grid = truth(name, elevation_deg)
    found, certain = estimate_elevation(grid.masks, RIG)
    assert found == pytest.approx(elevation_deg, abs=2) and certain
    # What the cameras say themselves is not read.
    assert estimate_elevation(grid.masks, grid.cameras) == (found, certain)


@pytest.mark.parametrize("name, elevation_deg", [("walker", 10.0), ("aeroplane", 0.0), ("butterfly", -10.0)])
def test_corrupted_masks_give_it_within_five(name, elevation_deg):
    masks = corrupt_views(truth(name, elevation_deg), seed=1).masks
    assert estimate_elevation(masks, RIG)[0] == pytest.approx(elevation_deg, abs=5)


def test_a_body_that_is_round_about_the_vertical_is_not_certain():
    axes = torch.meshgrid(*[torch.arange(48) - 23.5] * 2, indexing="ij")
    ball = torch.linalg.vector_norm(torch.stack(axes), dim=0) < 14
    for masks in (ball.float().expand(2, 5, 48, 48), truth("owl", 10.0).masks):
        assert not estimate_elevation(masks, RIG)[1]


def test_an_elevation_beyond_the_candidates_is_not_certain():
    assert estimate_elevation(truth("walker", 50.0).masks, RIG) == (40, False)


def test_the_hull_of_consistent_masks_fills_them_and_an_alien_view_lowers_the_score():
    masks = truth("butterfly", 0.0).masks
    moved = masks.clone()
    moved[:, 2] = moved[:, 2].roll(8, dims=-1)
    assert 1 >= hull_iou(masks, RIG) > hull_iou(moved, RIG) + 0.1


def test_views_at_several_elevations_and_near_a_pole():
    cameras = Cameras((0, 60, 0, -15), (0, 60, 150, 240))
    found, _ = estimate_elevation(truth("walker", 10.0, cameras).masks, cameras)
    assert found == pytest.approx(10, abs=2)
    with pytest.raises(ValueError, match="up to 85 degrees.*Give the elevation"):
        estimate_elevation(torch.ones(1, 3, 16, 16), Cameras((0, 85, -85), (0, 90, 180)))


def test_empty_frames_do_not_count():
    masks = truth("walker", 10.0).masks
    with_gap = torch.cat([masks, torch.zeros_like(masks[:1])])
    assert estimate_elevation(with_gap, RIG)[0] == pytest.approx(estimate_elevation(masks, RIG)[0], abs=1e-4)
