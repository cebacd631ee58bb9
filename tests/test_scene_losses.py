"""The fit's loss terms, and the weights of pixels by angle, rim, visibility and fit."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sv4d2_core.cameras import Cameras
from sv4d2_core.metrics.image import ssim
from sv4d2_core.scene import losses
from sv4d2_core.scene.config import RefineConfig
from sv4d2_core.scene.dynerf.rays import Targets, patch_loss, surface_normals
from sv4d2_core.scene.geometry import trust
from sv4d2_core.scene.refine import refine_scene as whole_job
from sv4d2_core.scene.scene import SceneRendering
from sv4d2_core.scene.targets import checked_normals
from sv4d2_core.views import ViewGrid
from sv4d2_core.world.body import make_creature
from sv4d2_core.world.render import render_views


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Return values in 0.1..0.9, away from the kinks."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return 0.1 + 0.8 * torch.rand(shape, generator=generator, dtype=torch.float64)


def ramp(size: int, slope: float) -> Tensor:
    """Return one patch [1, size, size] that rises to the right."""
    return (slope * torch.arange(size, dtype=torch.float64)).expand(1, size, size)


@pytest.mark.parametrize("term", [losses.mean_squared, losses.normal_consistency])
def test_weights_of_a_half_halve_the_loss_and_zero_weights_drop_a_pixel(term):
    a, b = (noise(8, 3, seed=s) for s in (4, 5))
    whole = float(term(a, b, torch.ones(8)))
    assert float(term(a, b, torch.full((8,), 0.5).double())) == pytest.approx(whole / 2)
    first = torch.zeros(8, dtype=torch.float64)
    first[0] = 1
    assert float(term(a, b, first)) == pytest.approx(float(term(a[:1], b[:1], first[:1])) / 8)


def test_differences_of_known_size():
    zeros, tenth = torch.zeros(5, 3), torch.full((5, 3), 0.1)
    assert float(losses.mean_squared(tenth, zeros, torch.ones(5))) == pytest.approx(0.01)
    assert float(losses.mask_loss(tenth, zeros)) == pytest.approx(0.01)
    up, side = torch.tensor([[0.0, 1, 0]]), torch.tensor([[1.0, 0, 0]])
    values = [float(losses.normal_consistency(up, other, torch.ones(1))) for other in (up, side, -up)]
    assert values == [0, 1, 2]


def test_a_sloping_depth_costs_its_squared_slope_and_a_step_to_nothing_costs_nothing():
    ones = torch.ones(1, 6, 6)
    assert float(losses.depth_smoothness(ramp(6, 0.3), ones)) == pytest.approx(0.09)
    assert float(losses.depth_smoothness(ramp(6, 0.3).mT, ones)) == pytest.approx(0.09)
    depth = torch.full((1, 6, 6), 2.0)
    depth[:, :, 3:] = 0
    assert float(losses.depth_smoothness(depth, ones)) > 0.1
    assert float(losses.depth_smoothness(depth, (depth > 0).float())) == 0


def test_normals_may_bend_at_edges_of_the_picture_only():
    flat, ones = torch.zeros(1, 7, 7, 3, dtype=torch.float64), torch.ones(1, 7, 7)
    grey = torch.full((1, 7, 7, 3), 0.5, dtype=torch.float64)
    assert float(losses.normal_smoothness(flat, grey, ones)) == 0
    bent = torch.stack([ramp(7, 0.2), flat[..., 0], flat[..., 0]], dim=-1)
    expected = math.sqrt(1.2) - 1
    assert float(losses.normal_smoothness(bent, grey, ones)) == pytest.approx(expected, rel=1e-5)
    # A picture that rises by 0.1 per pixel in each of three channels has a gradient of 0.1 sqrt(3).
    edge = ramp(7, 0.1)[..., None].expand(-1, -1, -1, 3)
    expected *= math.exp(-3 * 0.1 * math.sqrt(3))
    assert float(losses.normal_smoothness(bent, edge, ones)) == pytest.approx(expected, rel=1e-5)
    flat.requires_grad_()
    losses.normal_smoothness(flat, grey, ones).backward()
    assert flat.grad is not None and bool(flat.grad.isfinite().all())


def test_entropy_is_largest_at_a_half_and_0_when_decided():
    assert float(losses.alpha_entropy(torch.full((4,), 0.5))) == pytest.approx(math.log(2))
    decided = torch.tensor([0.0, 1.0], requires_grad=True)
    value = losses.alpha_entropy(decided)
    assert float(value.detach()) < 1e-4
    value.backward()
    assert decided.grad is not None and bool(decided.grad.isfinite().all())


def test_plane_terms_of_constant_steady_and_sudden_planes():
    ones, steady = torch.ones(2, 5, 4), 0.5 * torch.arange(5.0)[:, None].expand(2, 5, 4)
    assert float(losses.total_variation(ones)) == float(losses.time_difference(ones)) == 0
    assert float(losses.total_variation(steady)) == pytest.approx(0.25)
    assert float(losses.second_difference(steady)) == 0
    # A parabola's second difference is constant; only time, the middle dimension, counts.
    assert float(losses.second_difference(steady.square())) == pytest.approx(0.25)
    assert float(losses.second_difference(steady.square().mT)) == 0
    assert float(losses.second_difference(ones[:, :2])) == 0
    moving = 0.3 * torch.arange(4.0)[:, None] * ones[:1, 0]
    assert float(losses.time_difference(moving)) == pytest.approx(0.09)
    assert float(losses.time_difference(moving[:1])) == 0


@pytest.mark.parametrize("size", [4, 7, 11, 12])
def test_dissimilarity_of_small_patches_and_otherwise_one_minus_the_metric(size: int):
    x, y = noise(1, size, size, 3, seed=1), noise(1, size, size, 3, seed=2)
    assert float(losses.dissimilarity(x, x)) == pytest.approx(0, abs=1e-12)
    assert 0.1 < float(losses.dissimilarity(x, y)) < 2
    x, y = noise(3, 20, 20, 3, seed=1), noise(3, 20, 20, 3, seed=2)
    assert float(losses.dissimilarity(x, y)) == pytest.approx(1 - float(ssim(x, y).mean()), abs=1e-9)


# The scenes are rendered at known cameras: nothing is estimated.
refine_scene = partial(whole_job, input_elevation_deg=0.0)

CAMERAS = Cameras((0, 0, 0), (0, 90, 180))
SIZE = 128
SMALL = RefineConfig(
    rounds=0, steps_static=2, steps=6, rays_per_step=512, samples=32, hull_size=16, hidden=16, features=4
)


def test_trust_falls_with_the_angle_to_the_input():
    by_angle = trust.view_trust(Cameras((0, 0, 0, 0, 75, 0), (0, 1, 75, 180, 0, 285)))
    expected = [0, 1, 75, 180, 75, 75]
    for value, angle in zip(by_angle.tolist(), expected, strict=True):
        assert value == pytest.approx(0.35 + 0.65 * math.exp(-((angle / 75) ** 2)), abs=1e-6)
    assert by_angle.dtype == torch.float32 and float(by_angle[0]) == 1
    # At 60 degrees of elevation, 180 degrees of azimuth are 60 degrees over the pole.
    high = trust.view_trust(Cameras((0, 0), (0, 180), input_elevation_deg=60))
    assert float(high[1]) == pytest.approx(0.35 + 0.65 * math.exp(-((60 / 75) ** 2)), abs=1e-6)


def test_the_rim_is_two_pixels_on_either_side_of_a_straight_silhouette():
    mask = torch.zeros(1, 9, 12)
    mask[:, :, 6:] = 1
    # The picture's own edge is no silhouette: the object goes on beyond it.
    row = [1.0] * 4 + [0.5] * 4 + [1.0] * 4
    assert torch.equal(trust.rim_weights(mask, 2.0), torch.tensor(row).expand(1, 9, 12))
    assert int((trust.rim_weights(mask, 3.0) == 0.5).sum()) == 9 * 6
    # Around a single pixel it is a disc: the centres within 2.5 pixels.
    assert int((trust.rim_weights(F.pad(torch.ones(1, 1, 1), 4 * (4,)), 2.0) == 0.5).sum()) == 21
    for same in (torch.zeros(2, 8, 8), torch.ones(2, 8, 8)):
        assert bool((trust.rim_weights(same, 2.0) == 1).all())


def test_facing_follows_the_formula():
    eye = torch.tensor([0.0, 0.0, 2.0])
    cosines = torch.tensor([1.0, 0.5, 0.25, 0.125, 0.0, -1.0])
    normals = torch.stack([(1 - cosines**2).sqrt(), torch.zeros(6), cosines], dim=-1)
    assert trust.facing(normals, torch.zeros(6, 3), eye).tolist() == pytest.approx([1, 1, 0.5, 0.15625, 0, 0])
    # Nearer than the unit distance and off the axis: only the direction counts.
    near = trust.facing(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.9]), eye)
    share = 0.2 / math.sqrt(1.01)
    assert float(near) == pytest.approx(share**2 * (3 - 2 * share))


def test_confidence_of_equal_different_and_slightly_different_pictures():
    grey = torch.full((1, 8, 8, 3), 0.5)
    assert bool((trust.fit_confidence(grey, grey) == 1).all())
    assert bool((trust.fit_confidence(grey, 0 * grey) == 0.2).all())
    near = trust.fit_confidence(grey, grey + 0.02)
    assert near == pytest.approx(torch.full((1, 8, 8), math.exp(-0.06 / 0.15)), abs=1e-5)
    # It is averaged over the neighbours inside the picture.
    dot = grey.clone()
    dot[0, 0, 0] = 0.55
    drop, lost = 1 - trust.fit_confidence(grey, dot)[0], 1 - math.exp(-0.15 / 0.15)
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
    seen = trust.seen_by_input(depths, cameras)
    assert seen.dtype == torch.bool and not bool(seen[:, 0].any())
    origins, directions = (x.float() for x in cameras.rays(128))
    points = origins[:, None, None] + directions * depths[0, ..., None]
    surface = depths[0] > 0
    cosine = F.normalize(points, dim=-1) @ F.normalize(origins[0], dim=-1)
    # The horizon lies where the cosine is radius / distance = 0.25.
    assert bool(seen[0, 1:][(surface & (cosine > 0.6))[1:]].all())
    assert not bool(seen[0][surface & (cosine < 0.1)].any())
    assert not bool(seen[0][~surface].any()) and not bool(seen[0, 3].any())


@pytest.mark.parametrize("shown", [1.2, 2.6])
def test_what_the_input_shows_nearer_or_farther_is_not_what_it_sees(shown):
    cameras = Cameras((0, 0), (0, 90))
    depths = sphere(cameras, 0.5).depth
    assert bool(trust.seen_by_input(depths, cameras).any())
    depths[:, 0] = depths[:, 0].where(depths[:, 0] == 0, shown)
    assert not bool(trust.seen_by_input(depths, cameras).any())


def test_weights_are_facing_times_trust_times_confidence():
    rendering = sphere()
    views = ViewGrid(rendering.rgb, CAMERAS, rendering.alpha)
    weights = trust.visibility_weights(rendering, views)
    middle = SIZE // 2
    # The input counts 1; a view that fits, seen squarely and far from the rim, counts its trust.
    assert float(weights[0, 0].min()) == float(weights[0, 0].max()) == 1
    by_angle = trust.view_trust(CAMERAS)
    assert float(weights[0, 2, middle, middle]) == pytest.approx(float(by_angle[2]), abs=0.01)
    # At the edge of the sphere the surface is seen at a grazing angle.
    inside = (rendering.alpha[0, 2] > 0).nonzero()
    row, column = inside[inside[:, 0] == middle][0].tolist()
    assert float(weights[0, 2, row, column]) < 0.2 * float(weights[0, 2, middle, middle])
    # Half of the side view shows what the input shows, and gives way to it.
    left, right = weights[0, 1, middle, 40], weights[0, 1, middle, SIZE - 1 - 40]
    assert float(min(left, right)) == pytest.approx(float(max(left, right)) / 2, rel=0.05)


def test_contradicted_targets_count_least_unless_made_anew_and_trusted_views_alike():
    rendering = sphere()
    views = ViewGrid(rendering.rgb, CAMERAS, rendering.alpha)
    other = replace(views, images=(views.images - 0.4 * rendering.alpha[..., None]).clamp(0, 1))
    middle = SIZE // 2
    fits, contradicts = (trust.visibility_weights(rendering, x)[0, 2, middle, middle] for x in (views, other))
    assert float(contradicts) == pytest.approx(0.2 * float(fits), rel=0.05)
    anew = trust.visibility_weights(rendering, other, anew=True)[0, 2, middle, middle]
    assert float(anew) == pytest.approx(float(fits), rel=0.05)
    trusted = trust.visibility_weights(rendering, views, trusted=True)
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
    with pytest.raises(ValueError, match="memory_gb of at least .* patches of 32 pixels; got 0.001"):
        refine_scene(views, replace(tiny, memory_gb=0.001), perceptual=perceptual)


def test_a_memory_budget_changes_rounding_only():
    views = render_views(make_creature(10), Cameras.official("sv4d2"), 3, 24)
    small = replace(SMALL, memory_gb=0.004, plane_sizes=(3, 6, 12))
    assert 256 <= small.rays_in_memory < 300
    whole, parts = (refine_scene(views, x).field.field.planes.space[2].detach() for x in (SMALL, small))
    assert float((whole - parts).abs().max()) < 2e-2
    assert RefineConfig().rays_in_memory == 0
