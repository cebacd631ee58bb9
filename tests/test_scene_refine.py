"""The second stage: which cameras it looks from, what it asks for, what it keeps, and that it resumes."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.metrics.image import psnr
from sv4d2_core.scene import targets
from sv4d2_core.scene.config import RefineConfig
from sv4d2_core.scene.dynerf import dynerf_fit
from sv4d2_core.scene.refine import refine_scene as whole_job
from sv4d2_core.scene.store import FitState
from sv4d2_core.scene.targets import RoundTargets, ring_cameras
from sv4d2_core.world.body import make_creature
from sv4d2_core.world.render import render_views
from sv4d2_core.world.suite import corrupt_views

# The scenes are rendered at known cameras: nothing is estimated.
refine_scene = partial(whole_job, input_elevation_deg=0.0)

CAMERAS = Cameras.official("sv4d2")
TINY = RefineConfig(
    learning_rate_factor=1.7,
    steps_static=5,
    steps=35,
    rounds=2,
    steps_refine=15,
    rays_per_step=256,
    samples=24,
    features=4,
    plane_sizes=(8, 16),
    hidden=16,
    hull_size=24,
)
SIZE, FRAMES = 24, 3


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynerf_fit, "_OCCUPANCY_EVERY", 20)
        patch.setattr(targets, "RING_ELEVATIONS_DEG", (15.0,))
        yield


@pytest.fixture(scope="module")
def views():
    return render_views(make_creature(10), CAMERAS, FRAMES, SIZE)


class Oracle:
    """Returns the true views, and remembers what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, rendered, strength):
        self.asked.append((rendered, strength))
        return render_views(make_creature(10), rendered.cameras, FRAMES, SIZE)


def field_of(scene):
    return torch.cat([value.flatten() for value in scene.field.state_dict().values()])


def test_rings_stand_between_the_cameras_and_leave_out_what_the_input_shows():
    rings = ring_cameras(CAMERAS, (15.0, -15.0))
    assert rings.azimuths_deg == (0, 60, 120, 180, 240, 90, 150, 210, 300, 90, 150, 210, 300)
    assert rings.elevations_deg == (0,) * 5 + (15,) * 4 + (-15,) * 4
    eight = ring_cameras(Cameras.official("sv4d2_8views"), (10.0,))
    assert eight.n_views == 16 and len(set(eight.azimuths_deg)) == 17
    assert ring_cameras(CAMERAS, ()) == CAMERAS
    # Two orbits, and near a pole.
    assert ring_cameras(Cameras((0, 0, 0, 20, 20), (0, 90, 270, 90, 270)), (0.0,)).n_views == 8
    high = replace(CAMERAS, input_elevation_deg=80.0)
    assert max(ring_cameras(high, (15.0,)).elevations_deg) == 5


def test_every_round_asks_for_views_of_the_scene_with_falling_strength(views):
    oracle, heard = Oracle(), []
    refine_scene(views, TINY, resynthesize=oracle, callback=lambda *args: heard.append(args))
    (first, strength), (second, weaker) = oracle.asked
    assert (strength, weaker) == (0.35, pytest.approx(0.21))
    assert first.cameras == second.cameras == ring_cameras(CAMERAS, (15.0,))
    assert torch.equal(first.images[:, 0], views.images[:, 0])
    truth = render_views(make_creature(10), first.cameras, FRAMES, SIZE)
    ours, white = (
        psnr(x[:, 5], truth.images[:, 5], truth.masks[:, 5]).mean()
        for x in (first.images, torch.ones_like(first.images))
    )
    assert float(ours) > float(white) + 2
    assert {total for _, total, _ in heard} == {70}
    phases = {step: progress.phase for step, _, progress in heard}
    expected = ["static", "dynamic", "dynamic", "refine 1", "refine 1", "refine 2", "refine 2"]
    assert [phases[step] for step in (5, 6, 40, 41, 55, 56, 70)] == expected
    assert sorted(phases) == list(range(1, 71)) and len(heard[-1][2].losses) == 70


def test_better_views_make_a_better_scene_than_polishing_alone(views, caplog):
    shown = corrupt_views(views, 3, 2.0)
    unseen = render_views(make_creature(10), Cameras((0, 10), (0, 90)), FRAMES, SIZE)

    def quality(resynthesize):
        scene = refine_scene(shown, replace(TINY, steps_refine=80), resynthesize=resynthesize)
        rgb = scene.render(unseen.cameras, unseen.frame_times(), SIZE).rgb[:, 1]
        return float(psnr(rgb, unseen.images[:, 1], unseen.masks[:, 1]).mean())

    polished = quality(None)
    assert "only weighs them by visibility" in caplog.text
    assert quality(Oracle()) > polished + 0.3


@pytest.mark.parametrize("step", [40, 50, 55])
def test_a_resumed_round_gives_the_same_bits_without_asking_again(views, step, tmp_path):
    states, oracle = {}, Oracle()

    def keep(done, total, progress):
        # While a round renders it reports the step before it again; what counts is that step's first report.
        if done == step and done not in states:
            states[done] = progress.state()

    scene = refine_scene(views, TINY, resynthesize=oracle, callback=keep)
    states[step].save(tmp_path / "fit.safetensors")
    again, heard, state = Oracle(), [], FitState.load(tmp_path / "fit.safetensors")
    resumed = refine_scene(
        views, TINY, resynthesize=again, state=state, callback=lambda *args: heard.append(len(args[2].losses))
    )
    assert torch.equal(field_of(resumed), field_of(scene))
    assert len(again.asked) == {40: 2, 50: 1, 55: 1}[step]
    assert heard[-1] == 70


def test_rendering_for_a_round_can_be_cancelled(views):
    seen = []

    def stop(step, total, progress):
        seen.append(step)
        if seen.count(40) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        refine_scene(views, TINY, resynthesize=Oracle(), callback=stop)
    assert seen[-1] == 40


def test_wrong_answers_of_a_resynthesiser_are_refused(views):
    small = replace(TINY, steps_static=1, steps=1)
    with pytest.raises(ValueError, match="Expected resynthesised views"):
        refine_scene(views, small, resynthesize=lambda rendered, _: views)
    with pytest.raises(ValueError, match="NaN"):
        refine_scene(
            views, small, resynthesize=lambda shown, _: replace(shown, images=shown.images * torch.nan)
        )


def test_views_that_lose_the_object_are_left_as_the_scene_shows_them(views, caplog):
    small = replace(TINY, steps_static=1, steps=10, steps_refine=1, rounds=1)

    def forgetful(rendered, _):
        images, masks = rendered.images.clone(), rendered.masks.clone()
        images[1, 3], masks[1, 3] = 1, 0
        return replace(rendered, images=images, masks=masks)

    refine_scene(views, small, resynthesize=forgetful)
    assert "1 of 27 views made anew show no object" in caplog.text


def test_targets_are_kept_in_eight_bits_and_the_input_exactly(views):
    weights = torch.rand(views.images.shape[:4], generator=torch.Generator().manual_seed(0))
    other = replace(views, images=views.images * 0.7)
    small = RoundTargets.of(other, weights)
    grid, again = RoundTargets.from_tensors(small.tensors(), CAMERAS).unpacked(views)
    assert torch.equal(grid.images[:, 0], views.images[:, 0])
    assert float((grid.images[:, 1:] - other.images[:, 1:]).abs().max()) <= 0.5 / 255 + 1e-6
    assert float((again - weights).abs().max()) <= 0.5 / 255 + 1e-6


def test_steps_are_divided_between_the_stages():
    config = RefineConfig().with_steps(2500, 2)
    assert config.rounds == 2
    assert config.total_steps == 2500 == RefineConfig().with_steps(2500, 1).total_steps
    for steps in (4, 5, 17, 23, 100, 999, 1234, 4001):
        for stages in (1, 2):
            made = config.with_steps(steps, stages)
            assert made.total_steps == steps and made.with_steps(steps, stages) == made


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("change", [{}, {"field": "canonical", "follow": True}, {"backend": "gaussians"}])
def test_a_gpu_fits_what_a_cpu_fits(views, change):
    config = replace(TINY, rounds=1, steps=60, **change)
    quality = []
    for device in ("cpu", "cuda"):
        scene = refine_scene(views, config, resynthesize=Oracle(), device=device)
        rgb = scene.render(CAMERAS, views.frame_times(), SIZE).rgb
        quality.append(float(psnr(rgb[:, 1], views.images[:, 1], views.masks[:, 1]).mean()))
    assert quality[1] > quality[0] - 1
