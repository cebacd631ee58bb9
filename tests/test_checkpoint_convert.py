"""Writing checkpoints: the streamed format, conversion, untrained files, and no half-written targets."""

import errno
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from random_checkpoint import write_random_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sv4d2_core.diffusion.checkpoint import (
    build_networks,
    convert_checkpoint,
    describe_checkpoint,
    load_checkpoint,
    shapes_of,
)
from sv4d2_core.diffusion.config import ModelConfig
from sv4d2_core.diffusion.layout import EXPECTED_UNUSED, STORED_METADATA, read_config
from sv4d2_core.diffusion.safetensors_stream import CheckpointError, read_header, write_safetensors

OFFICIAL = json.loads((Path(__file__).parent / "data/official_manifest.json").read_text())
UNET_KEY = "model.diffusion_model.time_embed.0.weight"
VIEWS_KEY = "conditioner.embedders.4.encoder.quant_conv.bias"

equal = partial(torch.testing.assert_close, rtol=0, atol=0)


@pytest.fixture
def config(training_config) -> ModelConfig:
    return replace(training_config, trained=False)


def assert_equal_weights(a, b) -> None:
    for part in ("unet", "clip", "frame_encoder", "view_encoder", "decoder"):
        equal(getattr(a, part).state_dict(), getattr(b, part).state_dict())


def test_library_reads_what_is_streamed(tmp_path):
    tensors = {
        "odd": torch.randn(3).half(),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "strided": torch.randn(4, 6).t(),
        "brain": torch.randn(5, 1).bfloat16(),
        "ünï": torch.randn(2),
    }
    path = tmp_path / "x.safetensors"
    shapes = {k: (v.dtype, tuple(v.shape)) for k, v in tensors.items()}
    assert write_safetensors(path, shapes, tensors.__getitem__, {"note": "é"}) == path
    equal(load_file(path), tensors)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"note": "é"}
    assert read_header(path).tensors["strided"].shape == (6, 4)


def test_streaming_refuses_another_shape(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match=r"Expected a as torch.float32 \[2\]; got torch.float32 \[3\]"):
        write_safetensors(path, {"a": (torch.float32, (2,))}, lambda key: torch.zeros(3), {})
    assert not list(tmp_path.iterdir())


def test_the_networks_have_the_recorded_shapes_and_nothing_else_is_needed():
    shapes = {key: list(shape) for key, shape in shapes_of(build_networks(ModelConfig())).items()}
    unused = {key: shape for key, shape in OFFICIAL.items() if EXPECTED_UNUSED.match(key)}
    assert shapes.keys().isdisjoint(unused) and shapes | unused == OFFICIAL


def test_random_checkpoint_is_untrained_seeded_and_complete(tmp_path, full_checkpoint, config):
    full = load_file(full_checkpoint)
    assert read_config(read_header(full_checkpoint)) == config
    assert "UNTRAINED" in str(describe_checkpoint(full_checkpoint))
    small = write_random_checkpoint(tmp_path / "small.safetensors", config, seed=7)
    written = load_file(small)
    written.pop(STORED_METADATA)
    assert all(torch.equal(value, full[key]) for key, value in written.items())
    assert_equal_weights(load_checkpoint(small), load_checkpoint(full_checkpoint))
    other = load_file(write_random_checkpoint(tmp_path / "b.safetensors", config, seed=8))
    assert not torch.equal(other[UNET_KEY], full[UNET_KEY])
    norm = full["model.diffusion_model.out.0.weight"]
    assert abs(norm.mean() - 1) < 0.1 and 0.03 < norm.std() < 0.3
    matrix = full["model.diffusion_model.time_embed.2.weight"]
    assert abs(matrix.std() * matrix.shape[1] ** 0.5 - 1) < 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_converted_file_loads_like_its_source(tmp_path, full_checkpoint, config, dtype):
    target = convert_checkpoint(full_checkpoint, tmp_path / "small.safetensors", dtype)
    assert_equal_weights(load_checkpoint(target, dtype=dtype), load_checkpoint(full_checkpoint, dtype=dtype))
    assert read_config(read_header(target)) == config
    assert [p.name for p in tmp_path.iterdir()] == ["small.safetensors"]
    info = describe_checkpoint(target)
    assert not info.unexpected and "not used" not in info.parts
    if dtype != torch.float32:
        assert target.stat().st_size < 0.5 * full_checkpoint.stat().st_size


def test_equal_encoders_are_stored_once_and_different_ones_twice(tmp_path, full_checkpoint):
    target = convert_checkpoint(full_checkpoint, tmp_path / "a.safetensors")
    assert read_header(target).metadata["sv4d2.shared_encoder"] == "true"
    assert VIEWS_KEY not in read_header(target).tensors
    model = load_checkpoint(full_checkpoint)
    assert model.view_encoder is model.frame_encoder
    again = convert_checkpoint(target, tmp_path / "again.safetensors")
    assert_equal_weights(load_checkpoint(again), load_checkpoint(target))

    tensors = load_file(full_checkpoint)
    tensors[VIEWS_KEY] = tensors[VIEWS_KEY] + 1
    other = tmp_path / "other.safetensors"
    save_file(tensors, other, read_header(full_checkpoint).metadata)
    target = convert_checkpoint(other, tmp_path / "b.safetensors")
    assert "sv4d2.shared_encoder" not in read_header(target).metadata
    for model in (load_checkpoint(target, dtype=torch.float16), load_checkpoint(other)):
        assert model.view_encoder is not model.frame_encoder


def test_a_tensor_keeps_the_metadata_that_other_programs_drop(tmp_path, full_checkpoint):
    bare, prefixed = tmp_path / "model.safetensors", tmp_path / "unet.safetensors"
    save_file(load_file(full_checkpoint), bare)
    assert read_config(read_header(bare)) == read_config(read_header(full_checkpoint))
    assert not describe_checkpoint(bare).unexpected
    unet = {k: v for k, v in load_file(full_checkpoint).items() if k.startswith("model.diffusion_model.")}
    save_file({key.removeprefix("model."): tensor for key, tensor in unet.items()}, prefixed)
    assert read_header(prefixed).metadata == read_header(bare).metadata
    # What the header says of us counts alone.
    save_file(load_file(full_checkpoint), bare, {"sv4d2.variant": "sv4d2_8views"})
    assert read_header(bare).metadata == {"sv4d2.variant": "sv4d2_8views"}
    damaged = {**load_file(full_checkpoint), STORED_METADATA: torch.zeros(5, dtype=torch.uint8)}
    save_file(damaged, bare)
    with pytest.raises(CheckpointError, match="in the tensor sv4d2_metadata; got 5 bytes of something else"):
        read_header(bare)


def test_metadata_keeps_the_sources_and_records_the_variant(tmp_path, full_checkpoint):
    renamed = tmp_path / "model.safetensors"
    metadata = {k: v for k, v in read_header(full_checkpoint).metadata.items() if k != "sv4d2.variant"}
    save_file(load_file(full_checkpoint), renamed, metadata | {"modelspec.author": "somebody"})
    with pytest.raises(CheckpointError, match="sv4d2 or sv4d2_8views"):
        convert_checkpoint(renamed, tmp_path / "x.safetensors")
    target = convert_checkpoint(renamed, tmp_path / "x.safetensors", variant="sv4d2_8views")
    written = read_header(target).metadata
    assert written["modelspec.author"] == "somebody"
    assert written["sv4d2.variant"] == "sv4d2_8views"
    assert load_checkpoint(target).config.variant == "sv4d2_8views"


def test_targets_are_protected(tmp_path, full_checkpoint, config):
    target = tmp_path / "x.safetensors"
    target.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="exists already"):
        convert_checkpoint(full_checkpoint, target)
    assert target.read_bytes() == b"precious"
    convert_checkpoint(full_checkpoint, target, overwrite=True)
    assert load_checkpoint(target).config == config
    with pytest.raises(ValueError, match="is the source itself"):
        convert_checkpoint(target, target, overwrite=True)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        convert_checkpoint(full_checkpoint, tmp_path / "nowhere" / "x.safetensors")
    with pytest.raises(FileExistsError, match="is a folder"):
        convert_checkpoint(full_checkpoint, tmp_path)
    with pytest.raises(ValueError, match="got torch.int8"):
        convert_checkpoint(full_checkpoint, tmp_path / "y.safetensors", torch.int8)


def test_values_beyond_half_precision_are_not_written_as_infinity(tmp_path, full_checkpoint):
    tensors = load_file(full_checkpoint)
    tensors[UNET_KEY][0, 0] = 1e5
    large = tmp_path / "large.safetensors"
    save_file(tensors, large, read_header(full_checkpoint).metadata)
    with pytest.raises(CheckpointError, match=r"1e\+05 in .*time_embed.*bfloat16"):
        convert_checkpoint(large, tmp_path / "x.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["large.safetensors"]
    convert_checkpoint(large, tmp_path / "x.safetensors", torch.bfloat16)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_interruption_and_a_full_disk_leave_the_old_target(tmp_path, error):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")

    def read(key: str) -> torch.Tensor:
        if key == "b":
            raise error
        return torch.zeros(1000)

    shapes = {key: (torch.float32, (1000,)) for key in "ab"}
    said = r"MB of space in .*x.safetensors; the disk.*Nothing was kept there" if error.args else None
    with pytest.raises(type(error), match=said):
        write_safetensors(path, shapes, read, {}, overwrite=True)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x.safetensors", b"old")]
