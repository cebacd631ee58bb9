"""What a file is, told from its header alone: sizes, variants, wrong and damaged files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fuzz.checkpoints import campaign
from safetensors.torch import save_file

from sv4d2_core.diffusion.checkpoint import build_networks, shapes_of
from sv4d2_core.diffusion.config import (
    OFFICIAL_VARIANTS,
    CLIPVisionConfig,
    ModelConfig,
    UNetConfig,
    VAEConfig,
)
from sv4d2_core.diffusion.layout import metadata_of, read_config
from sv4d2_core.diffusion.safetensors_stream import CheckpointError, Header, TensorInfo, read_header

DATA = Path(__file__).parent / "data"
OFFICIAL = {k: tuple(s) for k, s in json.loads((DATA / "official_manifest.json").read_text()).items()}
TINY = {k: tuple(s) for k, s in json.loads((DATA / "tiny_manifest.json").read_text()).items()}
TINY_METADATA = {
    "sv4d2.variant": "sv4d2",
    "sv4d2.num_head_channels": "16",
    "sv4d2.vector_dims": "32,48,48",
    "sv4d2.clip_head_width": "32",
}
UNET = "model.diffusion_model."


def header(shapes: dict, metadata: dict | None = None, name: str = "sv4d2.safetensors") -> Header:
    return Header(Path(name), {k: TensorInfo("F32", s) for k, s in shapes.items()}, metadata or {}, 0)


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        *(("sv4d2", name) for name in ("sv4d2", "SV4D2_fp16")),
        *(("sv4d2_8views", name) for name in ("sv4d2_8views", "my-8view-model", "sv4d2-8-views")),
    ],
)
def test_official_file_gives_the_official_config_of_its_name(variant, name):
    assert read_config(header(OFFICIAL, name=f"{name}.safetensors")) == OFFICIAL_VARIANTS[variant]


TINY_CONFIG = ModelConfig(
    vector_dims=(32, 48, 48),
    unet=UNetConfig(base=32, head_channels=16, context_dim=48, vector_dim=128),
    vae=VAEConfig(base=32),
    clip=CLIPVisionConfig(width=64, layers=2, head_width=32, mlp_width=256, embed_dim=48),
)


def test_metadata_goes_back_and_forth():
    assert read_config(header(TINY, TINY_METADATA, "x.safetensors")) == TINY_CONFIG
    config = replace(
        TINY_CONFIG,
        variant="sv4d2_8views",
        n_frames=3,
        n_views=2,
        size=64,
        sigma_min=0.01,
        sigma_max=80.5,
        scale_factor=0.3,
        guidance="triangle",
        cfg_min=1.25,
        cfg_max=3.0,
        trained=False,
        unet=replace(TINY_CONFIG.unet, view_mixing="joint_3d"),
    )
    assert read_config(header(TINY, metadata_of(config))) == config


def test_variant_order_is_choice_metadata_name(caplog):
    named = header(OFFICIAL, {"sv4d2.variant": "sv4d2_8views"}, "sv4d2.safetensors")
    assert read_config(named).variant == "sv4d2_8views"
    assert not caplog.records
    assert read_config(named, "sv4d2") == OFFICIAL_VARIANTS["sv4d2"]
    assert "says that it is sv4d2_8views" in caplog.text


def test_choosing_the_other_variant_sets_aside_what_belongs_to_the_stored_one():
    stored = metadata_of(OFFICIAL_VARIANTS["sv4d2_8views"]) | {"sv4d2.size": "512"}
    config = read_config(header(OFFICIAL, stored), "sv4d2")
    assert (config.n_views, config.unet.view_mixing, config.guidance) == (4, "released_3d", "linear")
    assert config.size == 512


@pytest.mark.parametrize(
    ("name", "stored", "chosen"),
    [("model", None, "auto"), ("sv4d2", {"sv4d2.variant": "sv5d"}, "auto"), ("sv4d2", None, "sv5d")],
)
def test_unknown_variant_names_both_choices(name, stored, chosen):
    with pytest.raises(CheckpointError, match="sv4d2 or sv4d2_8views"):
        read_config(header(OFFICIAL, stored, f"{name}.safetensors"), chosen)


def test_two_level_model_of_another_base():
    """A UNet with two levels, three blocks each, no attention at the second."""
    unet = UNetConfig("released_3d", 96, (1, 3), 3, 1, 48, 77, 200, 8)
    shapes = shapes_of(build_networks(replace(TINY_CONFIG, vector_dims=(100, 60, 40), unet=unet)))
    metadata = TINY_METADATA | {"sv4d2.vector_dims": "100,60,40", "sv4d2.num_head_channels": "48"}
    config = read_config(header(shapes, metadata))
    assert config.unet == unet and config.size_multiple == 16


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"sv4d2.n_frames": "many"}, r"sv4d2\.n_frames = 'many' cannot be read"),
        ({"sv4d2.n_frames": "60000"}, "at most 1024 pictures in a window"),
        ({"sv4d2.num_head_channels": "0"}, "from 1 to 65536"),
        ({"sv4d2.vector_dims": "128"}, "three integers"),
        ({"sv4d2.vector_dims": "1,2,3"}, "sum to 6"),
        ({"sv4d2.trained": "maybe"}, "true or false"),
        ({"sv4d2.view_mixing": "stir"}, "released_3d or view or joint_3d; got 'stir'"),
        ({"sv4d2.clip_head_width": "33"}, "no multiple of its head width 33"),
    ],
)
def test_unreadable_metadata_is_named(metadata, words):
    with pytest.raises(CheckpointError, match=words):
        read_config(header(TINY, TINY_METADATA | metadata))


def test_small_model_without_metadata_says_which_keys_it_needs():
    with pytest.raises(CheckpointError, match=r"head width 64.*sv4d2\.num_head_channels"):
        read_config(header(TINY))


def _video_unet(vector_dim: int) -> dict:
    return {
        UNET + "input_blocks.0.0.weight": (320, 8, 3, 3),
        UNET + "label_emb.0.0.weight": (1280, vector_dim),
        UNET + "input_blocks.1.1.time_stack.0.norm1.weight": (320,),
    }


SV4D1 = {k: s for k, s in OFFICIAL.items() if "time_mixer_motion" not in k}
WRONG_FILES = {
    "SVD": _video_unet(768),
    "SV3D_u": _video_unet(256),
    "SV3D_p": _video_unet(1280),
    "SV4D 1": SV4D1,
    "a LoRA": {"lora_unet_input_blocks_1.lora_up.weight": (320, 4)},
    "Stable Diffusion": {UNET + "input_blocks.0.0.weight": (320, 4, 3, 3)},
    "a UNet in diffusers format": {"down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)},
    "a VAE alone": {"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_in.weight": (512, 4, 3, 3)},
    "a CLIP model alone": {"visual.proj": (1280, 1024)},
    "without the prefix": {k.removeprefix(UNET): s for k, s in OFFICIAL.items() if k.startswith(UNET)},
    "another model family": {"double_blocks.0.img_attn.qkv.weight": (9216, 3072)},
    "an unknown kind of model": {"a": (1,), "b": (1,)},
    "without tensors": {},
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_wrong_files_are_named_and_the_needed_one_too(kind):
    with pytest.raises(CheckpointError, match=rf"x\.safetensors is .*{kind}.*sv4d2_8views\.safetensors"):
        read_config(header(WRONG_FILES[kind], name="x.safetensors"))


@pytest.mark.parametrize(("mark", "kind"), [("scene", "a 4D scene"), ("fit", "the state of a fit")])
def test_files_of_our_own_are_named(mark, kind):
    with pytest.raises(CheckpointError, match=rf"x\.safetensors is {kind}, .*sv4d2\.safetensors"):
        read_config(header({"a": (1,)}, {f"sv4d2.{mark}": "{}"}, "x.safetensors"))


def test_unet_alone_names_the_missing_parts():
    unet = {k: s for k, s in OFFICIAL.items() if k.startswith(UNET)}
    with pytest.raises(CheckpointError) as error:
        read_config(header(unet))
    said = ("without 4 of its parts", "CLIP image tower", "of the frames", "of the views", "VAE decoder")
    assert all(words in str(error.value) for words in said)


@pytest.mark.parametrize("key", ["input_blocks.4.0.in_layers.2.weight", "out.2.weight"])
def test_missing_key_that_sizes_come_from(key):
    with pytest.raises(CheckpointError, match=f"lacks {UNET}{key}"):
        read_config(header({k: s for k, s in OFFICIAL.items() if k != UNET + key}))


def test_header_of_a_full_size_file(tmp_path):
    """12 GB described by 400 kB: the tensors are a hole in the file, which nothing may read."""
    rows, end = {}, 0
    for key, shape in OFFICIAL.items():
        size = 4 * torch.Size(shape).numel()
        rows[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(rows).encode()
    path = tmp_path / "sv4d2.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    read = read_header(path)
    assert sum(info.numel for info in read.tensors.values()) == 2_995_213_171
    assert read_config(read) == ModelConfig()


def test_damaged_and_foreign_files(tmp_path):
    good = tmp_path / "good.safetensors"
    save_file({"x": torch.zeros(2, 50), "y": torch.zeros((), dtype=torch.bfloat16)}, good, {"k": "v"})
    read, data = read_header(good), good.read_bytes()
    assert read.tensors == {"x": ("F32", (2, 50)), "y": ("BF16", ())} and read.tensors["x"].numel == 100
    assert read.metadata == {"k": "v"} and read.file_size == len(data)
    torch.save({"x": torch.zeros(100)}, tmp_path / "model.ckpt")
    length = int.from_bytes(data[:8], "little")
    cases = [
        ("pickle", (tmp_path / "model.ckpt").read_bytes()),
        ("a pickle", b"\x80\x02}q\x00." + bytes(100)),
        ("truncated.*Download it again", data[:-7]),
        ("truncated: it ends inside its header", data[:20]),
        ("damaged", data + b"more"),
        ("header cannot be read", data[:9] + b"?" * (length - 1) + data[8 + length :]),
        ("GGUF", b"GGUF" + bytes(100)),
        ("web page", b"<!DOCTYPE html><html>" + bytes(100)),
        ("LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        ("not a safetensors file: it is 300 bytes", bytes(range(100)) * 3),
        ("is empty", b""),
        ("3 bytes", b"abc"),
    ]
    for row in ("3", "[]", '{"dtype":"F32"}', '{"dtype":"F32","shape":[1],"data_offsets":[0,"a"]}'):
        text = f'{{"x":{row}}}'.encode()
        cases.append(("damaged", len(text).to_bytes(8, "little") + text + bytes(4)))
    path = tmp_path / "case.safetensors"
    for words, content in cases:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=words):
            read_header(path)
    with pytest.raises(CheckpointError, match="is a folder"):
        read_header(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nothing\.safetensors.*stabilityai"):
        read_header(tmp_path / "nothing.safetensors")


def test_mutated_checkpoints_load_or_are_refused_in_a_sentence(full_checkpoint):
    assert set(campaign(full_checkpoint, cases=150, seed=0)) == {"loaded", "refused"}
