"""Chooses how much work is done at once, so that a run fits a memory budget."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .checkpoint import build_networks, stored_dtype
from .config import ModelConfig
from .model import Model

_MIB = 2**20
_GIB = 2**30
_SMALLEST_CHUNK = 16 * _MIB
_LARGEST_CHUNK = 512 * _MIB
# A part's intermediate results take about this many times its widest one, which `chunk_bytes` bounds.
_CHUNK_OVERHEAD = 3
# Images of the first level's width that exist whole at the peak: skips, inputs and outputs of a block.
_WHOLE_IMAGES = 11
# The same for one image in the autoencoder, in units of its first level's width at full resolution.
_VAE_IMAGES = 8


@dataclass(frozen=True)
class MemoryPlan:
    """How much is worked on at once.

    Args:
        chunk_bytes: bound for a part's intermediate results in the UNet.
        encode_batch, decode_batch: images per pass of the autoencoder.
        estimated_bytes: estimated peak of weights and activations.
    """

    chunk_bytes: int
    encode_batch: int
    decode_batch: int
    estimated_bytes: int


def weight_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return the bytes of all weights once they are loaded in ``dtype``."""
    return sum(
        parameter.numel() * stored_dtype(name, dtype).itemsize
        for name, network in build_networks(config).items()
        for parameter in network.parameters()
    )


def activation_bytes(
    config: ModelConfig, images: int, pixels: int, itemsize: int, chunk_bytes: int = _LARGEST_CHUNK
) -> int:
    """Return the estimated peak of the UNet's activations in one forward pass.

    Args:
        config: sizes of the model.
        images: latents in the pass, B * T * V.
        pixels: h * w of a latent.
        itemsize: bytes per number.
        chunk_bytes: bound for a part's intermediate results (`UNet.chunk_bytes`).
    """
    whole = _whole_bytes(config, images, pixels, itemsize)
    # The smallest part of the view block is one frame of all views, the widest result its hidden layer.
    frame = config.n_views * pixels * 8 * config.unet.base * itemsize
    return whole + _CHUNK_OVERHEAD * max(chunk_bytes, frame)


def _whole_bytes(config: ModelConfig, images: int, pixels: int, itemsize: int) -> int:
    """Return the bytes of what must exist whole at the peak."""
    return _WHOLE_IMAGES * images * pixels * config.unet.base * itemsize


def plan_memory(config: ModelConfig, dtype: torch.dtype, size: int, budget_gb: float) -> MemoryPlan:
    """Return the plan that uses a budget best.

    Args:
        config: sizes of the model.
        dtype: of weights and activations.
        size: image size, pixels.
        budget_gb: memory for weights and activations, GiB.

    Raises:
        ValueError: the budget is too small for even the smallest parts; says how much is needed.
    """
    weights = weight_bytes(config, dtype)
    pixels = (size // config.latent_factor) ** 2
    images = 2 * config.n_frames * config.n_views

    def unet(chunk: int) -> int:
        return activation_bytes(config, images, pixels, dtype.itemsize, chunk)

    # The decoder runs in float32.
    per_image = _VAE_IMAGES * size * size * config.vae.base * 4
    needed = weights + max(unet(_SMALLEST_CHUNK), per_image)
    budget = int(budget_gb * _GIB)
    if needed > budget:
        raise ValueError(
            f"Expected at least {needed / _GIB:.1f} GiB for {config.variant} at {size} px (weights "
            f"{weights / _GIB:.1f} GiB); got a budget of {budget_gb:g} GiB. Use a smaller --size, a half "
            f"precision --dtype, or a larger --memory-gb."
        )
    whole = _whole_bytes(config, images, pixels, dtype.itemsize)
    chunk = min(_LARGEST_CHUNK, (budget - weights - whole) // _CHUNK_OVERHEAD)
    batch = max(1, min(8, (budget - weights) // per_image))
    peak = weights + max(unet(chunk), batch * per_image)
    return MemoryPlan(chunk, batch, min(4, batch), peak)


def apply_plan(model: Model, plan: MemoryPlan) -> None:
    """Make a model work within a plan."""
    model.unet.chunk_bytes = plan.chunk_bytes
    model.encode_batch = plan.encode_batch
    model.decode_batch = plan.decode_batch
