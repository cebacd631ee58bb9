"""Per-pixel weights of the second stage, and the terms that need pixels side by side."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.scene import losses
from sv4d2_core.scene.config import RefineConfig
from sv4d2_core.scene.dynerf.rays import Targets, patch_loss, surface_normals
from sv4d2_core.scene.geometry.trust import view_trust, visibility_weights
from sv4d2_core.scene.refine import refine_scene as whole_job
from sv4d2_core.scene.scene import SceneRendering
from sv4d2_core.scene.targets import checked_normals
from sv4d2_core.views import ViewGrid
from sv4d2_core.world.body import make_creature
from sv4d2_core.world.render import render_views

# The scenes are rendered at known cameras: nothing is estimated.
refine_scene = partial(whole_job, input_elevation_deg=0.0)

CAMERAS = Cameras((0, 0, 0), (0, 90, 180))
SIZE = 128


def sphere(radius=0.4):
    """Return a grey sphere at the origin as every camera sees it, in closed form."""
    origins, directions = (x.float() for x in CAMERAS.rays(SIZE))
    along = -(directions * origins[:, None, None]).sum(-1)
    gap = (origins[:, None, None] + directions * along[..., None]).square().sum(-1)
    hit = gap < radius**2
    depth = torch.where(hit, along - (radius**2 - gap).clamp(min=0).sqrt(), 0.0)
    points = origins[:, None, None] + directions * depth[..., None]
    normal = torch.where(hit[..., None], points / radius, 0.0)
    rgb = torch.where(hit[..., None], 0.5, 1.0).expand(*hit.shape, 3)
    return SceneRendering(rgb[None].clone(), hit[None].float(), depth[None], normal[None])


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
    tiny = RefineConfig(
        rounds=0,
        steps_static=2,
        steps=12,
        rays_per_step=64,
        samples=16,
        features=4,
        plane_sizes=(8, 16),
        hidden=16,
        hull_size=16,
    )
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
    config = RefineConfig(
        rounds=0, steps_static=2, steps=6, rays_per_step=512, samples=32, hull_size=16, hidden=16, features=4
    )
    small = replace(config, memory_gb=0.004, plane_sizes=(3, 6, 12))
    assert 64 <= small.rays_in_memory < 300
    whole, parts = (refine_scene(views, x).field.field.planes.space[2].detach() for x in (config, small))
    assert float((whole - parts).abs().max()) < 2e-2
    assert RefineConfig().rays_in_memory == 0
