"""The weights of pixels, by angle, rim, visibility and fit, and the terms that need pixels side by side."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from sv4d2_core.cameras import Cameras
from sv4d2_core.scene import losses
from sv4d2_core.scene.config import RefineConfig
from sv4d2_core.scene.dynerf.rays import Targets, patch_loss, surface_normals
from sv4d2_core.scene.geometry.trust import (
    facing,
    fit_confidence,
    rim_weights,
    seen_by_input,
    view_trust,
    visibility_weights,
)
from sv4d2_core.scene.refine import refine_scene as whole_job
from sv4d2_core.scene.scene import SceneRendering
from sv4d2_core.scene.targets import checked_normals
from sv4d2_core.views import ViewGrid
from sv4d2_core.world import benchmark_scenes, render_creature
from sv4d2_core.world.body import make_creature
from sv4d2_core.world.render import render_views

# The scenes are rendered at known cameras: nothing is estimated.
refine_scene = partial(whole_job, input_elevation_deg=0.0)

CAMERAS = Cameras((0, 0, 0), (0, 90, 180))
SIZE = 128
SMALL = RefineConfig(
    rounds=0, steps_static=2, steps=6, rays_per_step=512, samples=32, hull_size=16, hidden=16, features=4
)


def test_trust_falls_with_the_angle_to_the_input():
    trust = view_trust(Cameras((0, 0, 0, 0, 75, 0), (0, 1, 75, 180, 0, 285)))
    expected = [0, 1, 75, 180, 75, 75]
    for value, angle in zip(trust.tolist(), expected, strict=True):
        assert value == pytest.approx(0.35 + 0.65 * math.exp(-((angle / 75) ** 2)), abs=1e-6)
    assert trust.dtype == torch.float32 and float(trust[0]) == 1
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
    # It is averaged over the neighbours inside the picture.
    dot = grey.clone()
    dot[0, 0, 0] = 0.55
    drop, lost = 1 - fit_confidence(grey, dot)[0], 1 - math.exp(-0.15 / 0.15)
    assert float(drop[0, 0]) == pytest.approx(lost / 9, abs=1e-5)
    assert float(drop[2, 2]) == pytest.approx(lost / 25, abs=1e-5)
    assert float(drop[3:].abs().max()) == 0


def sphere(cameras=CAMERAS, radius=0.4):
    """Return a grey sphere at the origin as every camera sees it, in closed form."""
    origins, directions = (x.float() for x in cameras.rays(SIZE))
    along = -(directions * origins[:, None, None]).sum(-1)
    gap = (origins[:, None, None] + directions * along[..., None]).square().sum(-1)
    hit = gap < radius**2
    depth = torch.where(hit, along - (radius**2 - gap).clamp(min=0).sqrt(), 0.0)
    points = origins[:, None, None] + directions * depth[..., None]
    normal = torch.where(hit[..., None], points / radius, 0.0)
    rgb = torch.where(hit[..., None], 0.5, 1.0).expand(*hit.shape, 3)
    return SceneRendering(rgb[None].clone(), hit[None].float(), depth[None], normal[None])


def test_the_input_sees_the_near_side_of_a_sphere():
    cameras = Cameras((0, 0, 20, 0), (0, 60, 120, 180))
    depths = sphere(cameras, 0.5).depth
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
    depths = sphere(cameras, 0.5).depth
    assert bool(seen_by_input(depths, cameras).any())
    depths[:, 0] = depths[:, 0].where(depths[:, 0] == 0, 1.2)
    assert not bool(seen_by_input(depths, cameras).any())


def test_what_is_seen_shows_the_input_s_own_colour():
    """Colours do not depend on the view, so a seen point has its colour in the input picture too."""
    cameras = Cameras.official("sv4d2")
    walker = next(s for s in benchmark_scenes() if s.name == "walker").creature
    truth = render_creature(walker, cameras, torch.tensor([0.0, 0.5]), 96)
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


def test_weights_are_facing_times_trust_times_confidence():
    rendering = sphere()
    views = ViewGrid(rendering.rgb, CAMERAS, rendering.alpha)
    weights = visibility_weights(rendering, views)
    middle = SIZE // 2
    # The input counts 1; a view that fits, seen squarely and far from the rim, counts its trust.
    assert float(weights[0, 0].min()) == float(weights[0, 0].max()) == 1
    trust = view_trust(CAMERAS)
    assert float(weights[0, 2, middle, middle]) == pytest.approx(float(trust[2]), abs=0.01)
    # At the edge of the sphere the surface is seen at a grazing angle.
    inside = (rendering.alpha[0, 2] > 0).nonzero()
    row, column = inside[inside[:, 0] == middle][0].tolist()
    assert float(weights[0, 2, row, column]) < 0.2 * float(weights[0, 2, middle, middle])
    # Half of the side view shows what the input shows, and gives way to it.
    left, right = weights[0, 1, middle, 40], weights[0, 1, middle, SIZE - 1 - 40]
    assert float(min(left, right)) == pytest.approx(float(max(left, right)) / 2, rel=0.05)


def test_contradicted_targets_count_least_and_trusted_views_alike():
    rendering = sphere()
    views = ViewGrid(rendering.rgb, CAMERAS, rendering.alpha)
    other = replace(views, images=(views.images - 0.4 * rendering.alpha[..., None]).clamp(0, 1))
    middle = SIZE // 2
    fits, contradicts = (visibility_weights(rendering, x)[0, 2, middle, middle] for x in (views, other))
    assert float(contradicts) == pytest.approx(0.2 * float(fits), rel=0.05)
    trusted = visibility_weights(rendering, views, trusted=True)
    assert float(trusted[0, 2, middle, middle]) == pytest.approx(1, abs=0.01)


def test_surface_normals_of_a_sphere_point_outward():
    rendering = sphere()
    origins, directions = (x.float() for x in CAMERAS.rays(SIZE))
    points = origins[:, None, None] + directions * rendering.depth[0][..., None]
    ours, true = surface_normals(points), rendering.normal[0]
    well_inside = (true * -directions).sum(-1) > 0.7
    assert float((ours * true).sum(-1)[well_inside].min()) > 0.95


def test_each_term_of_a_patch_is_felt():
    generator = torch.Generator().manual_seed(0)
    colours, ones = torch.rand(1, 16, 16, 3, generator=generator), torch.ones(1, 16, 16)
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    flat = torch.stack([columns, -rows, torch.zeros(16, 16)], -1)[None] / 16
    rough = flat + torch.rand(1, 16, 16, 3, generator=generator) / 20

    def cost(seen=colours, points=flat, depths=ones, normals=None, perceptual=None):
        target = Targets(colours, ones, ones, normals)
        return float(patch_loss(seen, ones, depths, points, target, perceptual))

    assert cost() == pytest.approx(0, abs=1e-5)
    other = float(losses.dissimilarity(1 - colours, colours))
    assert cost(1 - colours) == pytest.approx(0.1 * other, rel=1e-3)
    depths = rough[..., 2] + 1
    sloped = float(losses.depth_smoothness(depths, ones))
    assert cost(depths=depths) == pytest.approx(0.01 * sloped, rel=1e-2)
    assert cost(points=rough) > 0.02 * 0.05
    towards = torch.tensor([0.0, 0.0, 1.0]).expand(1, 16, 16, 3)
    assert cost(normals=towards) == pytest.approx(0, abs=1e-5) == cost(normals=0 * towards)
    # The last row and column have no neighbours to make a normal with.
    assert cost(normals=-towards) == pytest.approx(0.05 * 2 * (15 / 16) ** 2, abs=1e-5)
    assert cost(1 - colours, perceptual=lambda a, b: torch.full((1,), 3.0)) == pytest.approx(0.3, rel=1e-3)


def test_patches_change_a_fit_and_normals_are_checked():
    views = render_views(make_creature(10), Cameras.official("sv4d2"), 3, 32)
    tiny = replace(SMALL, steps=12, rays_per_step=64, samples=16, plane_sizes=(8, 16))
    normals = torch.zeros(views.images.shape)
    normals[..., 2] = 3

    def field(config, **more):
        return refine_scene(views, config, **more).field.field.planes.space[0].detach()

    seen = []

    def perceptual(ours, theirs):
        seen.append(tuple(ours.shape))
        return (ours - theirs).abs().mean((1, 2, 3))

    plain, told, compared = (
        field(tiny, **more) for more in ({}, {"normals": normals}, {"perceptual": perceptual})
    )
    assert not torch.equal(plain, told) and not torch.equal(plain, compared)
    # From a fifth of the 14 steps on.
    assert set(seen) == {(1, 32, 32, 3)} and len(seen) == 11
    checked = checked_normals(normals, views)
    assert checked is not None and float(checked.norm(dim=-1).max()) == 1
    with pytest.raises(ValueError, match="use the backend dynerf"):
        refine_scene(views, replace(tiny, backend="gaussians"), normals=normals)
    with pytest.raises(ValueError, match="normals .* like the views"):
        refine_scene(views, tiny, normals=normals[:2])
    with pytest.raises(ValueError, match="at least 32 pixels for a perceptual distance"):
        refine_scene(views, tiny, size=24, perceptual=perceptual)


def test_a_memory_budget_changes_rounding_only():
    views = render_views(make_creature(10), Cameras.official("sv4d2"), 3, 24)
    small = replace(SMALL, memory_gb=0.004, plane_sizes=(3, 6, 12))
    assert 64 <= small.rays_in_memory < 300
    whole, parts = (refine_scene(views, x).field.field.planes.space[2].detach() for x in (SMALL, small))
    assert float((whole - parts).abs().max()) < 2e-2
    assert RefineConfig().rays_in_memory == 0
