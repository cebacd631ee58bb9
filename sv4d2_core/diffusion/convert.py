"""Writes checkpoints in the official layout: smaller copies of a file, and untrained ones of any size."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import build_networks, open_checkpoint, shapes_of
from .config import ModelConfig
from .layout import PREFIXES, SHARED_ENCODER, STORED_METADATA, metadata_of
from .safetensors_stream import DTYPE_NAMES, CheckpointError, metadata_tensor, write_safetensors

_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def convert_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    dtype: torch.dtype = torch.float16,
    variant: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Write a copy that holds only what inference needs, in ``dtype``, and return its path.

    The layout and the keys stay official. Left out are the parts that nothing reads, and the views' VAE
    encoder where it equals the frames'. The VAE decoder keeps its dtype, so that loading the copy gives
    the same weights as loading the source in ``dtype``. One tensor at a time is in memory.

    Raises:
        CheckpointError: as `load_checkpoint`, and values beyond the range of ``dtype``.
        FileExistsError, OSError: as `write_safetensors`.
        ValueError: a dtype that is not float32, float16 or bfloat16, or a target that is the source.
    """
    source, target = Path(source), Path(target)
    if dtype not in DTYPE_NAMES:
        raise ValueError(
            f"Expected dtype float16, bfloat16 or float32; got {dtype}. Choose one of the three."
        )
    with open_checkpoint(source, variant) as (header, config, networks, file):
        if target.exists() and target.samefile(source):
            raise ValueError(f"The target {target} is the source itself. Give the copy another name.")
        tensors = {}
        for key, shape in shapes_of(networks).items():
            kept = key.startswith(PREFIXES["decoder"])
            tensors[key] = (_DTYPES[header.tensors[key].dtype] if kept else dtype, shape)
        shared = "view_encoder" not in networks

        def read(key: str) -> Tensor:
            tensor = file.get_tensor(key)
            narrowed = tensor.to(tensors[key][0])
            if not narrowed.isfinite().all() and tensor.isfinite().all():
                raise CheckpointError(
                    f"{source.name} holds values up to {tensor.abs().max():.3g} in {key}, beyond the range "
                    f"of {dtype}. Convert to bfloat16 instead."
                )
            return narrowed

        return write_checkpoint_file(target, tensors, read, config, shared, header.metadata, overwrite)


def write_random_checkpoint(
    path: str | os.PathLike[str],
    config: ModelConfig,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> Path:
    """Write a complete checkpoint of random, untrained weights, marked as such, and return its path.

    The same config, with ``trained`` False, is read back. Every tensor depends on ``seed`` and its key alone.
    Raises what `write_safetensors` raises.
    """
    networks = build_networks(config)
    del networks["view_encoder"]
    tensors = {key: (dtype, shape) for key, shape in shapes_of(networks).items()}

    def read(key: str) -> Tensor:
        return _random_weight(seed, key, tensors[key][1]).to(dtype)

    return write_checkpoint_file(path, tensors, read, replace(config, trained=False), True, {}, overwrite)


def write_checkpoint_file(
    path: str | os.PathLike[str],
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    read: Callable[[str], Tensor],
    config: ModelConfig,
    shared_encoder: bool,
    notes: Mapping[str, str],
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint (`write_safetensors`) with its metadata, as strings and once more as a tensor.

    ``shared_encoder``: one VAE encoder serves frames and views. ``notes``: further metadata strings.
    """
    sizes = metadata_of(config) | ({SHARED_ENCODER: "true"} if shared_encoder else {})
    others = {key: value for key, value in notes.items() if key != SHARED_ENCODER}
    stored = metadata_tensor(sizes)
    tensors = {**tensors, STORED_METADATA: (stored.dtype, tuple(stored.shape))}
    return write_safetensors(
        path,
        tensors,
        lambda key: stored if key == STORED_METADATA else read(key),
        {**others, **sizes, "format": "pt"},
        overwrite,
    )


def _random_weight(seed: int, key: str, shape: tuple[int, ...]) -> Tensor:
    """Return weights that keep activations of ordinary size: unit gain, norms near 1, small biases."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    normal = torch.randn(shape, generator=generator)
    if key.endswith("mix_factor"):
        return normal
    if len(shape) >= 2:
        return normal.mul_(math.prod(shape[1:]) ** -0.5)
    if len(shape) == 1 and key.endswith(".weight"):
        return normal.mul_(0.1).add_(1.0)
    return normal.mul_(0.1)
