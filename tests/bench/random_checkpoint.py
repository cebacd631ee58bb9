"""Checkpoints of random weights, of any sizes."""

import hashlib
import math
import os
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sv4d2_core.diffusion.checkpoint import build_networks, shapes_of, write_checkpoint_file
from sv4d2_core.diffusion.config import ModelConfig


def write_random_checkpoint(
    path: str | os.PathLike[str], config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """Write a checkpoint of random weights, each from ``seed`` and its key alone, marked as untrained."""
    networks = build_networks(config)
    del networks["view_encoder"]
    tensors = {key: (dtype, shape) for key, shape in shapes_of(networks).items()}

    def read(key: str) -> Tensor:
        return _random_weight(seed, key, tensors[key][1]).to(dtype)

    return write_checkpoint_file(path, tensors, read, replace(config, trained=False), True, {})


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
