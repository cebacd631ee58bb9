"""Deformable Gaussians: they start on the hull, learn shape and motion, come back to life."""

import copy
from dataclasses import replace

import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.metrics.image import psnr
from sv4d2_core.scene.config import GaussiansConfig, RefineConfig
from sv4d2_core.scene.gaussians import gaussians_fit
from sv4d2_core.scene.gaussians.gaussians import CanonicalGaussians, Deformation
from sv4d2_core.scene.gaussians.gaussians_fit import GaussiansFit, nearest, relocate, shared
from sv4d2_core.scene.geometry.hull import HullDistance, Occupancy
from sv4d2_core.scene.refine import refine_scene
from sv4d2_core.scene.schedule import Step, schedule
from sv4d2_core.world.body import make_creature
from sv4d2_core.world.render import render_creature, render_views

CAMERAS = Cameras.official("sv4d2")
OWN = GaussiansConfig(count=400, features=4, plane_sizes=(8,), hidden=32)
SHORT = RefineConfig(rounds=0, steps_static=20, steps=40, learning_rate_factor=5)
TINY = replace(SHORT, backend="gaussians", hull_size=32, gaussians=OWN)
STATIC = Step(0, 0, False, 1.0, 1, False, 5, (0, 1, 2, 3))
MOVING = Step(20, 0, False, 1.0, 1, True, 3, (0, 1, 2, 3))
FRAMES = torch.tensor([1, 3])


@pytest.fixture(scope="module")
def views():
    return render_views(make_creature(10), CAMERAS, 4, 32)


@pytest.fixture(scope="module")
def fitted(views):
    return refine_scene(views, TINY, input_elevation_deg=0.0)


def started(views):
    """Return a fit at its start, which aims at the views, and an Adam of it."""
    fit = GaussiansFit(views, TINY, "cpu", torch.Generator().manual_seed(0))
    fit.aim(views, torch.ones(views.images.shape[:4]))
    return fit, torch.optim.Adam(fit.groups(), lr=1e-2)


def quality(scene, views):
    rgb = scene.render(CAMERAS, views.frame_times(), 32).rgb
    return float(psnr(*(x.flatten(0, 1) for x in (rgb, views.images, views.masks))).mean())


def test_it_starts_on_the_hull_in_the_colours_of_the_views(views):
    fit, _ = started(views)
    assert len(fit.scene.canonical.means) == OWN.count
    assert not fit.dead(timed=False).any()
    white = torch.ones_like(views.images).flatten(0, 1)
    baseline = float(psnr(white, views.images.flatten(0, 1), views.masks.flatten(0, 1)).mean())
    assert quality(fit.scene, views) > baseline + 2


def test_the_views_are_met_and_the_times_of_the_frames_told_apart(views, fitted):
    assert quality(fitted, views) > 14
    frames = (0, 1)
    right = fitted.render(CAMERAS, [views.frame_times()[t] for t in frames], 32).rgb
    own = [(right[i] - views.images[t]).abs().mean() for i, t in enumerate(frames)]
    swapped = [(right[1 - i] - views.images[t]).abs().mean() for i, t in enumerate(frames)]
    assert float(sum(own)) < 0.95 * float(sum(swapped))


def test_renderings_have_depths_and_normals_of_the_surface(views, fitted):
    rendering = fitted.render(CAMERAS, views.frame_times(), 32)
    truth = render_creature(make_creature(10), CAMERAS, torch.tensor(views.frame_times()).double(), 32)
    seen = (rendering.alpha > 0.9) & (truth.mask > 0.9)
    assert float((rendering.depth - truth.depth).abs()[seen].median()) < 0.1
    assert torch.allclose(rendering.normal[seen].norm(dim=-1), torch.ones(()), atol=1e-3)
    without = fitted.render(CAMERAS, views.frame_times(), 32, normals=False)
    assert torch.equal(without.rgb, rendering.rgb) and not without.normal.any()
    towards = -CAMERAS.rays(32)[1].float().expand_as(rendering.normal)
    assert ((rendering.normal * towards).sum(-1)[seen] > 0).float().mean() > 0.95
    empty = rendering.alpha == 0
    assert (rendering.depth[empty] == 0).all() and (rendering.normal[empty] == 0).all()
    assert (rendering.rgb[empty] == 1).all()


def test_gaussians_move_smoothly_between_frames(fitted):
    means = torch.stack([fitted.at_time(t).means.detach() for t in torch.linspace(0, 1, 61).tolist()])
    steps = means.diff(dim=0).norm(dim=-1).mean(-1)
    across = (means[0] - means[20]).norm(dim=-1).mean()
    assert float(across) > 1e-3
    # A jump at a frame would be a step as long as the whole way.
    assert float(steps.max()) < 0.25 * float(across)
    quats = fitted.at_time(0.37).quats
    assert torch.allclose(quats.norm(dim=-1), torch.ones(()), atol=1e-5)


def test_opacities_change_over_time_only_if_they_may_fade(fitted):
    first, last = (fitted.at_time(t).opacities for t in (0.0, 1.0))
    assert not torch.allclose(first, last, atol=0.01)
    steady = copy.copy(fitted)
    steady.config = replace(OWN, fade=0.0)
    assert torch.equal(steady.at_time(0.0).opacities, steady.at_time(1.0).opacities)


def test_gradients_reach_the_motion_only_when_there_is_time(views):
    fit, optimizer = started(views)
    fit.accumulate(STATIC, FRAMES[:1])
    assert all(p.grad is None for p in fit.scene.deformation.parameters())
    assert all(p.grad is not None and p.grad.any() for p in fit.scene.canonical.parameters())
    fit.accumulate(MOVING, FRAMES)
    optimizer.step()
    fit.accumulate(MOVING, FRAMES)
    assert all(p.grad is None for p in fit.scene.canonical.parameters())
    for name, parameter in fit.scene.deformation.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_earlier_frames_are_seen_again_while_others_are_admitted(views):
    fit, _ = started(views)
    generator, config = torch.Generator().manual_seed(0), replace(TINY, steps=200, progressive=True)
    for step in schedule(config, views, first=TINY.steps_static):
        frames = step.frames(views.n_frames, generator)
        shown = [frame for frame, _ in fit._pictures(frames, step.n_views)]
        assert sorted(shown) == sorted(frames.tolist()) and len(set(shown)) == 2
        if step.newest and len(step.newest) < len(step.allowed):
            assert shown[0] in step.newest
            assert len(step.newest) > 1 or shown[1] not in step.newest


def test_pixels_without_weight_teach_no_colour(views):
    fit, _ = started(views)
    fit.aim(views, torch.zeros(views.images.shape[:4]))
    fit.accumulate(STATIC, FRAMES[:1])
    # Rounding leaves a trace.
    assert float(fit.scene.canonical.colours.grad.abs().max()) < 1e-8
    assert float(fit.scene.canonical.means.grad.abs().max()) > 1e-4


def test_dead_gaussians_come_back_to_life(views, monkeypatch):
    monkeypatch.setattr(gaussians_fit, "_RELOCATE_EVERY", 20)
    fit, optimizer = started(views)
    canonical = fit.scene.canonical
    with torch.no_grad():
        canonical.opacities[:40] = -9.0
        canonical.means[40:60] += 5.0
    assert fit.dead(timed=False).nonzero()[:, 0].tolist() == list(range(60))
    fit.prepare(MOVING, optimizer)
    assert fit.dead(timed=True).float().mean() < 0.05
    # Copies do not stand in one place, where they would stay alike.
    assert len(canonical.means.detach().unique(dim=0)) == OWN.count


def test_relocated_gaussians_forget_the_moments_of_their_old_place():
    def moved():
        canonical = CanonicalGaussians(torch.arange(12.0).view(4, 3), 0.1, 0.5, torch.full((4, 3), 0.3))
        optimizer = torch.optim.Adam(canonical.parameters())
        torch.stack([parameter.square().sum() for parameter in canonical.parameters()]).sum().backward()
        optimizer.step()
        places = canonical.means.detach().clone()
        dead = torch.tensor([True, False, False, False])
        assert relocate(canonical, dead, torch.Generator().manual_seed(3), optimizer) == 1
        assert relocate(canonical, torch.ones(4, dtype=torch.bool), torch.Generator()) == 0
        return canonical, optimizer, places

    canonical, optimizer, places = moved()
    assert torch.equal(canonical.means, moved()[0].means)
    original = int((places - canonical.means[0].detach()).norm(dim=-1).argmin())
    untouched = [i for i in range(1, 4) if i != original]
    for state in optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            assert not state[name][[0, original]].any()
    assert optimizer.state[canonical.means]["exp_avg"][untouched].all()


@pytest.mark.parametrize(("opacity", "copies"), [(0.3, 1), (0.7, 2), (0.95, 3), (0.5, 8)])
def test_copies_look_like_the_one(opacity, copies):
    each, factor = shared(torch.tensor([opacity]).double(), torch.tensor([copies]))
    x = torch.linspace(-12, 12, 4001).double()
    one = opacity * torch.exp(-x.square() / 2)
    many = 1 - (1 - each * torch.exp(-x.square() / (2 * factor.square()))) ** copies
    assert float(1 - (1 - each) ** copies) == pytest.approx(opacity)
    # Equation 9 of the source keeps the sum over the samples, not every one of them.
    assert float(many.sum() / one.sum()) == pytest.approx(1, abs=1e-4)


def test_the_distance_to_the_hull_leads_back_in():
    cells = torch.zeros(2, 16, 16, 16, dtype=torch.bool)
    cells[0, 6:10, 6:10, 6:10] = True
    distance = HullDistance(Occupancy(cells, torch.tensor([[-1.0] * 3, [1.0] * 3])))
    points = torch.tensor([[0.0, 0, 0], [0.6, 0, 0], [0.9, 0.1, 0], [1.5, 0, 0]], requires_grad=True)
    found = distance(points, 0)
    assert found[0] == 0 and (found.diff() > 0).all()
    (gradient,) = torch.autograd.grad(found.sum(), points)
    assert (gradient[1:, 0] > 0).all()
    # Nothing is in frame 1.
    assert torch.allclose(distance(points, 1)[:3], torch.tensor(12.0))


def test_the_nearest_are_the_nearest():
    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    table = (points[:, None] - points).norm(dim=-1).fill_diagonal_(torch.inf)
    assert torch.equal(nearest(points, 3), table.argsort(dim=-1)[:, :3])
    assert nearest(points[:2], 8).tolist() == [[1], [0]]


def test_new_times_start_from_known_ones():
    config = GaussiansConfig(plane_sizes=(4,), features=2, hidden=8)
    deformation = Deformation(torch.tensor([[-1.0] * 3, [1.0] * 3]), config, 5)
    points = torch.rand(6, 3)
    # A new one moves nothing.
    assert not any(part.any() for part in deformation(points, 0.3))
    with torch.no_grad():
        deformation.time[0].uniform_()
    held = deformation.time[0].detach().clone()
    deformation.hold(0.25, 0.5)
    assert torch.equal(deformation.time[0][:, :, 1:3], held[:, :, 1:3])
    for new, known in ((0.0, 0.25), (0.9, 0.5)):
        assert torch.allclose(deformation.features(points, new), deformation.features(points, known))
