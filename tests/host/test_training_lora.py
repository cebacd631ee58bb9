"""LoRA files of ours inside ComfyUI: its stock loader gives what our merged weights give."""

import copy
import logging

import pytest
import torch
from safetensors.torch import save_file
from sv4d2_host_media import drawn_window


@pytest.fixture(scope="module")
def adapted(core, tiny_checkpoint):
    """Return the tiny checkpoint's UNet with low-rank parts that are far from where they started."""
    unet = core("diffusion.checkpoint").load_checkpoint(tiny_checkpoint).unet
    parameters = core("training.weights").add_lora(unet, 4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(0, 0.2, generator=generator)
    return unet


def predictions(core, config, unet, patcher):
    """Return what a UNet of ours and ComfyUI's model predict for both halves of a noisy window."""
    import comfy.model_management

    x, conds = drawn_window(config, 16, halves=2)
    frames, context, vectors, references = conds.values()
    sigma = torch.tensor(3.0)
    scale = core("diffusion.sampling").precondition(sigma)
    comfy.model_management.load_model_gpu(patcher)
    with torch.inference_mode():
        together = torch.cat([x * scale.c_in, frames.repeat_interleave(config.n_views, 0)], dim=1)
        window = unet.prepare(context, references)
        out = unet(together, scale.c_noise.expand(len(vectors)), vectors, window)
        mixing = config.unet.view_mixing
        theirs = patcher.model.apply_model(x, sigma.expand(len(x)), **conds, view_mixing=mixing)
    return out * scale.c_out + x * scale.c_skip, theirs


def test_a_stock_lora_loader_gives_the_merged_model(
    host, core, loaded, adapted, tiny_checkpoint, tmp_path, monkeypatch, caplog
):
    import folder_paths

    lora = core("training.weights")
    state = lora.lora_state(adapted)
    save_file(state, tmp_path / "ours.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    with caplog.at_level(logging.WARNING):
        patched = host.LoraLoaderModelOnly().load_lora_model_only(loaded[0], "ours.safetensors", 0.5)[0]
    assert "lora key not loaded" not in caplog.text and "NOT LOADED" not in caplog.text
    assert len(patched.patches) == len(state) // 3
    merged = copy.deepcopy(adapted)
    with torch.no_grad():
        for name, parameter in merged.named_parameters():
            if name.endswith(".lora_up.weight"):
                parameter *= 0.5
    lora.merge_lora(merged)
    plain = core("diffusion.checkpoint").load_checkpoint(tiny_checkpoint)
    (expected, actual), (unchanged, again) = (
        predictions(core, plain.config, *pair) for pair in ((merged, patched), (plain.unet, loaded[0]))
    )
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (again - unchanged).abs().max() < 1e-4 * unchanged.abs().max()
    assert (expected - unchanged).abs().max() > 1e-2 * expected.abs().max()
