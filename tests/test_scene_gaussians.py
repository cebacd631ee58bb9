"""Deformable Gaussians: they start on the hull, learn shape and motion, come back from files and states."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.metrics.image import psnr
from sv4d2_core.scene.config import GaussiansConfig, RefineConfig
from sv4d2_core.scene.gaussians import gaussians_fit
from sv4d2_core.scene.gaussians.gaussians import CanonicalGaussians, Deformation, Gaussians
from sv4d2_core.scene.gaussians.gaussians_fit import GaussiansFit, nearest, relocate, shared
from sv4d2_core.scene.geometry.hull import HullDistance, Occupancy
from sv4d2_core.scene.schedule import Step, anchor_frame
from sv4d2_core.scene.store import load_scene
from sv4d2_core.world.body import make_creature
from sv4d2_core.world.render import render_creature, render_views

CAMERAS = Cameras.official("sv4d2")
OWN = GaussiansConfig(count=400, features=4, plane_sizes=(8,), hidden=32)
TINY = RefineConfig(steps_static=20, steps=40, hull_size=32, gaussians=OWN)


@pytest.fixture(scope="module", autouse=True)
def early_moves():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gaussians_fit, "_RELOCATE_EVERY", 20)
        yield


class Loop:
    """The least that fits: Adam over the groups, frames drawn at random."""

    def __init__(self, views, config=TINY):
        self.generator = torch.Generator().manual_seed(config.seed)
        self.config, self.anchor = config, anchor_frame(views.masks)
        self.fit = GaussiansFit(views, config, "cpu", self.generator)
        self.fit.aim(views, torch.ones(views.images.shape[:4]))
        self.optimizer = torch.optim.Adam(self.fit.groups(), betas=(0.9, 0.99), eps=1e-15)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"]
        self.step, self.losses = 0, []

    def drawn(self):
        timed = self.step >= self.config.steps_static
        order = torch.randperm(4, generator=self.generator)[:2]
        step = Step(self.step, 0, False, 1.0, 1, timed, 3 if timed else 5, (0, 1, 2, 3))
        return step, order if timed else torch.tensor([self.anchor])

    def run(self, steps):
        for _ in range(steps):
            step, frames = self.drawn()
            self.fit.prepare(step, self.optimizer)
            self.optimizer.zero_grad(set_to_none=True)
            self.losses.append(self.fit.accumulate(step, frames))
            self.optimizer.step()
            self.step += 1
        return self


@pytest.fixture(scope="module")
def views():
    return render_views(make_creature(10), CAMERAS, 4, 32)


@pytest.fixture(scope="module")
def fitted(views):
    return Loop(views).run(60)


def quality(scene, views):
    rgb = scene.render(CAMERAS, views.frame_times(), 32).rgb
    return float(psnr(*(x.flatten(0, 1) for x in (rgb, views.images, views.masks))).mean())


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_it_starts_on_the_hull_in_the_colours_of_the_views(views):
    fit = Loop(views).fit
    assert len(fit.scene.canonical.means) == OWN.count
    assert not fit.dead(timed=False).any()
    white = torch.ones_like(views.images).flatten(0, 1)
    baseline = float(psnr(white, views.images.flatten(0, 1), views.masks.flatten(0, 1)).mean())
    assert quality(fit.scene, views) > baseline + 2


def test_the_loss_falls_and_the_views_are_met(views, fitted):
    first, last = fitted.losses[:5], fitted.losses[15:20]
    assert sum(last) < 0.6 * sum(first)
    moving = fitted.losses[20:]
    assert sum(moving[-10:]) < 0.75 * sum(moving[:10])
    assert quality(fitted.fit.scene, views) > 14


def test_the_times_of_the_frames_are_told_apart(views, fitted):
    scene, frames = fitted.fit.scene, (0, 1)
    right = scene.render(CAMERAS, [views.frame_times()[t] for t in frames], 32).rgb
    own = [(right[i] - views.images[t]).abs().mean() for i, t in enumerate(frames)]
    swapped = [(right[1 - i] - views.images[t]).abs().mean() for i, t in enumerate(frames)]
    assert float(sum(own)) < 0.95 * float(sum(swapped))


def test_a_restored_fit_goes_on_with_the_same_bits(views, monkeypatch):
    monkeypatch.setattr(gaussians_fit, "_RELOCATE_EVERY", 7)
    config = replace(TINY, steps_static=4)
    whole = Loop(views, config).run(9)
    held = whole.fit.tensors()
    for seed in (0, 1):
        again = Loop(views, replace(config, seed=seed)).run(9).fit.tensors()
        assert same(again, held) == (seed == 0)
    other = Loop(views, config)
    other.fit.restore({key: value.clone() for key, value in held.items()})
    state = whole.optimizer.state_dict()
    other.optimizer.load_state_dict(copy.deepcopy(state))
    other.generator.set_state(whole.generator.get_state())
    other.step = whole.step
    # Dead Gaussians move in step 14.
    whole.run(8)
    assert not same(whole.fit.tensors(), held)
    assert other.run(8).losses == whole.losses[9:]
    assert same(other.fit.tensors(), whole.fit.tensors())


def test_a_saved_scene_renders_the_same(fitted, tmp_path):
    scene = fitted.fit.scene
    scene.save(tmp_path / "scene.safetensors")
    loaded = load_scene(tmp_path / "scene.safetensors")
    assert isinstance(loaded, Gaussians)
    pictures = [x.render(CAMERAS, (0.0, 0.4), 24, views=(0, 2)) for x in (scene, loaded)]
    for ours, theirs in zip(*(vars(p).values() for p in pictures), strict=True):
        assert torch.equal(ours, theirs)
    assert (loaded.cameras, loaded.fps, loaded.times, loaded.config) == (CAMERAS, 8.0, scene.times, OWN)


def test_renderings_have_depths_and_normals_of_the_surface(views, fitted):
    rendering = fitted.fit.scene.render(CAMERAS, views.frame_times(), 32)
    truth = render_creature(make_creature(10), CAMERAS, torch.tensor(views.frame_times()).double(), 32)
    seen = (rendering.alpha > 0.9) & (truth.mask > 0.9)
    assert float((rendering.depth - truth.depth).abs()[seen].median()) < 0.1
    assert torch.allclose(rendering.normal[seen].norm(dim=-1), torch.ones(()), atol=1e-3)
    towards = -CAMERAS.rays(32)[1].float().expand_as(rendering.normal)
    assert ((rendering.normal * towards).sum(-1)[seen] > 0).float().mean() > 0.95
    empty = rendering.alpha == 0
    assert (rendering.depth[empty] == 0).all() and (rendering.normal[empty] == 0).all()
    assert (rendering.rgb[empty] == 1).all()


def test_gaussians_move_smoothly_between_frames(fitted):
    scene = fitted.fit.scene
    means = torch.stack([scene.at_time(t).means.detach() for t in torch.linspace(0, 1, 61).tolist()])
    steps = means.diff(dim=0).norm(dim=-1).mean(-1)
    across = (means[0] - means[20]).norm(dim=-1).mean()
    assert float(across) > 1e-3
    # A jump at a frame would be a step as long as the whole way.
    assert float(steps.max()) < 0.25 * float(across)
    quats = scene.at_time(0.37).quats
    assert torch.allclose(quats.norm(dim=-1), torch.ones(()), atol=1e-5)


def test_opacities_change_over_time_only_if_they_may_fade(fitted):
    scene = fitted.fit.scene
    first, last = (scene.at_time(t).opacities for t in (0.0, 1.0))
    assert not torch.allclose(first, last, atol=0.01)
    steady = copy.copy(scene)
    steady.config = replace(OWN, fade=0.0)
    assert torch.equal(steady.at_time(0.0).opacities, steady.at_time(1.0).opacities)


def test_gradients_reach_the_motion_only_when_there_is_time(views):
    loop = Loop(views)
    loop.fit.accumulate(*loop.drawn())
    assert all(p.grad is None for p in loop.fit.scene.deformation.parameters())
    assert all(p.grad is not None and p.grad.any() for p in loop.fit.scene.canonical.parameters())
    loop.step = TINY.steps_static
    loop.run(1)
    loop.fit.accumulate(*loop.drawn())
    assert all(p.grad is None for p in loop.fit.scene.canonical.parameters())
    for name, parameter in loop.fit.scene.deformation.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_pixels_without_weight_teach_no_colour(views):
    loop = Loop(views)
    loop.fit.aim(views, torch.zeros(views.images.shape[:4]))
    loop.fit.accumulate(*loop.drawn())
    # Rounding leaves a trace.
    assert float(loop.fit.scene.canonical.colours.grad.abs().max()) < 1e-8
    assert float(loop.fit.scene.canonical.means.grad.abs().max()) > 1e-4


def test_a_fit_that_diverged_says_so(views):
    loop = Loop(views)
    loop.fit.scene.canonical.means.data[3] = torch.nan
    assert math.isnan(loop.fit.accumulate(*loop.drawn()))


def test_dead_gaussians_come_back_to_life(views):
    loop = Loop(views, replace(TINY, steps_static=40))
    canonical = loop.fit.scene.canonical
    with torch.no_grad():
        canonical.opacities[:40] = -9.0
        canonical.means[40:60] += 5.0
    assert loop.fit.dead(timed=False).nonzero()[:, 0].tolist() == list(range(60))
    before = loop.fit.tensors()
    loop.step = 20
    loop.fit.prepare(loop.drawn()[0], loop.optimizer)
    assert loop.fit.dead(timed=True).float().mean() < 0.05
    shapes = [[x.shape for x in tensors.values()] for tensors in (before, loop.fit.tensors())]
    assert shapes[0] == shapes[1]
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
