"""LoRA files of ours inside ComfyUI: its stock loader gives what our merged weights give."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from safetensors.torch import save_file

T, V = 3, 2


def seeded(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def adapted(core, tiny_checkpoint):
    """Return the tiny checkpoint's UNet with low-rank parts that are far from where they started."""
    unet = core("diffusion.checkpoint").load_checkpoint(tiny_checkpoint).unet
    parameters = core("training.weights").add_lora(unet, 4)
    with torch.no_grad():
        for seed, parameter in enumerate(parameters):
            parameter.copy_(0.2 * seeded(*parameter.shape, seed=seed))
    return unet


def predictions(core, unet, patcher):
    """Return what a UNet of ours and ComfyUI's model predict for the same noisy window."""
    import comfy.model_management

    x, frames = seeded(T * V, 4, 16, 16), seeded(T, 4, 16, 16, seed=1)
    context, vectors = seeded(1, T, 48, seed=2), seeded(V, 128, seed=3)
    references, sigma = seeded(V, 4, 16, 16, seed=4), torch.tensor(3.0)
    scale = core("diffusion.sampling").precondition(sigma)
    comfy.model_management.load_model_gpu(patcher)
    conds = {
        "frames": frames,
        "c_crossattn": context,
        "y": vectors,
        "references": references,
        "view_mixing": unet.config.view_mixing,
    }
    with torch.inference_mode():
        together = torch.cat([x * scale.c_in, frames.repeat_interleave(V, 0)], dim=1)
        out = unet(together, scale.c_noise.expand(V), vectors, unet.prepare(context, references))
        return out * scale.c_out + x * scale.c_skip, patcher.model.apply_model(
            x, sigma.expand(T * V), **conds
        )


def test_a_stock_lora_loader_gives_the_merged_model(
    host, core, loaded, adapted, tmp_path, monkeypatch, caplog
):
    import folder_paths

    lora = core("training.weights")
    state = lora.lora_state(adapted)
    save_file(state, tmp_path / "ours.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    with caplog.at_level(logging.WARNING):
        patched = host.LoraLoaderModelOnly().load_lora_model_only(loaded[0], "ours.safetensors", 1.0)[0]
    assert "lora key not loaded" not in caplog.text and "NOT LOADED" not in caplog.text
    assert len(patched.patches) == len(state) // 3
    merged = copy.deepcopy(adapted)
    lora.merge_lora(merged)
    expected, actual = predictions(core, merged, patched)
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()
    plain = predictions(core, merged, loaded[0])[1]
    assert (plain - expected).abs().max() > 1e-2 * expected.abs().max()


def test_strength_scales_the_change(host, core, loaded, adapted):
    import comfy.sd

    lora = core("training.weights")
    weaker = copy.deepcopy(adapted)
    with torch.no_grad():
        for name, parameter in weaker.named_parameters():
            if name.endswith(".lora_up.weight"):
                parameter /= 2
    patched = comfy.sd.load_lora_for_models(loaded[0], None, lora.lora_state(adapted), 0.5, 0.0)[0]
    expected, actual = predictions(core, weaker, patched)
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()
