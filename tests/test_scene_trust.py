"""The weights of pixels: by view angle, silhouette rim, visibility, fit, and what the input sees itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from sv4d2_core.cameras import Cameras
from sv4d2_core.scene.geometry.trust import (
    facing,
    fit_confidence,
    rim_weights,
    seen_by_input,
    view_trust,
)
from sv4d2_core.world import Rendering, benchmark_scenes, render_creature

torch.set_num_threads(1)


def test_trust_falls_with_the_angle_to_the_input():
    trust = view_trust(Cameras((0, 0, 0, 0, 75, 0), (0, 1, 75, 180, 0, 285)))
    expected = [0, 1, 75, 180, 75, 75]
    for value, angle in zip(trust.tolist(), expected, strict=True):
        assert value == pytest.approx(0.35 + 0.65 * math.exp(-((angle / 75) ** 2)), abs=1e-6)
    assert trust.dtype == torch.float32 and float(trust[0]) == 1


def test_the_angle_is_that_on_the_sphere_at_the_true_elevation():
    # At 60 degrees of elevation, 180 degrees of azimuth are 60 degrees over the pole.
    high = view_trust(Cameras((0, 0), (0, 180), input_elevation_deg=60))
    assert float(high[1]) == pytest.approx(0.35 + 0.65 * math.exp(-((60 / 75) ** 2)), abs=1e-6)


def test_the_rim_is_two_pixels_on_either_side_of_a_straight_silhouette():
    mask = torch.zeros(1, 9, 12)
    mask[:, :, 6:] = 1
    # The picture's own edge is no silhouette: the object goes on beyond it.
    row = [1.0] * 4 + [0.5] * 4 + [1.0] * 4
    assert torch.equal(rim_weights(mask, 2.0), torch.tensor(row).expand(1, 9, 12))
    wider = rim_weights(mask, pixels=3.0)
    assert float((wider == 0.5).sum()) == 9 * 6
    assert bool((rim_weights(torch.zeros(2, 8, 8), 2.0) == 1).all())
    assert bool((rim_weights(torch.ones(2, 8, 8), 2.0) == 1).all())


def test_the_rim_of_a_disc_has_its_area():
    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    radius = (x**2 + y**2).sqrt()
    rim = rim_weights((radius < 20).float()[None], pixels=2.0)[0] == 0.5
    assert float(rim.sum()) == pytest.approx(math.pi * (22**2 - 18**2), rel=0.1)
    assert float(radius[rim].min()) > 17 and float(radius[rim].max()) < 23


def test_facing_follows_the_formula():
    eye = torch.tensor([0.0, 0.0, 2.0])
    cosines = torch.tensor([1.0, 0.5, 0.25, 0.125, 0.0, -1.0])
    normals = torch.stack([(1 - cosines**2).sqrt(), torch.zeros(6), cosines], dim=-1)
    assert facing(normals, torch.zeros(6, 3), eye).tolist() == pytest.approx([1, 1, 0.5, 0.15625, 0, 0])
    # Nearer than the unit distance and off the axis: only the direction counts.
    near = facing(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.9]), eye)
    share = 0.2 / math.sqrt(1.01)
    assert float(near) == pytest.approx(share**2 * (3 - 2 * share))


def test_confidence_of_equal_different_and_slightly_different_pictures():
    grey = torch.full((1, 8, 8, 3), 0.5)
    assert bool((fit_confidence(grey, grey) == 1).all())
    assert bool((fit_confidence(grey, 0 * grey) == 0.2).all())
    near = fit_confidence(grey, grey + 0.02)
    assert near == pytest.approx(torch.full((1, 8, 8), math.exp(-0.06 / 0.15)), abs=1e-5)


def test_confidence_is_averaged_over_the_neighbours_inside_the_picture():
    grey, dot = torch.full((1, 9, 9, 3), 0.5), torch.full((1, 9, 9, 3), 0.5)
    dot[0, 0, 0] = 0.55
    drop = 1 - fit_confidence(grey, dot)[0]
    lost = 1 - math.exp(-0.15 / 0.15)
    assert float(drop[0, 0]) == pytest.approx(lost / 9, abs=1e-5)
    assert float(drop[2, 2]) == pytest.approx(lost / 25, abs=1e-5)
    assert float(drop[3:].abs().max()) == 0


def test_confidence_marks_the_view_that_disagrees():
    scene = next(s for s in benchmark_scenes() if s.name == "owl")
    truth = scene.views(Cameras.official("sv4d2"), 32).images[0]
    off = truth.clone()
    off[3] = off[3].roll(5, dims=1)
    confidence = fit_confidence(off, truth).mean(dim=(1, 2))
    assert int(confidence.argmin()) == 3 and float(confidence[[0, 1, 2, 4]].min()) == 1


def sphere_depths(cameras: Cameras, size: int, radius: float = 0.5) -> torch.Tensor:
    """Return the depths of a sphere at the origin, [1, V + 1, size, size]."""
    origins, directions = cameras.rays(size)
    along = -(origins[:, None, None] * directions).sum(-1)
    inside = radius**2 - (cameras.radius**2 - along**2)
    return torch.where(inside > 0, along - inside.clamp(min=0).sqrt(), 0.0)[None].float()


def test_the_input_sees_the_near_side_of_a_sphere():
    cameras = Cameras((0, 0, 20, 0), (0, 60, 120, 180))
    depths = sphere_depths(cameras, 128)
    seen = seen_by_input(depths, cameras)
    assert seen.dtype == torch.bool and not bool(seen[:, 0].any())
    origins, directions = (x.float() for x in cameras.rays(128))
    points = origins[:, None, None] + directions * depths[0, ..., None]
    surface = depths[0] > 0
    cosine = F.normalize(points, dim=-1) @ F.normalize(origins[0], dim=-1)
    # The horizon lies where the cosine is radius / distance = 0.25.
    assert bool(seen[0, 1:][(surface & (cosine > 0.6))[1:]].all())
    assert not bool(seen[0][surface & (cosine < 0.1)].any())
    assert not bool(seen[0][~surface].any()) and not bool(seen[0, 3].any())


def test_an_object_in_front_hides_what_is_behind_it():
    cameras = Cameras((0, 0), (0, 90))
    depths = sphere_depths(cameras, 64)
    assert bool(seen_by_input(depths, cameras).any())
    depths[:, 0] = depths[:, 0].where(depths[:, 0] == 0, 1.2)
    assert not bool(seen_by_input(depths, cameras).any())


def rendered(name: str, cameras: Cameras, size: int) -> Rendering:
    scene = next(s for s in benchmark_scenes() if s.name == name)
    return render_creature(scene.creature, cameras, torch.tensor([0.0, 0.5]), size)


def test_what_is_seen_shows_the_input_s_own_colour():
    """Colours do not depend on the view, so a seen point has its colour in the input picture too."""
    cameras = Cameras.official("sv4d2")
    truth = rendered("walker", cameras, 96)
    seen = seen_by_input(truth.depth, cameras)
    share = [float(seen[:, v].sum() / (truth.mask[:, v] > 0).sum()) for v in range(5)]
    # The views at 60 and 120 degrees share surface with the input, the one behind almost none.
    assert share[1] > 0.3 and share[1] > 2 * share[2] > 4 * share[3] and share[4] > share[3]
    origins, directions = (x.float() for x in cameras.rays(96))
    points = origins[1] + directions[1] * truth.depth[:, 1, ..., None]
    to_pixels = (cameras.intrinsics(96) @ cameras.w2c_opencv()[0, :3]).float()
    pixels = points @ to_pixels[:, :3].T + to_pixels[:, 3]
    column, row = (pixels[..., :2] / pixels[..., 2:]).floor().long().clamp(0, 95).unbind(-1)
    shown = torch.stack([truth.rgb[t, 0][row[t], column[t]] for t in range(2)])
    difference = (shown - truth.rgb[:, 1]).abs().mean(-1)
    surface = truth.mask[:, 1] > 0.99
    assert float(difference[seen[:, 1] & surface].mean()) < 0.5 * float(
        difference[~seen[:, 1] & surface].mean()
    )
