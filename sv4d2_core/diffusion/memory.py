"""Chooses how much work is done at once and where weights wait, so that a run fits a memory budget."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

from .activations import activation_bytes, decoder_bytes, encoder_bytes
from .checkpoint import build_networks, load_checkpoint, stored_dtype
from .config import ModelConfig
from .eight_bits import keep_in_eight_bits, matrices
from .model import Model
from .offload import Placement, layers_of, place
from .second_try import SMALLEST_CHUNK

_GIB = 2**30
LARGEST_CHUNK = 512 * 2**20
_CHUNKS = tuple(LARGEST_CHUNK >> i for i in range(6))
# Images per pass of the encoder and the decoder.
_BATCHES = ((8, 4), (4, 2), (2, 1), (1, 1))
# Share of a GPU's memory to plan with. The rest is for the kernels' own buffers and for gaps between blocks.
_GPU_SHARE = 0.9
_PLACES: dict[Placement, str] = {
    "resident": "all weights on the device",
    "turns": "the weights of one network at a time on the device",
    "streamed": "the UNet's weights come to the device layer by layer",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryPlan:
    """How much is worked on at once, and where the weights are.

    Args:
        chunk_bytes: bound for a part's intermediate results in the UNet.
        encode_batch, decode_batch: images per pass of the autoencoder.
        placement: which weights are on the device.
        estimated_bytes: estimated peak of weights and activations on the device.
    """

    chunk_bytes: int
    encode_batch: int
    decode_batch: int
    placement: Placement
    estimated_bytes: int

    def __str__(self) -> str:
        """Return the plan as one line for the user."""
        return (
            f"at most about {self.estimated_bytes / 1e9:.1f} GB; {_PLACES[self.placement]}, parts of "
            f"{self.chunk_bytes / 1e9:.2f} GB, {self.encode_batch} images encoded and {self.decode_batch} "
            f"decoded at once"
        )


@dataclass(frozen=True)
class _Needs:
    """What a run needs on the device for each kind of work.

    Args:
        weights: bytes of each network's weights.
        layer: bytes of the UNet's largest layer and of what is in none.
    """

    config: ModelConfig
    dtype: torch.dtype
    size: int
    weights: dict[str, int]
    layer: int

    def unet(self, chunk_bytes: int) -> int:
        pixels = (self.size // self.config.latent_factor) ** 2
        # Guidance doubles the images.
        images = 2 * self.config.n_frames * self.config.n_views
        return activation_bytes(self.config, images, pixels, self.dtype.itemsize, chunk_bytes)

    def encode(self, images: int) -> int:
        return encoder_bytes(self.config, images, self.size, self.dtype.itemsize)

    def decode(self, images: int) -> int:
        return decoder_bytes(self.config, images, self.size, stored_dtype("decoder", self.dtype).itemsize)

    def present(self, placement: Placement, *networks: str) -> int:
        """Return the weights on the device while ``networks`` work."""
        if placement == "resident":
            return sum(self.weights.values())
        streamed = placement == "streamed" and "unet" in networks
        return self.layer if streamed else max(self.weights[name] for name in networks)


def weight_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return the bytes of all weights once they are loaded in ``dtype``."""
    return sum(_weights(build_networks(config), dtype).values())


def plan_memory(
    config: ModelConfig,
    dtype: torch.dtype,
    size: int,
    budget_gb: float,
    device: torch.device | str = "cpu",
    eight_bits: bool = False,
) -> MemoryPlan:
    """Return the plan that uses a budget best: few moves of weights first, then large parts.

    Args:
        config: sizes of the model.
        dtype: of weights and activations.
        size: image size, pixels.
        budget_gb: memory of the device for weights and activations, GiB.
        device: where the work is done; of a GPU's work, weights can wait in main memory.
        eight_bits: the UNet's weights are kept in 8 bits (`keep_in_eight_bits`).

    Raises:
        ValueError: the budget is too small for even the smallest parts; says how much is needed.
    """
    needs, device = _needs(config, dtype, size, eight_bits), torch.device(device)
    share = _GPU_SHARE if device.type == "cuda" else 1
    for placement in _placements(device):
        plan = _fitting(needs, placement, int(budget_gb * _GIB * share))
        if plan is not None:
            return plan
    needed = _smallest(needs, device).estimated_bytes / share
    raise ValueError(
        f"Expected at least {needed / _GIB:.1f} GiB for {config.variant} at {size} px (weights "
        f"{sum(needs.weights.values()) / _GIB:.1f} GiB); got a budget of {budget_gb:g} GiB. Use a smaller "
        f"--size, a half precision --dtype, --fp8-weights, or a larger --memory-gb."
    )


def plan_for_free_memory(
    config: ModelConfig, dtype: torch.dtype, size: int, device: torch.device, eight_bits: bool = False
) -> MemoryPlan | None:
    """Return the plan for what is free on a GPU now, before the weights are loaded; None on other devices.

    Where even the smallest parts are estimated not to fit, they are tried all the same.
    """
    if device.type != "cuda":
        return None
    free_gb = torch.cuda.mem_get_info(device)[0] / _GIB
    try:
        return plan_memory(config, dtype, size, free_gb, device, eight_bits)
    except ValueError as error:
        log.warning("Little memory is free. %s Trying the smallest parts.", error)
        return _smallest(_needs(config, dtype, size, eight_bits), device)


def chunk_for_card(total_bytes: int) -> int:
    """Return the bound of a part's intermediate results that suits a card where a host decides the rest."""
    return min(LARGEST_CHUNK, max(SMALLEST_CHUNK, total_bytes // 64))


def apply_plan(model: Model, plan: MemoryPlan, device: torch.device | str = "cpu") -> None:
    """Make a model work within a plan on a device, its weights where the plan says, and log that."""
    model.unet.chunk_bytes = plan.chunk_bytes
    model.encode_batch = plan.encode_batch
    model.decode_batch = plan.decode_batch
    place(model, torch.device(device), plan.placement)
    log.info("Memory plan: %s.", plan)


def load_within(
    path: str | os.PathLike[str],
    variant: str,
    dtype: torch.dtype,
    device: torch.device,
    plan: MemoryPlan | None,
    eight_bits: bool = False,
) -> Model:
    """Return a checkpoint's model that works within a plan (None: as `load_checkpoint` makes it).

    With ``eight_bits`` the UNet's weights are kept in 8 bits.

    Raises:
        What `load_checkpoint` raises.
    """
    resident = plan is None or plan.placement == "resident"
    model = load_checkpoint(path, variant, dtype, device if resident else "cpu")
    if eight_bits:
        keep_in_eight_bits(model.unet)
    if plan is not None:
        apply_plan(model, plan, device)
    return model


def _placements(device: torch.device) -> tuple[Placement, ...]:
    """Return where weights can be, the fastest first."""
    return ("resident", "turns", "streamed") if device.type == "cuda" else ("resident",)


def _needs(config: ModelConfig, dtype: torch.dtype, size: int, eight_bits: bool) -> _Needs:
    networks = build_networks(config)
    unet = networks["unet"]
    narrow = {id(layer.weight) for layer in matrices(unet)} if eight_bits else set()
    weights = {**_weights(networks, dtype), "unet": _bytes(unet, dtype, narrow)}
    layers = [_bytes(layer, dtype, narrow) for layer in layers_of(unet)]
    return _Needs(config, dtype, size, weights, weights["unet"] - sum(layers) + max(layers))


def _weights(networks: dict[str, nn.Module], dtype: torch.dtype) -> dict[str, int]:
    return {name: _bytes(network, stored_dtype(name, dtype)) for name, network in networks.items()}


def _bytes(module: nn.Module, dtype: torch.dtype, narrow: Collection[int] = ()) -> int:
    """Return the bytes of a module's weights; those whose identity is in ``narrow`` take one each."""
    return sum(p.numel() * (1 if id(p) in narrow else dtype.itemsize) for p in module.parameters())


def _peak(needs: _Needs, placement: Placement, chunk: int, encode_batch: int, decode_batch: int) -> int:
    return max(
        needs.present(placement, "unet") + needs.unet(chunk),
        needs.present(placement, "clip", "frame_encoder", "view_encoder") + needs.encode(encode_batch),
        needs.present(placement, "decoder") + needs.decode(decode_batch),
    )


def _plan(needs: _Needs, placement: Placement, chunk: int, encode: int, decode: int) -> MemoryPlan:
    return MemoryPlan(chunk, encode, decode, placement, _peak(needs, placement, chunk, encode, decode))


def _smallest(needs: _Needs, device: torch.device) -> MemoryPlan:
    return _plan(needs, _placements(device)[-1], SMALLEST_CHUNK, 1, 1)


def _fitting(needs: _Needs, placement: Placement, budget: int) -> MemoryPlan | None:
    """Return the plan with the largest parts and batches that fit, or None."""
    plans = (
        _plan(needs, placement, chunk, encode, decode) for chunk in _CHUNKS for encode, decode in _BATCHES
    )
    return next((plan for plan in plans if plan.estimated_bytes <= budget), None)
