"""Writes a model that is being trained as a checkpoint in the official layout."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..diffusion.layout import PARTS, SHARED_ENCODER, STORED_METADATA, metadata_of
from ..diffusion.model import Model
from ..diffusion.safetensors_stream import metadata_tensor, write_safetensors


def write_checkpoint(path: Path, model: Model, dtype: torch.dtype, notes: dict[str, str]) -> Path:
    """Write all networks of a model in ``dtype`` and return the path; `load_checkpoint` reads it.

    Args:
        path: the file; replaced when the new one is complete.
        model: what to write; one encoder that serves frames and views is stored once.
        dtype: float32, float16 or bfloat16.
        notes: further metadata, such as how the model was trained.
    """
    shared = model.view_encoder is model.frame_encoder
    sizes = metadata_of(model.config)
    if shared:
        sizes[SHARED_ENCODER] = "true"
    metadata = {**sizes, **notes, "format": "pt"}
    weights: dict[str, Tensor] = {
        part.prefix + key: tensor
        for part in PARTS
        if not (shared and part.name == "view_encoder")
        for key, tensor in getattr(model, part.name).state_dict().items()
    }
    kinds = {key: (dtype, tuple(tensor.shape)) for key, tensor in weights.items()}
    weights[STORED_METADATA] = kept = metadata_tensor(sizes)
    kinds[STORED_METADATA] = (kept.dtype, tuple(kept.shape))
    return write_safetensors(
        path, kinds, lambda key: weights[key].detach().cpu().to(kinds[key][0]), metadata, overwrite=True
    )
