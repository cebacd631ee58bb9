"""Loads a CLIP image tower alone: out of an SV4D 2.0 checkpoint, an OpenCLIP or a CLIP vision file."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .checkpoint import check_tensors, open_tensors
from .clip_vision import CLIPVision
from .config import CLIPVisionConfig
from .safetensors_stream import CheckpointError, Header, read_header
from .sizes import read_clip

CLIP_HELP = (
    "Give an SV4D 2.0 checkpoint (its image tower is used), an OpenCLIP file, or a CLIP vision file such as "
    "those in ComfyUI's models/clip_vision, as safetensors."
)

# Widths of heads that are not 64: ViT-H and ViT-bigG.
_HEAD_WIDTHS = {1280: 80, 1664: 104}
# Up to this width the towers in CLIP vision files are OpenAI's, whose activation is a quick GELU.
_WIDEST_OPENAI = 1024
_IN_PROJECTION = "transformer.resblocks.0.attn.in_proj_weight"
_VISION, _PROJECTION = "vision_model.", "visual_projection.weight"
_CLASS, _LAYERS = _VISION + "embeddings.class_embedding", _VISION + "encoder.layers."

# Our names, which are OpenCLIP's, and those in CLIP vision files.
_NAMES = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_LAYER_NAMES = {
    name.format(kind): tuple(other.format(kind) for other in others)
    for kind in ("weight", "bias")
    for name, others in {
        "ln_1.{}": ("layer_norm1.{}",),
        "ln_2.{}": ("layer_norm2.{}",),
        "attn.in_proj_{}": ("self_attn.q_proj.{}", "self_attn.k_proj.{}", "self_attn.v_proj.{}"),
        "attn.out_proj.{}": ("self_attn.out_proj.{}",),
        "mlp.c_fc.{}": ("mlp.fc1.{}",),
        "mlp.c_proj.{}": ("mlp.fc2.{}",),
    }.items()
}


def load_clip_vision(
    path: str | os.PathLike[str], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> CLIPVision:
    """Return the image tower of a file, frozen and in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file holds no CLIP image tower, or not all of it.
    """
    stored = read_header(path)
    sources = _sources(stored)
    header = _in_our_names(stored, sources)
    width = header.tensors["conv1.weight"].shape[0]
    try:
        usual = CLIPVisionConfig(head_width=_HEAD_WIDTHS.get(width, 64))
        metadata = {key.removeprefix("sv4d2."): value for key, value in stored.metadata.items()}
        config = read_clip(header, "", metadata, usual)
        quick_gelu = _CLASS in stored.tensors and width <= _WIDEST_OPENAI
        tower = CLIPVision(replace(config, quick_gelu=quick_gelu), device="meta")
        check_tensors(header, {key: tuple(tensor.shape) for key, tensor in tower.state_dict().items()})
    except ValueError as error:
        raise CheckpointError(f"{stored.path.name} is no complete CLIP image tower: {error}") from error
    with open_tensors(stored) as file:
        tensors = {key: _joined(file, names) for key, names in sources.items() if key in tower.state_dict()}
    state = {key: tensor.to(device, dtype, copy=True) for key, tensor in tensors.items()}
    tower.load_state_dict(state, strict=True, assign=True)
    return tower.requires_grad_(False).eval()


def _sources(header: Header) -> dict[str, tuple[str, ...]]:
    """Return from which of the file's tensors each of the tower's is made."""
    if _CLASS in header.tensors:
        layers = {m[1] for key in header.tensors if (m := re.match(rf"{_LAYERS}(\d+)\.", key))}
        names = {ours: (_VISION + theirs,) for ours, theirs in _NAMES.items()}
        for n in layers:
            names |= {
                f"transformer.resblocks.{n}.{ours}": tuple(f"{_LAYERS}{n}.{name}" for name in theirs)
                for ours, theirs in _LAYER_NAMES.items()
            }
        return {**names, "proj": (_PROJECTION,)}
    found = next((key for key in header.tensors if key.endswith(_IN_PROJECTION)), "")
    prefix = found.removesuffix(_IN_PROJECTION)
    if not found or prefix + "conv1.weight" not in header.tensors:
        raise CheckpointError(f"{header.path.name} holds no CLIP image tower. {CLIP_HELP}")
    return {key.removeprefix(prefix): (key,) for key in header.tensors if key.startswith(prefix)}


def _in_our_names(header: Header, sources: dict[str, tuple[str, ...]]) -> Header:
    """Return what the file would say of itself if its tensors were called and joined as the tower's are."""
    tensors = {}
    for key, names in sources.items():
        parts = [header.tensors[name] for name in names if name in header.tensors]
        if len(parts) < len(names) or not parts[0].shape:
            raise CheckpointError(f"{header.path.name} lacks {', '.join(names)}. {CLIP_HELP}")
        rows, *rest = parts[0].shape
        shape = (rows * len(parts), *rest)
        tensors[key] = parts[0]._replace(shape=shape[::-1] if names == (_PROJECTION,) else shape)
    return replace(header, tensors=tensors)


def _joined(file: Any, names: tuple[str, ...]) -> Tensor:
    tensor = torch.cat([file.get_tensor(name) for name in names])
    return tensor.T if names == (_PROJECTION,) else tensor
