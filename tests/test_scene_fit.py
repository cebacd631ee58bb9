"""A short fit learns, repeats itself, resumes, and refuses what cannot be fitted."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.metrics.image import psnr
from sv4d2_core.scene import schedule
from sv4d2_core.scene.config import (
    FieldConfig,
    GaussiansConfig,
    RefineConfig,
    settings_from_json,
    settings_to_json,
)
from sv4d2_core.scene.dynerf import dynerf_fit
from sv4d2_core.scene.refine import refine_scene as whole_job
from sv4d2_core.scene.store import FitState
from sv4d2_core.views import ViewGrid
from sv4d2_core.world.body import make_creature
from sv4d2_core.world.render import render_views

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
    hull_size=32,
)


@pytest.fixture(scope="module", autouse=True)
def early_looks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynerf_fit, "_OCCUPANCY_EVERY", 20)
        yield


@pytest.fixture(scope="module")
def views():
    return render_views(make_creature(10), CAMERAS, 4, 32)


@pytest.fixture(scope="module", params=["planes", "canonical"])
def fitted(request, views):
    losses, states, config = [], {}, replace(TINY, field=request.param)

    def listen(step, total, progress):
        assert total == 60
        losses.append((progress.phase, progress.loss))
        if step in (7, 35):
            states[step] = progress.state()

    return refine_scene(views, config, callback=listen), losses, states, config


def same(first, second):
    pairs = zip(first.field.state_dict().values(), second.field.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


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
    grids = [x for name, x in scene.field.named_parameters() if "deformation" in name]
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
    assert torch.equal(resumed.occupancy.cells, scene.occupancy.cells)


def test_a_state_of_another_fit_is_refused(views, fitted):
    _, _, states, config = fitted
    with pytest.raises(ValueError, match="one of another fit, at step 7"):
        refine_scene(views, replace(config, learning_rate_factor=0.5), state=states[7])
    with pytest.raises(ValueError, match="one of another fit"):
        refine_scene(replace(views, images=views.images * 0.9), config, state=states[7])


@pytest.mark.parametrize("backend", ["dynerf", "gaussians"])
def test_frames_come_in_one_by_one_and_pictures_grow(views, monkeypatch, backend):
    config = replace(TINY, steps_static=2, steps=4, progressive=True, backend=backend)
    config = replace(config, gaussians=GaussiansConfig(count=200, features=4, plane_sizes=(8,)))
    plain = refine_scene(views, config).render(CAMERAS, [0.0], 16)
    monkeypatch.setattr(schedule, "_COARSE_TO_FINE_FROM", 32)
    assert not torch.equal(refine_scene(views, config).render(CAMERAS, [0.0], 16).rgb, plain.rgb)


def test_missing_masks_are_made_and_said(views, caplog):
    config = replace(TINY, steps_static=1, steps=1)
    scene = refine_scene(replace(views, masks=None), config)
    assert "near-white" in caplog.text
    assert same(
        scene, refine_scene(replace(views, masks=(views.images.mean(-1) <= 250 / 255).float()), config)
    )


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


def test_a_fit_that_diverges_names_the_knob(views):
    with pytest.raises(FloatingPointError, match=r"lower learning_rate_factor than 1e\+30"):
        refine_scene(views, replace(TINY, learning_rate_factor=1e30))


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
