"""Loading: the right weights in the right place and dtype, clear errors, no memory beyond the weights."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_checkpoint import write_random_checkpoint
from safetensors.torch import load_file, save_file

from sv4d2_core.diffusion.checkpoint import describe_checkpoint, load_checkpoint
from sv4d2_core.diffusion.config import CLIPVisionConfig, ModelConfig, UNetConfig, VAEConfig
from sv4d2_core.diffusion.safetensors_stream import CheckpointError

ROOT = Path(__file__).parents[1]
METADATA = {
    "sv4d2.variant": "sv4d2",
    "sv4d2.num_head_channels": "16",
    "sv4d2.vector_dims": "8,12,12",
    "sv4d2.clip_head_width": "16",
}
UNET_KEY = "model.diffusion_model.time_embed.0.weight"
FRAMES = "conditioner.embedders.1.encoder."
VIEWS = "conditioner.embedders.4.encoder."


@pytest.fixture(scope="module")
def tiny(goldens) -> dict[str, torch.Tensor]:
    """Return the tensors of the tiny checkpoint in the official layout."""
    return {key: goldens.weight(key, shape).reshape(shape) for key, shape in goldens.manifest.items()}


@pytest.fixture(scope="module")
def tiny_file(tiny, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "model.safetensors"
    save_file(tiny, path, METADATA | {"sv4d2.vector_dims": "32,48,48", "sv4d2.clip_head_width": "32"})
    return path


@pytest.fixture(scope="module")
def small(full_checkpoint) -> dict[str, torch.Tensor]:
    return load_file(full_checkpoint)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "sv4d2.safetensors"


def unet_weight(model):
    return model.unet.state_dict()["time_embed.0.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_weight_is_the_files_frozen_and_of_its_dtype(tiny, tiny_file, caplog, dtype):
    model = load_checkpoint(tiny_file, dtype=dtype)
    prefixes = {
        "model.diffusion_model.": model.unet,
        "conditioner.embedders.0.open_clip.model.visual.": model.clip,
        FRAMES: model.frame_encoder,
        VIEWS: model.view_encoder,
        "first_stage_model.decoder.": model.decoder,
    }
    for prefix, network in prefixes.items():
        wanted = torch.float32 if network is model.decoder else dtype
        state = network.state_dict()
        assert state and not network.training
        for key, value in state.items():
            assert value.dtype == wanted and torch.equal(value, tiny[prefix + key].to(wanted)), prefix + key
        assert not any(tensor.requires_grad for tensor in network.parameters())
    assert model.config.unet.base == 32
    assert model.view_encoder is not model.frame_encoder
    assert not caplog.records


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_narrow_files_widen(small, path, stored):
    save_file({k: v.to(stored) for k, v in small.items()}, path, METADATA)
    assert torch.equal(unet_weight(load_checkpoint(path)), small[UNET_KEY].to(stored).float())
    with pytest.raises(ValueError, match="float32, float16 or bfloat16; got torch.float64"):
        load_checkpoint(path, dtype=torch.float64)


def test_weights_do_not_depend_on_the_file_afterwards(small, path):
    save_file(small, path, METADATA)
    model = load_checkpoint(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(unet_weight(model), small[UNET_KEY])


def test_unexpected_keys_are_one_warning_and_other_dtypes_of_unused_ones_none(small, path, caplog):
    unused = {"conditioner.embedders.0.open_clip.model.logit_scale": torch.zeros((), dtype=torch.int64)}
    save_file(small | unused | {f"model_ema.{i}": torch.zeros(1) for i in range(5)}, path, METADATA)
    with caplog.at_level(logging.WARNING):
        load_checkpoint(path)
    assert len(caplog.records) == 1
    assert "5 unexpected keys (model_ema.0, model_ema.1, " in caplog.text


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        (".motion_blocks.0.norm2.", lambda _: None, r"lacks {} keys \(.*\.norm2\..* that the model needs"),
        (VIEWS, lambda _: None, "without 1 of its parts: VAE encoder of the views"),
        (UNET_KEY, lambda _: torch.zeros(128, 31), UNET_KEY + r" \[128, 32\]; got \[128, 31\]"),
        *(
            (UNET_KEY, lambda x, t=dtype: x.to(t), f"1 tensor .* of type {name}; expected F32, F16, BF16")
            for dtype, name in ((torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8"), (torch.float64, "F64"))
        ),
    ],
)
def test_what_is_wrong_with_tensors_is_counted_and_named(small, path, key, change, words):
    changed = {k: change(small[k]) for k in small if key in k}
    save_file({k: v for k, v in (small | changed).items() if v is not None}, path, METADATA)
    with pytest.raises(CheckpointError, match=words.format(len(changed)) if "{}" in words else words):
        load_checkpoint(path)


def test_overlapping_tensors_are_found_by_the_library(small, path):
    save_file(small, path, METADATA)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    table[UNET_KEY]["data_offsets"] = [0, 4]
    text = json.dumps(table, separators=(",", ":")).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_description_of_a_good_file(small, full_checkpoint):
    info = describe_checkpoint(full_checkpoint)
    assert (info.variant, info.missing, info.unexpected, info.problem) == ("sv4d2", (), (), "")
    stored = [tensor for tensors in info.parts.values() for tensor in tensors]
    assert sum(tensor.numel for tensor in stored) == sum(v.numel() for v in small.values())
    assert sum(tensor.n_bytes for tensor in stored) == sum(v.nbytes for v in small.values())
    text = str(info)
    for words in ("variant sv4d2", "UNet", "CLIP image tower", "not used", "F32", "sv4d2 convert"):
        assert words in text


def test_description_of_incomplete_and_foreign_files(small, path, tmp_path):
    lost = "first_stage_model.decoder.conv_in.bias"
    save_file({k: v for k, v in small.items() if k != lost} | {"extra": torch.zeros(1)}, path, METADATA)
    info = describe_checkpoint(path)
    assert (info.missing, info.unexpected) == ((lost,), ("extra",))
    assert "lacks 1 key" in str(info)
    save_file({"a.lora_up.weight": torch.zeros(4, 4)}, path)
    info = describe_checkpoint(path)
    assert info.config is None and "is a LoRA" in str(info)
    unnamed = tmp_path / "model.safetensors"
    save_file(small, unnamed, {k: v for k, v in METADATA.items() if k != "sv4d2.variant"})
    info = describe_checkpoint(unnamed)
    assert info.variant is None
    assert "variant cannot be told" in str(info) and "Choose variant sv4d2 or sv4d2_8views" in str(info)


MEMORY_SCRIPT = """
import re, sys, threading, time
import torch
from sv4d2_core.diffusion.checkpoint import load_checkpoint
torch.set_num_threads(1)

def anonymous_bytes():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])

def watch():
    while not done.is_set():
        peak[0] = max(peak[0], anonymous_bytes())
        time.sleep(0.001)

before = anonymous_bytes()
peak, done = [before], threading.Event()
threading.Thread(target=watch, daemon=True).start()
model = load_checkpoint(sys.argv[1], dtype=torch.float16)
done.set()
peak[0] = max(peak[0], anonymous_bytes())
networks = (model.unet, model.clip, model.frame_encoder, model.decoder)
weights = sum(p.nbytes for n in networks for p in n.parameters())
sys.stdout.write(f"{peak[0] - before} {weights}")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is read from Linux's /proc")
def test_loading_needs_no_memory_beyond_the_weights(tmp_path):
    path = tmp_path / "bench.safetensors"
    config = ModelConfig(
        vector_dims=(64, 96, 96),
        unet=UNetConfig(base=64, head_channels=32, context_dim=256, vector_dim=256),
        vae=VAEConfig(base=32),
        clip=CLIPVisionConfig(width=64, layers=2, head_width=32, mlp_width=256, embed_dim=256),
    )
    write_random_checkpoint(path, config)
    assert path.stat().st_size > 300e6
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    growth, weights = map(int, done.stdout.split())
    assert weights < 0.55 * path.stat().st_size
    assert growth <= 1.15 * weights + 4e6
