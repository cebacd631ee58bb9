"""Weights that were lost on the way, and names that training leaves in a file."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from sv4d2_core.cameras import Cameras
from sv4d2_core.diffusion.checkpoint import convert_checkpoint, describe_checkpoint, load_checkpoint
from sv4d2_core.diffusion.novel_views import sample_views
from sv4d2_core.shipped import TINY_MODEL
from sv4d2_core.stored import read_tensors, write_tensors


def zeroed(path, target, start, stop=1.0):
    """Write a copy whose bytes of the data from one share to another are zero."""
    content = bytearray(path.read_bytes())
    data = 8 + int.from_bytes(content[:8], "little")
    first, last = (data + round(share * (len(content) - data)) for share in (start, stop))
    content[first:last] = bytes(last - first)
    target.write_bytes(content)
    return target


@pytest.mark.parametrize("share", [(0.5, 1.0), (0.9, 1.0), (0.4, 0.6), (0.0, 0.3)])
def test_runs_of_zeros_are_refused(tmp_path, share):
    path = zeroed(TINY_MODEL, tmp_path / "sv4d2.safetensors", *share)
    info = describe_checkpoint(path)
    assert "damaged" in info.problem and "only zeros" in info.problem and "Ready" not in str(info)
    for read in (load_checkpoint, lambda file: convert_checkpoint(file, tmp_path / "copy.safetensors")):
        with pytest.raises(ValueError, match=r"is damaged: \d+ of \d+ weights hold only zeros"):
            read(path)


def test_layers_that_start_at_zero_may_be_zero(tmp_path):
    tensors = load_file(TINY_MODEL)
    for key, tensor in tensors.items():
        if key.endswith((".bias", "proj_out.weight", "out_layers.3.weight")):
            tensor.zero_()
    # A single matrix that somebody switched off is no damage either.
    next(tensor for key, tensor in tensors.items() if key.endswith("attn1.to_v.weight")).zero_()
    path = tmp_path / "sv4d2.safetensors"
    save_file(tensors, path)
    assert not describe_checkpoint(path).problem


@pytest.mark.parametrize("wrapped", ["module.{}", "_orig_mod.{}", "module._orig_mod.{}", "inside"])
def test_names_of_wrappers_are_understood(tmp_path, wrapped):
    def named(key):
        if wrapped == "inside":
            return key.replace("model.diffusion_model.", "model.diffusion_model._orig_mod.")
        return wrapped.format(key)

    tensors = load_file(TINY_MODEL)
    path = tmp_path / "sv4d2.safetensors"
    save_file({named(key): tensor for key, tensor in tensors.items()}, path)
    assert not describe_checkpoint(path).problem
    model, expected = load_checkpoint(path), load_checkpoint(TINY_MODEL)
    assert model.config == expected.config
    for key, tensor in expected.unet.state_dict().items():
        assert torch.equal(model.unet.state_dict()[key], tensor)
    assert not describe_checkpoint(convert_checkpoint(path, tmp_path / "copy.safetensors")).problem


def test_a_lora_of_zeros_is_named(tmp_path):
    factors = {"a.lora_down.weight": torch.ones(4, 8), "a.lora_up.weight": torch.zeros(8, 4)}
    save_file(factors, tmp_path / "fresh.safetensors")
    assert "damaged" not in describe_checkpoint(tmp_path / "fresh.safetensors").problem
    factors["a.lora_down.weight"] = torch.zeros(4, 8)
    save_file(factors, tmp_path / "lost.safetensors")
    said = describe_checkpoint(tmp_path / "lost.safetensors").problem
    assert "a LoRA" in said and "damaged: 1 of 1" in said


@pytest.mark.parametrize("share", [(0.5, 1.0), (0.99, 1.0)])
def test_scenes_and_states_are_refused_where_bytes_are_lost(tmp_path, share):
    tensors = {
        "means": torch.randn(50, 3),
        "count": torch.tensor(3),
        "flags": torch.ones(7, dtype=torch.bool),
    }
    write_tensors(tmp_path / "scene.safetensors", "scene", tensors, {"a": 1})
    read, header = read_tensors(tmp_path / "scene.safetensors", "scene")
    assert header == {"a": 1} and all(torch.equal(read[key], tensors[key]) for key in tensors)
    lost = zeroed(tmp_path / "scene.safetensors", tmp_path / "lost.safetensors", *share)
    with pytest.raises(ValueError, match=r"lost\.safetensors is damaged .*checksum differs"):
        read_tensors(lost, "scene")
    save_file(tensors, tmp_path / "early.safetensors", metadata={"scene": json.dumps({"a": 1})})
    assert read_tensors(tmp_path / "early.safetensors", "scene")[1] == {"a": 1}


def test_flat_pictures_are_said(caplog):
    model = load_checkpoint(TINY_MODEL)
    size, cameras = 64, Cameras.from_lists(model.config.n_views, None, None)
    clip = torch.ones(model.config.n_frames, size, size, 3)
    clip[:, 16:48, 16:48] = 0.3
    with caplog.at_level(logging.WARNING):
        sample_views(model, clip, cameras, steps=1)
        assert "flat" not in caplog.text
        with torch.no_grad():
            for weight in model.decoder.parameters():
                weight.zero_()
        sample_views(model, clip, cameras, steps=1)
    assert "sampled pictures are flat" in caplog.text
