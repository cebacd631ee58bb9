"""Cameras, guidance, schedule, conditioning, sampler and whole clips against the official code's numbers."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import interpolate

from sv4d2_core.cameras import Cameras
from sv4d2_core.diffusion.blocks import sinusoidal_embedding
from sv4d2_core.diffusion.novel_views import plan_windows, sample_views
from sv4d2_core.diffusion.sampling import (
    Conditioning,
    camera_vectors,
    first_step,
    guidance_table,
    guide,
    guided_denoiser,
    guided_inputs,
    karras_sigmas,
    precondition,
    sample_euler,
    start_latents,
)

VARIANTS = ["sv4d2", "sv4d2_8views"]


def test_cameras(goldens, close):
    arrays = goldens.arrays("camera")
    for number, case in goldens.index["camera"]["cases"].items():
        azimuths = case["azimuths_deg"]
        elevations = case["elevations_deg"]
        if not isinstance(elevations, list):
            # The network sees differences only: one elevation for all views is elevation 0 for all.
            elevations = [0.0] * len(azimuths)
        cameras = Cameras(tuple(elevations), tuple(azimuths))
        polar, azimuth = cameras.network_angles_rad()
        close(polar, arrays[f"polar{number}"], 1e-6)
        close(azimuth, arrays[f"azim{number}"], 1e-6)
        close(camera_vectors(cameras, (256, 512, 512))[0], arrays[f"vector{number}"], 5e-6)


def test_schedule(goldens, close):
    arrays = goldens.arrays("schedule")
    for steps in (1, 4, 5, 20, 50):
        expected = arrays[f"sigmas_{steps}"]
        torch.testing.assert_close(karras_sigmas(steps), expected, rtol=1e-6, atol=0)
    factors = torch.stack(list(precondition(arrays["sigma"])))
    torch.testing.assert_close(factors, arrays["c"], rtol=1e-6, atol=1e-6)


def test_guidance(goldens, close):
    arrays = goldens.arrays("guider")
    for name, spec in goldens.index["guider"]["tables"].items():
        shape = "linear" if spec["guider"].startswith("Linear") else "spatiotemporal"
        table = guidance_table(shape, spec["T"], spec["V"], spec["min_scale"], spec["max_scale"])
        close(table, arrays[name], 1e-6)
        x = goldens.randn(f"in:guider:x{name[-1]}", (2 * spec["T"] * spec["V"], 4, 2, 2))
        close(guide(*x.chunk(2), table), arrays[f"guided{name[-1]}"], 1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_windows(goldens, variant):
    window = {"sv4d2": 12, "sv4d2_8views": 5}[variant]
    compared = 0
    for n_frames, plans in goldens.windows[variant].items():
        if "recommended" in plans and int(n_frames) >= window:
            expected = [w["t0"] for w in plans["recommended"]["windows"]]
            assert plan_windows(int(n_frames), window) == expected
            compared += 1
    assert compared >= 3


@pytest.mark.parametrize("variant", VARIANTS)
def test_conditioner(goldens, close, tiny_model, variant):
    name = f"conditioner_{variant}"
    spec, arrays, model = goldens.index[name], goldens.arrays(name), tiny_model(variant)

    def images(key, n):
        x = goldens.randn(f"in:{name}:{key}", (n, 3, 8, 8))
        x = torch.tanh(interpolate(x, (64, 64), mode="bilinear", align_corners=False))
        return (x.permute(0, 2, 3, 1) + 1) / 2

    frames = images("cond_motion", spec["T"])
    close(model.embed(frames)[None], arrays["crossattn"], 2e-5)
    close(model.encode(frames, role="frames"), arrays["concat_v0"], 2e-5)
    close(model.encode(images("cond_view", spec["V"]), role="views"), arrays["cond_view"], 2e-5)
    cond, uncond = camera_vectors(Cameras.official(variant), model.config.vector_dims)
    close(cond.repeat(spec["T"], 1), arrays["vector"], 5e-6)
    close(uncond.repeat(spec["T"], 1), arrays["uc_vector"], 5e-6)


@pytest.mark.parametrize("variant,name", [("sv4d2", "sampler_sv4d2"), ("sv4d2_8views", "sampler_8views")])
def test_sampler(goldens, close, tiny_model, variant, name):
    spec, arrays, model = goldens.index[name], goldens.arrays(name), tiny_model(variant)
    drawn = {key: goldens.randn(f"in:{name}:{key}", shape) for key, shape in spec["inputs"].items()}
    n_frames, n_views = spec["T"], spec["V"]
    constant = sinusoidal_embedding(torch.full((n_views,), 1e-5), 32)
    conditioning = Conditioning(
        tokens=drawn["crossattn"][0],
        frame_latents=drawn["concat"].unflatten(0, (n_frames, n_views))[:, 0],
        reference_latents=drawn["cond_view"],
        vectors=torch.cat([constant, drawn["polar_azim"]], dim=1),
        uncond_vectors=torch.cat([torch.zeros_like(constant), drawn["polar_azim"]], dim=1),
    )
    shape = "linear" if variant == "sv4d2" else "spatiotemporal"
    table = guidance_table(shape, n_frames, n_views, spec["min_scale"], spec["max_scale"])
    inputs = guided_inputs(conditioning, torch.device("cpu"), torch.float32)
    # The golden draws other frame latents for every view; the pipeline never does.
    inputs.concat.copy_(torch.cat([torch.zeros_like(drawn["concat"]), drawn["concat"]]))
    sigmas = karras_sigmas(spec["steps"])
    x = start_latents(drawn["noise"], sigmas)
    xs, denoised = [], []
    with torch.inference_mode():
        denoise = guided_denoiser(model.unet, inputs, table)

        def recorded(x, sigma):
            xs.append(x)
            denoised.append(denoise(x, sigma))
            return denoised[-1]

        xs.append(sample_euler(recorded, x, sigmas))
    trajectory = arrays["trajectory"]
    assert len(xs) == len(trajectory) + 1
    for actual, expected in zip(xs[1:], trajectory, strict=True):
        largest = expected.abs().max().item()
        close(actual, expected, 5e-4 * largest if largest > 10 else 1e-4)
    for actual, key in ((denoised[0], "denoised_first"), (denoised[-1], "denoised_last")):
        close(actual, guide(*arrays[key].chunk(2), table), 1e-4)


@pytest.mark.parametrize("name", ["e2e_sv4d2_12", "e2e_sv4d2_21", "e2e_8views_9"])
def test_end_to_end(goldens, tiny_model, name):
    spec, arrays = goldens.index[name], goldens.arrays(name)
    variant = spec["variant"]
    model = tiny_model(variant)
    clip = goldens.arrays(f"{name}_input")["processed"].float() / 255
    n_windows, per_window = spec["n_windows"], model.config.n_frames * model.config.n_views
    noise = torch.stack(
        [goldens.randn(f"in:{name}:noise{k}", (per_window, 4, 8, 8)) for k in range(n_windows)]
    )
    kept = {}
    store = SimpleNamespace(load=kept.get, save=kept.__setitem__)
    cameras = Cameras.official(variant)
    grid = sample_views(model, clip, cameras, steps=spec["steps"], noise=noise, store=store)
    assert grid.images.shape == (spec["n"], model.config.n_views + 1, 64, 64, 3)

    def near(actual, expected):
        error = (actual - expected).abs()
        assert error.max() <= 5e-3 and error.mean() <= 1e-3, (error.max().item(), error.mean().item())

    for k in range(n_windows):
        near(kept[k], arrays[f"latents_w{k}"])
    signed = grid.images.permute(0, 1, 4, 2, 3) * 2 - 1
    near(signed[:, 1:, :, 5::18, 7::18], arrays["probes"])
    near(torch.stack([signed[t, v] for t, v in spec["keep"]]), arrays["frames_kept"])
    torch.testing.assert_close(grid.images[:, 0], clip)


def test_constant_guidance_needs_no_minimum():
    assert (guidance_table("constant", 2, 3, 1.0, 0.5) == 0.5).all()


def test_a_strength_too_small_for_the_steps_names_one_that_is_enough():
    with pytest.raises(ValueError, match=r"got 0.01. Use at least 0.02 "):
        first_step(50, 0.01)
    assert first_step(50, 0.02) == 49
