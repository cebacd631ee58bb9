"""What a training of ours leaves works inside ComfyUI: a checkpoint, and LoRA files in its stock loader."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from sv4d2_host_media import predictions

SIZE = 16


@pytest.fixture(scope="module")
def trained(core, tmp_path_factory):
    """Return the checkpoint of a training from scratch that lasted a step per stage."""
    recipes, config, loop = (
        core("training.recipe"),
        core("diffusion.config"),
        core("training.loop").LoopConfig(1),
    )
    model = replace(
        recipes.TINY,
        n_frames=3,
        n_views=2,
        vector_dims=(8, 12, 12),
        size=SIZE,
        unet=replace(recipes.TINY.unet, multipliers=(1,), attention_levels=1, context_dim=16, vector_dim=32),
        vae=config.VAEConfig(base=32, multipliers=(1, 1), res_blocks=1),
        clip=replace(recipes.TINY.clip, width=32, layers=1, image_size=16, embed_dim=16),
    )
    phases = tuple(
        recipes.Phase(name, loop, core("training.batches").DrawConfig(n_frames, batch=1))
        for name, n_frames in (("static", 1), ("motion", 3))
    )
    recipe = recipes.Recipe(
        model, n_scenes=1, autoencoder=loop, autoencoder_batch=16, decoder=loop, phases=phases, dtype="fp32"
    )
    folder = tmp_path_factory.mktemp("training")
    scenes = core("training.scenes").ProceduralScenes(0, SIZE, n_cameras=3, n_frames=3)
    store = core("training.scenes").SceneStore(folder / "scenes", scenes, {})
    return core("training.run").TrainingRun(folder, recipe, store, torch.device("cpu")).run()


def test_a_trained_checkpoint_samples_in_comfyui_as_in_the_core(pack, core, trained, host_dirs, ksampler):
    (host_dirs.models / "checkpoints" / "trained.safetensors").symlink_to(trained)
    loaded = pack["SV4D2CheckpointLoader"].execute("trained.safetensors", "auto", "default").args
    cameras = core("cameras").Cameras.default(2)
    clip = torch.rand(3, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(1))
    window = pack["SV4D2Conditioning"].execute(*loaded, clip, cameras, 0).args
    latent = ksampler(loaded[0], window, steps=3)
    assert latent.shape == (6, 4, SIZE // 2, SIZE // 2) and bool(latent.isfinite().all())
    model = core("diffusion.checkpoint").load_checkpoint(trained)
    assert model.config.trained
    expected = core("diffusion.novel_views").sample_views(model, clip, cameras, steps=3, seed=5, cfg=1.0)
    scaled = latent.unflatten(0, (3, 2)) * model.config.scale_factor
    assert (scaled - expected.latents).abs().max() < 1e-3 * expected.latents.abs().max()


@pytest.fixture(scope="module")
def adapted(core, tiny_checkpoint):
    """Return the tiny checkpoint's UNet with low-rank parts that are far from where they started."""
    unet = core("diffusion.checkpoint").load_checkpoint(tiny_checkpoint).unet
    parameters, draw = core("training.weights").add_lora(unet, 4), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
    return unet


def test_a_stock_lora_loader_gives_the_merged_model(
    host, core, loaded, adapted, tmp_path, monkeypatch, caplog
):
    import folder_paths

    lora = core("training.weights")
    state, (_, before) = lora.lora_state(adapted), predictions(core, adapted, loaded[0])
    save_file(state, tmp_path / "ours.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    with caplog.at_level("WARNING"):
        patched = host.LoraLoaderModelOnly().load_lora_model_only(loaded[0], "ours.safetensors", 1.0)[0]
    assert "lora key not loaded" not in caplog.text and "NOT LOADED" not in caplog.text
    assert len(patched.patches) == len(state) // 3
    merged = copy.deepcopy(adapted)
    lora.merge_lora(merged)
    expected, actual = predictions(core, merged, patched)
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()
    plain = predictions(core, merged, loaded[0])[1]
    assert torch.equal(plain, before), "the model that was patched is as it was"
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
