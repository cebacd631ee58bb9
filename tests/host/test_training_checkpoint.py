"""What a training of ours leaves works inside ComfyUI like any other checkpoint."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

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


def test_a_trained_checkpoint_samples_in_comfyui_as_in_the_core(host, pack, core, trained, host_dirs):
    (host_dirs.models / "checkpoints" / "trained.safetensors").symlink_to(trained)
    loaded = pack["SV4D2CheckpointLoader"].execute("trained.safetensors", "auto", "default").args
    cameras = core("cameras").Cameras.default(2)
    clip = torch.rand(3, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(1))
    window = pack["SV4D2Conditioning"].execute(*loaded, clip, cameras, 0).args
    with torch.inference_mode():
        latent = host.KSampler().sample(loaded[0], 5, 3, 1.0, "euler", "karras", *window[:3])[0]["samples"]
    assert latent.shape == (6, 4, SIZE // 2, SIZE // 2) and bool(latent.isfinite().all())
    model = core("diffusion.checkpoint").load_checkpoint(trained)
    assert model.config.trained
    expected = core("diffusion.novel_views").sample_views(model, clip, cameras, steps=3, seed=5, cfg=1.0)
    scaled = latent.unflatten(0, (3, 2)) * model.config.scale_factor
    assert (scaled - expected.latents).abs().max() < 1e-3 * expected.latents.abs().max()
