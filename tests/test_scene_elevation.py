"""The input's elevation from silhouettes: found on true and corrupted masks, and doubted where it hides."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sv4d2_core.cameras import Cameras
from sv4d2_core.scene.geometry.elevation import ElevationEstimate, estimate_elevation, hull_iou
from sv4d2_core.views import ViewGrid
from sv4d2_core.world import benchmark_scenes, corrupt_views

torch.set_num_threads(1)

RIG = Cameras.official("sv4d2")


@functools.cache
def truth(name: str, elevation_deg: float, cameras: Cameras = RIG, size: int = 48) -> ViewGrid:
    scene = next(s for s in benchmark_scenes() if s.name == name)
    return replace(scene, n_frames=2).views(replace(cameras, input_elevation_deg=elevation_deg), size)


def estimate(grid: ViewGrid, cameras: Cameras = RIG, **settings: range) -> ElevationEstimate:
    assert grid.masks is not None
    return estimate_elevation(grid.masks, cameras, **settings)


@pytest.mark.parametrize(
    "name, elevation_deg",
    [("walker", 0.0), ("walker", 20.0), ("runner", 10.0), ("robot_arm", -10.0), ("butterfly", 7.0)],
)
def test_true_masks_give_the_elevation_within_two_degrees(name: str, elevation_deg: float):
    found = estimate(truth(name, elevation_deg))
    assert found.elevation_deg == pytest.approx(elevation_deg, abs=2)
    assert found.certain and found.margin > 0.03


@pytest.mark.parametrize("name, elevation_deg", [("walker", 10.0), ("aeroplane", 0.0), ("butterfly", -10.0)])
def test_corrupted_masks_give_it_within_five(name: str, elevation_deg: float):
    found = estimate(corrupt_views(truth(name, elevation_deg), seed=1))
    assert found.elevation_deg == pytest.approx(elevation_deg, abs=5)


def test_a_body_that_is_round_about_the_vertical_is_not_certain():
    sphere = torch.linalg.vector_norm(
        torch.stack(torch.meshgrid(*[torch.arange(48) - 23.5] * 2, indexing="ij")), dim=0
    )
    masks = (sphere < 14).float().expand(2, 5, 48, 48)
    found = estimate_elevation(masks, RIG)
    assert not found.certain and found.margin < 0.01
    assert not estimate(truth("owl", 10.0)).certain


def test_an_elevation_beyond_the_candidates_is_not_certain():
    found = estimate(truth("walker", 20.0), candidates_deg=range(-20, 11, 5))
    assert found.elevation_deg == 10 and not found.certain


def test_scores_are_those_of_the_candidates_and_the_cameras_own_elevation_is_not_read():
    grid = truth("walker", 10.0)
    found = estimate(grid, candidates_deg=range(20, -1, -10))
    assert found.candidates_deg == (0, 10, 20) and len(found.scores) == 3
    assert found.scores[1] == max(found.scores) and 0.8 < found.scores[1] <= 1
    assert found.margin == pytest.approx(found.scores[1] - max(found.scores[0], found.scores[2]))
    assert estimate(grid, grid.cameras, candidates_deg=range(0, 21, 10)) == found


def test_the_hull_of_consistent_masks_fills_them_and_an_alien_view_lowers_the_score():
    grid = truth("butterfly", 0.0)
    assert grid.masks is not None
    whole = hull_iou(grid.masks, RIG)
    mirrored: Tensor = grid.masks.clone()
    mirrored[:, 2] = mirrored[:, 2].roll(8, dims=-1)
    assert hull_iou(mirrored, RIG) < whole - 0.1


def test_views_at_several_elevations_and_candidates_near_a_pole():
    cameras = Cameras((0, 60, 0, -15), (0, 60, 150, 240))
    found = estimate(truth("walker", 10.0, cameras), cameras, candidates_deg=range(-10, 41, 10))
    assert found.candidates_deg == (-10, 0, 10, 20)
    assert found.elevation_deg == pytest.approx(10, abs=2)


def test_empty_frames_do_not_count():
    grid = truth("walker", 10.0)
    assert grid.masks is not None
    with_gap = torch.cat([grid.masks, torch.zeros_like(grid.masks[:1])])
    assert estimate_elevation(with_gap, RIG).scores == pytest.approx(estimate(grid).scores, abs=1e-5)


def test_bad_input_is_named():
    masks = torch.ones(1, 5, 16, 16)
    with pytest.raises(ValueError, match=r"masks \[T, 5, N, N\].*got \[1, 4, 16, 16\]"):
        estimate_elevation(masks[:, :4], RIG)
    masks[:, 3] = 0
    with pytest.raises(ValueError, match="at least one view is empty"):
        estimate_elevation(masks, RIG)
    with pytest.raises(ValueError, match="at least 3 candidate"):
        estimate_elevation(torch.ones(1, 5, 16, 16), RIG, [0, 10])
