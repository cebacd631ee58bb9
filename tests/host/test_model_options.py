"""Nodes of the host that change how any model runs, on ours: compile, step cache, attention, noise levels."""

import pytest
import torch
from torch._dynamo.utils import counters


def test_compiled_whole_and_once(guided, ksampler):
    from comfy.ldm.modules.attention import attention_pytorch
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    # As on a GPU; the host's attention on a CPU asks for free memory, at which a compiler stops.
    as_on_gpu = guided.clone()
    options = as_on_gpu.model_options["transformer_options"]
    options["optimized_attention_override"] = lambda _, *args, **kwargs: attention_pytorch(*args, **kwargs)
    compiled = as_on_gpu.clone()
    set_torch_compile_wrapper(model=compiled, backend="eager")
    counters.clear()
    expected = ksampler(as_on_gpu, steps=2)
    assert (ksampler(compiled, steps=2) - expected).abs().max() < 1e-4 * expected.abs().max()
    # One graph holds a whole pass, and the second step compiles nothing.
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 1


def test_step_cache_skips_passes(host, guided, ksampler, monkeypatch):
    from comfy_extras.nodes_easycache import LazyCacheNode

    passes = []
    unet = guided.model.diffusion_model
    predict = unet._predict
    monkeypatch.setattr(unet, "_predict", lambda *a, **k: passes.append(1) or predict(*a, **k))
    cached = LazyCacheNode.execute(guided, 10.0, 0.1, 0.95, False)[0]
    assert ksampler(cached, steps=10).isfinite().all()
    assert 2 <= len(passes) < 10


def test_attention_can_be_replaced(guided, ksampler):
    seen = []

    def override(attention, *args, **kwargs):
        seen.append(args[0].shape)
        return attention(*args, **kwargs)

    patched = guided.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    assert torch.equal(ksampler(patched, steps=2), ksampler(guided, steps=2)) and seen


def test_noise_levels_can_be_replaced(guided, ksampler):
    from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM

    changed = ModelSamplingContinuousEDM().patch(guided, "v_prediction", 100.0, 0.01)[0]
    assert not torch.equal(ksampler(changed, steps=2), ksampler(guided, steps=2))


def test_guidance_without_a_negative_is_refused(guided, window):
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import BasicGuider, RandomNoise, SamplerCustomAdvanced

    guider = BasicGuider().get_guider(guided, window[0])[0]
    noise = RandomNoise().get_noise(1)[0]
    sigmas = comfy.samplers.calculate_sigmas(guided.get_model_object("model_sampling"), "karras", 2)
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match="got positive alone. Use KSampler or CFGGuider"),
    ):
        sampler = comfy.samplers.sampler_object("euler")
        SamplerCustomAdvanced().sample(noise, guider, sampler, sigmas, window[2])
