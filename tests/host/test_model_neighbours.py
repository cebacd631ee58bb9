"""Stock loaders with our files, and other models beside our pack."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sv4d2_host_media import drawn_window, random_checkpoint


@pytest.fixture(scope="module")
def official_widths(core, tmp_path_factory):
    """Return a checkpoint whose heads, vectors and autoencoder have the official widths, otherwise small."""
    config = core("diffusion.config")
    model = config.ModelConfig(
        trained=False,
        unet=config.UNetConfig(base=64, multipliers=(1, 2), res_blocks=1, attention_levels=1, context_dim=48),
        clip=config.CLIPVisionConfig(
            width=64, layers=1, head_width=32, mlp_width=64, patch=28, image_size=56, embed_dim=48
        ),
    )
    path = tmp_path_factory.mktemp("official") / "sv4d2_small.safetensors"
    return random_checkpoint().write_random_checkpoint(path, model, seed=3, dtype=torch.float16)


@pytest.fixture
def named(official_widths, host_dirs):
    """Return the name under which the stock loaders find the checkpoint."""
    for kind in ("checkpoints", "diffusion_models"):
        (host_dirs.models / kind / official_widths.name).symlink_to(official_widths)
    return official_widths.name


def predict(patcher, config, view_mixing):
    """Return the host model's prediction for drawn conditions of one window."""
    import comfy.model_management

    comfy.model_management.load_model_gpu(patcher)
    x, conds = drawn_window(config, 8)
    with torch.inference_mode():
        sigmas = torch.full((len(x),), 2.0)
        return patcher.model.apply_model(x, sigmas, **conds, view_mixing=view_mixing)


def test_stock_loaders_build_the_same_model(host, pack, core, named, official_widths):
    from comfy_extras.nodes_video_model import ImageOnlyCheckpointLoader

    ours, _, our_vae = pack["SV4D2CheckpointLoader"].execute(named, "auto", "default").args
    config = ours.model.sv4d2_config
    expected = predict(ours, config, "released_3d")
    with torch.inference_mode():
        image = torch.rand(1, 64, 64, 3)
        latent, decoded = our_vae.encode(image), our_vae.decode(torch.ones(1, 4, 8, 8))
    core_model = core("diffusion.checkpoint").load_checkpoint(official_widths)
    assert (latent - core_model.encode(image, "frames")).abs().max() < 1e-3
    scaled = torch.ones(1, 4, 8, 8) * config.scale_factor
    assert (decoded - core_model.decode(scaled)).abs().max() < 1e-3

    stock = {
        "ImageOnlyCheckpointLoader": ImageOnlyCheckpointLoader().load_checkpoint(named),
        "CheckpointLoaderSimple": host.CheckpointLoaderSimple().load_checkpoint(named),
    }
    for name, loaded in stock.items():
        assert torch.equal(predict(loaded[0], config, "released_3d"), expected), name
        with torch.inference_mode():
            assert torch.equal(loaded[2].encode(image), latent), name
            assert torch.equal(loaded[2].decode(torch.ones(1, 4, 8, 8)), decoded), name
    unet = host.UNETLoader().load_unet(named, "default")[0]
    assert torch.equal(predict(unet, config, "released_3d"), expected)
    fp8 = host.UNETLoader().load_unet(named, "fp8_e4m3fn")[0]
    assert not torch.equal(predict(fp8, config, "released_3d"), expected)


def test_a_dropped_model_frees_its_weights(pack, named):
    import gc
    import weakref

    model = pack["SV4D2UNETLoader"].execute(named, "auto", "default")[0]
    predict(model, model.model.sv4d2_config, "view")
    comfy_unet = weakref.ref(model.model.diffusion_model)
    import comfy.model_management

    comfy.model_management.unload_all_models()
    gc.collect()
    gc.disable()
    try:
        del model
        comfy.model_management.cleanup_models()
        assert comfy_unet() is None
    finally:
        gc.enable()


def test_stock_loaded_variant_follows_the_number_of_cameras(
    host, pack, core, named, official_widths, host_dirs, caplog
):
    from safetensors.torch import load_file, save_file

    # As the official files are: nothing in them names the variant.
    tensors = load_file(official_widths)
    tensors.pop(core("diffusion.layout").STORED_METADATA)
    save_file(tensors, host_dirs.models / "diffusion_models" / "official.safetensors")
    model = host.UNETLoader().load_unet("official.safetensors", "default")[0]
    with caplog.at_level("INFO"):
        assert model.model.config_for(4).variant == "sv4d2"
        assert model.model.config_for(16).variant == "sv4d2_8views"
    assert "with 16 cameras it is taken as sv4d2_8views. Use SV4D2 Load Checkpoint to choose" in caplog.text
    chosen = pack["SV4D2UNETLoader"].execute(named, "sv4d2_8views", "default")[0]
    assert chosen.model.config_for(4).variant == "sv4d2_8views"


def test_unet_only_files_with_and_without_prefix(pack, core, named, official_widths, host_dirs):
    from safetensors import safe_open
    from safetensors.torch import save_file

    prefix = "model.diffusion_model."
    with safe_open(official_widths, "pt") as file:
        metadata = file.metadata()
        unet = {key: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}
    expected = pack["SV4D2UNETLoader"].execute(named, "auto", "default")[0]
    config = expected.model.sv4d2_config
    expected = predict(expected, config, "view")
    folder = host_dirs.models / "diffusion_models"
    bare = {key.removeprefix(prefix): tensor for key, tensor in unet.items()}
    for name, tensors in (("whole.safetensors", unet), ("bare.safetensors", bare)):
        save_file(tensors, folder / name, metadata)
        model = pack["SV4D2UNETLoader"].execute(name, "auto", "default")[0]
        assert torch.equal(predict(model, config, "view"), expected)
    fp8 = {key: x.to(torch.float8_e4m3fn) for key, x in bare.items()}
    save_file(fp8, folder / "fp8.safetensors", metadata)
    narrow = pack["SV4D2UNETLoader"].execute("fp8.safetensors", "auto", "default")[0]
    assert narrow.model.sv4d2_config.unet == config.unet
    bare.pop("out.2.weight")
    save_file(bare, folder / "damaged.safetensors", metadata)
    save_file({"lora_up.weight": torch.ones(1)}, folder / "lora.safetensors")
    with pytest.raises(ValueError, match="out.2.weight"):
        pack["SV4D2UNETLoader"].execute("damaged.safetensors", "auto", "default")
    with pytest.raises(ValueError, match="a LoRA"):
        pack["SV4D2UNETLoader"].execute("lora.safetensors", "auto", "default")


def test_other_models_are_found_loaded_and_sampled_as_without_the_pack(host):
    here, comfyui = Path(__file__).parent, Path(host.__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "foreign_models.py"), str(comfyui), str(here.parent.parent)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(here / "shims")},
        cwd=comfyui,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    without, with_pack = ([line[1:] for line in lines if line[0] == x] for x in ("WITHOUT", "WITH"))
    assert [found for _, found, _ in without] == [family for family, _, _ in without]
    assert len(without) == 7 and with_pack == without


def test_dataclass_of_the_variant_is_the_official_one(core, official_widths):
    layout = core("diffusion.layout")
    read_header = core("diffusion.safetensors_stream").read_header
    whole = layout.read_config(read_header(official_widths))
    alone, prefix = layout.read_unet_only(read_header(official_widths))
    assert prefix == "model.diffusion_model." and dataclasses.replace(alone, clip=whole.clip) == whole
