"""Second-order sampling, the guidance interval and the step cache: what they promise, alone and together."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch

from sv4d2_core.__main__ import main
from sv4d2_core.cameras import Cameras
from sv4d2_core.diffusion.novel_views import sample_views
from sv4d2_core.diffusion.sampling import (
    SAMPLERS,
    Solver,
    StepCache,
    karras_sigmas,
    precondition,
    sample_dpmpp_2m,
    sample_euler,
)
from sv4d2_core.diffusion.unet import UNet

CAMERAS = Cameras((0, 0, 0), (0, 90, 180))
# Data of three Gaussians, whose equation has a solution in closed form.
MEAN = torch.tensor([0.0, 0.8, -0.5])[:, None, None]
SPREAD = torch.tensor([0.1, 0.5, 1.0])[:, None, None]


def gaussian(x, sigma):
    return MEAN + (x - MEAN) * SPREAD**2 / (SPREAD**2 + sigma**2)


def start_and_solution(sigmas, start=0):
    noise = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    x = MEAN + noise * (SPREAD**2 + sigmas[start] ** 2).sqrt()
    return x, MEAN + noise * SPREAD


def error(sample, steps, start=0, denoise=gaussian):
    sigmas = karras_sigmas(steps)
    x, solution = start_and_solution(sigmas, start)
    return float((sample(denoise, x, sigmas, start) - solution).abs().mean())


def clip(n_frames=3, size=32):
    return torch.rand(n_frames, size, size, 3, generator=torch.Generator().manual_seed(n_frames))


@pytest.fixture
def halves(monkeypatch):
    """Return a list that gets the number of halves of guidance in each evaluation of the network."""
    seen, forward = [], UNet.forward

    def counting(self, x, timesteps, y, window):
        seen.append(window.grid[0])
        return forward(self, x, timesteps, y, window)

    monkeypatch.setattr(UNet, "forward", counting)
    return seen


def test_both_samplers_converge_to_the_known_solution_each_at_its_order():
    for steps, share in ((10, 0.6), (20, 0.6), (50, 0.25), (100, 0.1)):
        assert error(sample_dpmpp_2m, steps) < share * error(sample_euler, steps)
    assert error(sample_dpmpp_2m, 25) < error(sample_euler, 50)
    euler, second = ([error(sample, steps) for steps in (40, 80, 160)] for sample in SAMPLERS.values())
    assert euler[2] < 0.6 * euler[1] < 0.36 * euler[0]
    assert second[2] < 0.35 * second[1] < 0.1225 * second[0]
    assert second[2] < 1e-3


def test_second_order_starts_anywhere_and_equals_euler_for_two_steps():
    assert error(sample_dpmpp_2m, 50, start=30) < 0.3 * error(sample_euler, 50, start=30)
    sigmas = karras_sigmas(2)
    x, _ = start_and_solution(sigmas)
    torch.testing.assert_close(
        sample_dpmpp_2m(gaussian, x, sigmas), sample_euler(gaussian, x, sigmas), rtol=1e-4, atol=1e-4
    )


def test_progress_is_the_same_for_both_samplers():
    seen = []
    sigmas = karras_sigmas(4)
    x, _ = start_and_solution(sigmas, 1)
    for sample in SAMPLERS.values():
        sample(gaussian, x, sigmas, 1, lambda step, total, preview: seen.append((step, total, preview.shape)))
    assert seen == 2 * [(step, 4, x.shape) for step in (2, 3, 4)]


@pytest.mark.parametrize("sample", SAMPLERS.values())
def test_step_cache_saves_evaluations_for_a_bounded_error(sample):
    caches = [StepCache(gaussian, threshold) for threshold in (1e-9, 0.03, 0.1)]
    errors = [error(sample, 50, denoise=cache) for cache in caches]
    evaluated = [cache.evaluated for cache in caches]
    assert evaluated[0] == 50 > evaluated[1] > evaluated[2]
    assert errors[0] == pytest.approx(error(sample, 50), abs=1e-5)
    assert max(errors[1:]) < errors[0] + 0.03


def test_step_cache_of_a_network_that_says_nothing_never_rests():
    cache = StepCache(lambda x, sigma: x * precondition(sigma).c_skip, 0.1)
    error(sample_euler, 5, denoise=cache)
    assert cache.evaluated == 5


def test_the_guidance_interval_decides_which_halves_are_computed(micro_model, halves):
    def sampled(cfg, interval):
        return sample_views(micro_model, clip(), CAMERAS, steps=3, cfg=cfg, guidance_interval=interval).images

    never, unguided = sampled(3.0, (1e5, 1e6)), sampled(1.0, None)
    assert halves == [1] * 3 + [2] * 3
    torch.testing.assert_close(never, unguided, rtol=0, atol=1e-5)
    always, plain, partly = (sampled(3.0, interval) for interval in ((0.0, 1e6), None, (0.001, 100.0)))
    assert torch.equal(always, plain) and halves[6:12] == [2] * 6
    assert halves[12:] == [1, 2, 2] and not torch.equal(partly, plain)


def test_step_cache_of_a_model_says_what_it_saved(micro_model, halves, caplog):
    caplog.set_level(logging.INFO)
    plain = sample_views(micro_model, clip(), CAMERAS, steps=12, sampler="dpmpp_2m")
    cached = sample_views(micro_model, clip(), CAMERAS, steps=12, sampler="dpmpp_2m", step_cache=0.3)
    evaluated = len(halves) - 12
    assert 2 <= evaluated < 12 and f"Step cache: {evaluated} of 12 steps evaluated" in caplog.text
    assert not torch.equal(cached.images, plain.images)
    assert (cached.images - plain.images).abs().mean() < 0.05


def test_shortcuts_together_cancel_and_continue_to_the_same_bits(micro_model):
    options = {"steps": 6, "sampler": "dpmpp_2m", "guidance_interval": (0.1, 10.0), "step_cache": 0.1}
    kept = {}
    store = SimpleNamespace(load=kept.get, save=kept.__setitem__)
    whole = sample_views(micro_model, clip(5), CAMERAS, store=store, **options)
    del kept[1]
    continued = sample_views(micro_model, clip(5), CAMERAS, store=store, **options)
    assert torch.equal(whole.images, continued.images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "heun"}, "euler or dpmpp_2m; got 'heun'"),
        ({"guidance_interval": (3.0, 0.3)}, "low < high; got 3 to 0.3"),
        ({"guidance_interval": (0.0, float("nan"))}, "got 0 to nan"),
        ({"step_cache": -0.1}, r"from 0 \(off\) on; got -0.1"),
    ],
)
def test_bad_shortcuts_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Solver(**changes)


def test_the_command_takes_shortcuts_and_never_mixes_them_with_other_results(
    disc_clip, micro_checkpoint, tmp_path, capsys
):
    out, clip_folder = tmp_path / "out", disc_clip(tmp_path / "clip", 3)
    plain = ["views", str(clip_folder), "--checkpoint", str(micro_checkpoint), "--out", str(out)]
    plain += ["--variant", "sv4d2", "--steps", "3", "--device", "cpu"]
    more = ["--sampler", "dpmpp_2m", "--guidance-interval", "0.1", "10", "--step-cache", "0.1"]
    more += ["--windows", "held", "--fp8-weights"]
    assert main(plain) == 0
    settings = json.loads((out / "run.json").read_text())["settings"]
    assert not settings.keys() & {"sampler", "guidance_interval", "step_cache", "fp8_weights", "windows"}
    capsys.readouterr()
    assert main([*plain, *more]) == 2
    assert "fp8_weights, guidance_interval, sampler, step_cache, windows" in capsys.readouterr().err
    assert main([*plain, *more, "--overwrite"]) == 0
    chosen = json.loads((out / "run.json").read_text())["settings"]
    assert (chosen["sampler"], chosen["step_cache"], chosen["fp8_weights"]) == ("dpmpp_2m", 0.1, True)
    assert chosen["guidance_interval"] == [0.1, 10.0] and chosen["windows"] == "held"
    capsys.readouterr()
    assert main([*plain, *more]) == 0 and "already complete" in capsys.readouterr().err
    assert main([*plain, *more[:-1]]) == 2 and "other settings" in capsys.readouterr().err
    assert main([*plain, "--step-cache", "-1"]) == 2
    assert "got -1" in capsys.readouterr().err
    small = [*plain, "--size", "16", "--out", str(tmp_path / "small")]
    assert main(small) == 0 and "16 pixels are fewer than the" in capsys.readouterr().err
