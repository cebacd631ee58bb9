"""A short fit learns, repeats itself, resumes, asks for better views, and refuses what cannot be fitted."""

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.diffusion.checkpoint import load_checkpoint
from sv4d2_core.diffusion.novel_views import sample_views
from sv4d2_core.metrics.image import psnr
from sv4d2_core.scene import refine, schedule
from sv4d2_core.scene.config import (
    FieldConfig,
    GaussiansConfig,
    RefineConfig,
    settings_from_json,
    settings_to_json,
)
from sv4d2_core.scene.dynerf import dynerf_fit
from sv4d2_core.scene.fit import Fit, StepInterrupted
from sv4d2_core.scene.gaussians import gaussians_fit
from sv4d2_core.scene.refine import refine_scene as whole_job
from sv4d2_core.scene.store import FitState, load_scene
from sv4d2_core.scene.targets import RoundTargets, with_ring
from sv4d2_core.shipped import TINY_MODEL
from sv4d2_core.stored import Tensors
from sv4d2_core.views import ViewGrid
from sv4d2_core.world.body import make_creature
from sv4d2_core.world.render import render_views
from sv4d2_core.world.suite import corrupt_views

# The scenes are rendered at known cameras: nothing is estimated.
refine_scene = partial(whole_job, input_elevation_deg=0.0)

CAMERAS = Cameras.official("sv4d2")
TINY = RefineConfig(
    rounds=0,
    learning_rate_factor=1.7,
    steps_static=10,
    steps=50,
    rays_per_step=512,
    samples=32,
    features=4,
    plane_sizes=(8, 16, 32),
    hidden=32,
    hull_size=31,
    gaussians=GaussiansConfig(count=400, features=4, plane_sizes=(8,), hidden=32),
)


# With a second stage.
ROUNDS = replace(TINY, steps_static=5, steps=35, rounds=2, steps_refine=15, rays_per_step=256, hull_size=24)
SIZE, FRAMES = 24, 3


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynerf_fit, "_OCCUPANCY_EVERY", 20)
        patch.setattr(gaussians_fit, "_RELOCATE_EVERY", 9)
        yield


@pytest.fixture(scope="module")
def views():
    return render_views(make_creature(10), CAMERAS, 4, 32)


@pytest.fixture(scope="module")
def small():
    return render_views(make_creature(10), CAMERAS, FRAMES, SIZE)


@pytest.fixture(
    scope="module", params=[{"field": "planes"}, {"field": "canonical"}, {"backend": "gaussians"}]
)
def fitted(request, views):
    losses, states, config = [], {}, replace(TINY, **request.param)

    def listen(step, total, progress):
        assert total == 60
        losses.append((progress.phase, progress.loss))
        if step in (7, 35):
            states[step] = progress.state()

    return refine_scene(views, config, callback=listen), losses, states, config


def test_what_is_drawn_between_frames_while_it_is_fitted_leaves_no_motion(small):
    seen = []

    def look(step, _total, progress):
        if step in (2, 4):
            seen.append(progress.scene.render(CAMERAS, [0.25], 8).rgb)

    scene = refine_scene(small, replace(TINY, seed=2**64 - 1), callback=look)
    assert len(seen) == 2 and scene.motion is None
    assert same(scene, refine_scene(small, replace(TINY, seed=2**64 - 1)))


def same(first, second):
    """Return whether two scenes have the same bits."""
    ours, theirs = (scene._saved()[0] for scene in (first, second))
    return ours.keys() == theirs.keys() and all(torch.equal(x, theirs[key]) for key, x in ours.items())


def test_the_loss_falls_and_an_unseen_view_is_better_than_white(fitted):
    scene, losses, _, config = fitted
    assert [phase for phase, _ in losses] == ["static"] * 10 + ["dynamic"] * 50
    values = [loss for _, loss in losses]
    assert sum(values[-5:]) < 0.5 * sum(values[:5])
    unseen = Cameras((0, 10), (0, 30))
    truth = render_views(make_creature(10), unseen, 4, 32)
    rendering = scene.render(unseen, truth.frame_times(), 32)
    assert truth.masks is not None
    pictures = [x[:, 1] for x in (rendering.rgb, truth.images, truth.masks)]
    ours, white = psnr(*pictures).mean(), psnr(torch.ones_like(pictures[0]), *pictures[1:]).mean()
    assert float(ours) > float(white) + 3
    grids = [x for name, x in scene._saved()[0].items() if "deformation.grids" in name]
    assert bool(grids) == (config.field == "canonical") and all(grid.any() for grid in grids)


def test_one_seed_gives_one_scene(views, fitted):
    scene, _, _, config = fitted
    assert same(refine_scene(views, config), scene)
    assert not same(refine_scene(views, replace(config, seed=1)), scene)


@pytest.mark.parametrize("step", [7, 35])
def test_a_resumed_fit_gives_the_same_bits(views, fitted, step, tmp_path):
    scene, _, states, config = fitted
    states[step].save(tmp_path / "fit.safetensors")
    state = FitState.load(tmp_path / "fit.safetensors")
    heard = []
    resumed = refine_scene(views, config, state=state, callback=lambda done, *_: heard.append(done))
    assert heard[0] == step + 1 and same(resumed, scene)


@pytest.mark.parametrize("backend", ["dynerf", "gaussians"])
def test_there_is_no_state_within_a_step(small, backend, monkeypatch):
    fit = Fit(small, replace(TINY, backend=backend))
    steps = schedule.schedule(fit.config, fit.views)
    fit.take(next(steps))
    assert fit.state().step == 1

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fit._optimizer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit.take(next(steps))
    with pytest.raises(StepInterrupted, match="Step 2 was interrupted"):
        fit.state()


def test_what_happens_once_in_a_fit_does_not_count_for_every_step(monkeypatch):
    now = [0.0]

    def take(step):
        now[0] += 60 if step.number == 12 else 0.5

    steps = [SimpleNamespace(number=number) for number in range(25)]
    monkeypatch.setattr(refine, "schedule", lambda *_: steps)
    monkeypatch.setattr(refine.time, "perf_counter", lambda: now[0])
    assert refine.steps_in(2.0, SimpleNamespace(config=None, views=None, take=take)) == 240


def test_a_saved_scene_renders_the_same(fitted, tmp_path):
    scene = fitted[0]
    scene.save(tmp_path / "scene.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["scene.safetensors"]
    loaded = load_scene(tmp_path / "scene.safetensors")
    for field in ("backend", "cameras", "fps", "times"):
        assert getattr(loaded, field) == getattr(scene, field)
    assert vars(loaded.config).items() <= vars(scene.config).items()
    assert loaded.fit == json.loads(json.dumps(scene.fit)) and loaded.fit["steps"] == 50
    pictures = [vars(x.render(CAMERAS, (0.0, 0.4), 24, views=(0, 2))) for x in (scene, loaded)]
    assert all(torch.equal(picture, pictures[1][name]) for name, picture in pictures[0].items())


def test_a_state_of_another_fit_is_refused(views, fitted):
    _, _, states, config = fitted
    with pytest.raises(ValueError, match="one of another fit, at step 7"):
        refine_scene(views, replace(config, learning_rate_factor=0.5), state=states[7])
    with pytest.raises(ValueError, match="one of another fit"):
        refine_scene(replace(views, images=views.images * 0.9), config, state=states[7])
    with pytest.raises(ValueError, match="settings and models; got one of another fit"):
        refine_scene(views, config, state=states[7], identity={"lpips": "0123456789abcdef"})


@pytest.mark.parametrize("backend", ["dynerf", "gaussians"])
def test_frames_come_in_one_by_one_and_pictures_grow(views, monkeypatch, backend):
    config = replace(TINY, steps_static=2, steps=4, progressive=True, backend=backend)
    plain = refine_scene(views, config).render(CAMERAS, [0.0], 16)
    monkeypatch.setattr(schedule, "_COARSE_TO_FINE_FROM", 32)
    assert not torch.equal(refine_scene(views, config).render(CAMERAS, [0.0], 16).rgb, plain.rgb)


def test_missing_masks_are_made_and_said(views, caplog):
    config = replace(TINY, steps_static=1, steps=1)
    scene = refine_scene(replace(views, masks=None), config)
    assert "near-white" in caplog.text
    masks = (views.images.mean(-1) <= 250 / 255).float()
    assert same(scene, refine_scene(replace(views, masks=masks), config))


def changed(views, **places):
    images, masks = views.images.clone(), views.masks.clone()
    for name, (index, value) in places.items():
        {"images": images, "masks": masks}[name][index] = value
    return replace(views, images=images, masks=masks)


def test_views_that_cannot_be_fitted_are_refused(views):
    everything = slice(None)
    cases = [
        (changed(views, images=((1, 2, 3, 4, 0), torch.nan)), "got 1 of .* NaN"),
        (changed(views, images=((0, 0), 255.0)), "got 0.* to 255"),
        (changed(views, masks=((2, 3), 0.0)), r"1 of 20 are empty \(frame 2 view 3\)"),
        (changed(views, masks=(everything, 0.0)), "an object on 0 % of the pixels"),
        (changed(views, masks=(everything, 1.0)), "no background in 20 pictures"),
        (changed(views, images=(everything, 0.5)), "20 pictures of one colour"),
        (replace(views, images=torch.ones_like(views.images), masks=None), "an object on 0 %"),
        (views.at_frames([2, 0, 1]), "Sort the frames"),
        (ViewGrid(views.images[:, :, :20], CAMERAS, views.masks[:, :, :20]), "got 32 x 20"),
    ]
    for bad, text in cases:
        with pytest.raises(ValueError, match=text):
            refine_scene(bad, TINY)
    # Views are checked at the size that they are fitted at.
    with pytest.raises(ValueError, match="at least 16 pixels"):
        refine_scene(views, TINY, size=8)


@pytest.mark.parametrize("kind", [{}, {"field": "canonical", "follow": True}, {"backend": "gaussians"}])
def test_a_fit_that_diverges_names_the_knob(views, kind):
    # Views that are not exact ask for colours at the surface, which is nowhere then.
    settings = replace(TINY, learning_rate_factor=1e30, weight_by_trust=True, **kind)
    with pytest.raises(FloatingPointError, match=r"lower learning_rate_factor than 1e\+30"):
        refine_scene(views, settings)


@pytest.mark.parametrize(("job", "tolerance"), [("views", 1e-3), ("dynerf", 0.02), ("gaussians", 0.02)])
def test_another_number_of_threads_changes_rounding_alone(views, job, tolerance):
    def made():
        if job == "views":
            model = load_checkpoint(TINY_MODEL)
            return sample_views(model, views.images[:, 0], CAMERAS, steps=3).images
        return refine_scene(views, replace(TINY, backend=job)).render(CAMERAS, [0.0, 1.0], 32).rgb

    pictures = []
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            pictures.append(made())
        finally:
            torch.set_num_threads(1)
    assert float((pictures[0] - pictures[1]).abs().max()) <= tolerance


def test_planes_follow_the_pictures_unless_they_are_given(views):
    quick = RefineConfig(features=1, steps_static=0, steps=1, rounds=0, hull_size=8)
    given = replace(quick, plane_sizes=(3, 5))
    for config, size, sizes in ((quick, 32, [4, 8, 16]), (quick, 576, [64, 128, 256]), (given, 64, [3, 5])):
        planes = refine_scene(views, config, size=size).field.field.planes.space
        assert [plane.shape[-1] for plane in planes] == sizes


@pytest.mark.parametrize(
    "settings",
    [replace(TINY, density_scale=20.0), GaussiansConfig(count=7, plane_sizes=(4, 9))],
)
def test_settings_survive_json_beside_numbers_of_version_0_1_0(settings):
    kind = GaussiansConfig if isinstance(settings, GaussiansConfig) else FieldConfig
    saved = settings_to_json(kind, settings)
    again = settings_from_json(kind, {**saved, "weight_hull": 0.1})
    assert settings_to_json(kind, again) == saved and again.plane_sizes == settings.plane_sizes
    assert GaussiansConfig().count_for(64) == 3072


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        (TINY, "steps", 0),
        (TINY, "learning_rate_factor", 0.0),
        (TINY, "time_size", 1),
        (TINY, "deformation_sizes", ()),
        (GaussiansConfig(), "time_size", 1),
        (GaussiansConfig(), "plane_sizes", ()),
        (TINY, "strength", 1.5),
        (TINY, "density_scale", float("nan")),
        (TINY, "plane_sizes", (1,)),
        (TINY, "field", "voxels"),
        (GaussiansConfig(), "fade", -1.0),
    ],
)
def test_settings_out_of_range_are_refused(settings, name, value):
    with pytest.raises(ValueError, match=f"Expected {name}"):
        replace(settings, **{name: value})


class Oracle:
    """Returns the true views, and remembers what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, rendered, strength):
        self.asked.append((rendered, strength))
        return render_views(make_creature(10), rendered.cameras, FRAMES, SIZE)


def test_a_ring_from_above_stands_between_cameras_at_one_height():
    ring = with_ring(CAMERAS)
    assert ring.azimuths_deg == (0, 60, 120, 180, 240, 90, 150, 210, 300)
    assert ring.elevations_deg == (0,) * 5 + (30,) * 4
    eight = with_ring(Cameras.official("sv4d2_8views"))
    assert eight.n_views == 16 and len(set(eight.azimuths_deg)) == 17
    assert with_ring(Cameras((0, 0, 0, 0, 0), (0, 90, 90, 270, 270))).n_views == 8
    assert with_ring(Cameras.for_scenes()) == Cameras.for_scenes()
    assert with_ring(replace(CAMERAS, elevations_deg=(0, 1e-5, 0, -1e-5, 0))).n_views == 8
    near_a_pole = replace(CAMERAS, input_elevation_deg=80.0)
    assert max(with_ring(near_a_pole).elevations_deg) == 5


def test_every_round_asks_for_views_of_the_scene_with_falling_strength(small):
    oracle, heard = Oracle(), []
    refine_scene(small, ROUNDS, resynthesize=oracle, callback=lambda *args: heard.append(args))
    (first, strength), (second, weaker) = oracle.asked
    assert (strength, weaker) == (0.35, pytest.approx(0.21))
    assert first.cameras == second.cameras == with_ring(CAMERAS)
    assert torch.equal(first.images[:, 0], small.images[:, 0])
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


def test_better_views_make_a_better_scene_than_polishing_alone(small, caplog):
    shown = corrupt_views(small, 3, 2.0)
    unseen = render_views(make_creature(10), Cameras((0, 10), (0, 90)), FRAMES, SIZE)

    def quality(resynthesize):
        scene = refine_scene(shown, replace(ROUNDS, steps_refine=80), resynthesize=resynthesize)
        rgb = scene.render(unseen.cameras, unseen.frame_times(), SIZE).rgb[:, 1]
        return float(psnr(rgb, unseen.images[:, 1], unseen.masks[:, 1]).mean())

    polished = quality(None)
    assert "only weighs them by visibility" in caplog.text
    assert quality(Oracle()) > polished + 0.3


@pytest.mark.parametrize("step", [40, 50, 55])
def test_a_resumed_round_gives_the_same_bits_without_asking_again(small, step, tmp_path):
    states, oracle = {}, Oracle()

    def keep(done, total, progress):
        # While a round renders it reports the step before it again; what counts is that step's first report.
        if done == step and done not in states:
            states[done] = progress.state()

    scene = refine_scene(small, ROUNDS, resynthesize=oracle, callback=keep)
    states[step].save(tmp_path / "fit.safetensors")
    again, heard, state = Oracle(), [], FitState.load(tmp_path / "fit.safetensors")
    resumed = refine_scene(
        small,
        ROUNDS,
        resynthesize=again,
        state=state,
        callback=lambda *args: heard.append(len(args[2].losses)),
    )
    assert same(resumed, scene)
    assert len(again.asked) == {40: 2, 50: 1, 55: 1}[step]
    assert heard[-1] == 70


def test_rendering_for_a_round_can_be_cancelled(small):
    seen = []

    def stop(step, total, progress):
        seen.append(step)
        if seen.count(40) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        refine_scene(small, ROUNDS, resynthesize=Oracle(), callback=stop)
    assert seen[-1] == 40


def test_wrong_answers_of_a_resynthesiser_are_refused(small):
    config = replace(ROUNDS, steps_static=1, steps=1)
    with pytest.raises(ValueError, match="Expected resynthesised views"):
        refine_scene(small, config, resynthesize=lambda rendered, _: small)
    with pytest.raises(ValueError, match="NaN"):
        refine_scene(
            small, config, resynthesize=lambda shown, _: replace(shown, images=shown.images * torch.nan)
        )


def test_views_that_lose_the_object_are_left_as_the_scene_shows_them(small, caplog):
    config = replace(ROUNDS, steps_static=1, steps=10, steps_refine=1, rounds=1)

    def forgetful(rendered, _):
        images, masks = rendered.images.clone(), rendered.masks.clone()
        images[1, 3], masks[1, 3] = 1, 0
        return replace(rendered, images=images, masks=masks)

    refine_scene(small, config, resynthesize=forgetful)
    assert "1 of 27 views made anew show no object" in caplog.text


def test_targets_are_kept_in_eight_bits_and_the_input_exactly(small):
    weights = torch.rand(small.images.shape[:4], generator=torch.Generator().manual_seed(0))
    other = replace(small, images=small.images * 0.7)
    packed = RoundTargets.of(other, weights)
    grid, again = RoundTargets.from_tensors(Tensors(packed.tensors(), "a state"), CAMERAS, small).unpacked(
        small
    )
    assert torch.equal(grid.images[:, 0], small.images[:, 0])
    assert float((grid.images[:, 1:] - other.images[:, 1:]).abs().max()) <= 0.5 / 255 + 1e-6
    assert float((again - weights).abs().max()) <= 0.5 / 255 + 1e-6


def test_steps_are_divided_between_the_stages():
    config = RefineConfig().with_steps(2500, 2)
    assert config.rounds == 2
    many = RefineConfig(rounds=100)
    assert many.with_steps(101, 2).total_steps == 101 and many.with_steps(5000, 2).total_steps == 5000
    with pytest.raises(ValueError, match="at least 101 steps, .* the 100 rounds .* got 100"):
        many.with_steps(100, 2)
    assert config.total_steps == 2500 == RefineConfig().with_steps(2500, 1).total_steps
    for steps in (4, 5, 17, 23, 100, 999, 1234, 4001):
        for stages in (1, 2):
            made = config.with_steps(steps, stages)
            assert made.total_steps == steps and made.with_steps(steps, stages) == made


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("change", [{}, {"field": "canonical", "follow": True}, {"backend": "gaussians"}])
def test_a_gpu_fits_what_a_cpu_fits(small, change):
    config = replace(ROUNDS, rounds=1, steps=60, **change)
    quality = []
    for device in ("cpu", "cuda"):
        scene = refine_scene(small, config, resynthesize=Oracle(), device=device)
        rgb = scene.render(CAMERAS, small.frame_times(), SIZE).rgb
        quality.append(float(psnr(rgb[:, 1], small.images[:, 1], small.masks[:, 1]).mean()))
    assert quality[1] > quality[0] - 1
