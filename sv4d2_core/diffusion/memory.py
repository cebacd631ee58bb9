"""Fits a run into a memory budget: estimates of activations, offload of weights, and a choice of both."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from typing import Literal

import torch
from torch import Tensor, nn

from .blocks import SMALLEST_CHUNK, empty_device_cache, part_widths
from .checkpoint import build_networks, load_checkpoint, stored_dtype
from .config import ModelConfig, UNetConfig
from .model import Model
from .speed import keep_in_eight_bits, matrices
from .unet import Stage, UNet

_GIB = 2**30
LARGEST_CHUNK = 512 * 2**20
_CHUNKS = tuple(LARGEST_CHUNK >> i for i in range(6))
# Images per pass of the encoder and the decoder.
_BATCHES = ((8, 4), (4, 2), (2, 1), (1, 1))
# Share of a GPU's memory to plan with. The rest is for the kernels' own buffers and for gaps between blocks.
_GPU_SHARE = 0.9

# Copies of a sequence that the convolutions along it hold: norms, results, copies for the kernels.
_SEQUENCE_COPIES = 4
# Widths per token of a part in an attention block: the feed-forward's hidden layer is 8 of them.
_TOKEN_WIDTHS = 15
# Tensors of the first level's width at full resolution that the autoencoder's halves hold per image.
_IMAGE_TENSORS = {"encoder": 6.4, "decoder": 8.2}
# For everything small: embeddings, inputs, statistics.
_MARGIN = 1.06

log = logging.getLogger(__name__)


def autoencoder_bytes(config: ModelConfig, half: str, images: int, size: int, itemsize: int) -> int:
    """Return the estimated peak of the activations of the ``encoder`` or ``decoder`` at ``size`` pixels."""
    return int(_IMAGE_TENSORS[half] * images * size * size * config.vae.base * itemsize)


def activation_bytes(config: ModelConfig, images: int, pixels: int, itemsize: int, chunk_bytes: int) -> int:
    """Return the estimated peak of the UNet's activations for B * T * V ``images`` of h * w ``pixels``."""
    batch = max(1, images // (config.n_frames * config.n_views))
    sizes = _Sizes(images, batch, config.n_views, pixels, itemsize, chunk_bytes)
    return int(_MARGIN * max(_peaks(config.unet, sizes)))


@dataclass(frozen=True)
class _Sizes:
    images: int
    batch: int
    views: int
    pixels: int
    itemsize: int
    chunk_bytes: int

    def image(self, width: int, level: int) -> int:
        return width * (self.pixels >> 2 * level) * self.itemsize

    def tensor(self, width: int, level: int) -> int:
        return self.images * self.image(width, level)

    def residual(self, width_in: int, width: int, level: int, joined: bool) -> int:
        """Return what a residual block adds; ``joined``: its output takes the place of ``x``."""
        image = self.image(part_widths(width_in, width, joined), level)
        part = max(1, min(self.images, self.chunk_bytes // image))
        widths = (2 if joined else 1) * width_in + 3 * width
        within = part * self.image(widths, level) + self.weights(width_in, width)
        along = _SEQUENCE_COPIES * self.tensor(width, level) // self.batch
        return (0 if joined else self.tensor(width, level)) + max(within, along)

    def enlarged(self, width: int, level: int) -> int:
        """Return what the step up to a level adds: its output, and a part of its input, enlarged."""
        part = min(2 * self.tensor(width, level), max(self.chunk_bytes // 2, 2 * self.image(width, level)))
        return self.tensor(width, level) + part + self.weights(width, width)

    def weights(self, width_in: int, width: int) -> int:
        """Return the copies of a convolution's weights held by kernels that want them in another order."""
        return 2 * 9 * width_in * width * self.itemsize

    def attention(self, width: int, level: int) -> int:
        """Return what an attention block adds: its tokens, and a part's intermediate results."""
        hidden = self.image(8 * width, level)
        # The smallest part of the view block is one frame of all views.
        part = min(max(self.chunk_bytes, self.views * hidden), self.images * hidden)
        return self.tensor(width, level) + part * _TOKEN_WIDTHS // 8


def _peaks(unet: UNetConfig, sizes: _Sizes) -> Iterator[int]:
    """Yield the bytes that are alive at once in each layer, in the order of `UNet.forward`."""
    widths = [(level, unet.base * multiplier) for level, multiplier in enumerate(unet.multipliers)]
    deepest, width = widths[-1][0], unet.base
    skips, skip_widths = [sizes.tensor(width, 0)], [width]
    for level, width_out in widths:
        for _ in range(unet.res_blocks):
            yield sum(skips) + sizes.residual(width, width_out, level, joined=False)
            width, x = width_out, sizes.tensor(width_out, level)
            if level < unet.attention_levels:
                yield sum(skips) + x + sizes.attention(width, level)
            skips.append(x)
            skip_widths.append(width)
        if level < deepest:
            skips.append(sizes.tensor(width, level + 1))
            skip_widths.append(width)
    x = skips[-1]
    yield sum(skips) + x + sizes.attention(width, deepest)
    yield sum(skips) + x + sizes.residual(width, width, deepest, joined=False)
    for level, width_out in reversed(widths):
        for index in range(unet.res_blocks + 1):
            # The skip is alive until it is read, the stage's input until its output, which replaces it.
            yield sum(skips) + x + sizes.residual(width + skip_widths.pop(), width_out, level, joined=True)
            skips.pop()
            held, width = sum(skips) + x, width_out
            if level < unet.attention_levels:
                yield held + sizes.attention(width, level)
            if level > 0 and index == unet.res_blocks:
                yield held + sizes.enlarged(width, level - 1)
                x = sizes.tensor(width, level - 1)


Placement = Literal["resident", "turns", "streamed"]
# The fastest first.
PLACEMENTS: dict[Placement, str] = {
    "resident": "all weights on the device",
    "turns": "the weights of one network at a time on the device",
    "streamed": "the UNet's weights come to the device layer by layer",
}


def layers_of(unet: UNet) -> list[nn.Module]:
    """Return the layers that can come to the device one by one; they hold nearly all weights."""
    return [layer for stage in unet.modules() if isinstance(stage, Stage) for layer in stage]


@contextmanager
def weights_on(device: torch.device, module: nn.Module) -> Iterator[None]:
    """Have the weights of a module on ``device`` inside the block; they have not changed after it."""
    offloaded = [(parameter, parameter.data) for parameter in module.parameters()]
    try:
        for parameter, data in offloaded:
            # Copies of pinned memory run in the device's own order, so the layer waits for its weights.
            parameter.data = data.to(device, non_blocking=True)
        yield
    finally:
        for parameter, data in offloaded:
            parameter.data = data


def place(model: Model, device: torch.device, placement: Placement) -> None:
    """Put a model's weights where ``placement`` says; it computes on ``device``, with the same results."""
    networks = (model.unet, model.clip, model.frame_encoder, model.view_encoder, model.decoder)
    model.loaded = model.unet.loaded = lambda _module: nullcontext()
    if placement == "resident":
        for network in networks:
            network.to(device)
        return
    pinned = device.type == "cuda"
    for parameter in chain.from_iterable(network.parameters() for network in networks):
        parameter.data = parameter.data.cpu()
        pinned = pinned and _pin(parameter)
    model.loaded = load = partial(weights_on, device)
    if placement == "streamed":
        # The few weights that are in no layer stay on the device.
        of_layers = {id(p) for layer in layers_of(model.unet) for p in layer.parameters()}
        for parameter in model.unet.parameters():
            if id(parameter) not in of_layers:
                parameter.data = parameter.data.to(device)
        model.unet.loaded = load
        model.loaded = lambda network: nullcontext() if network is model.unet else load(network)


def _pin(parameter: Tensor) -> bool:
    """Move a parameter to page-locked memory, and return False where the system has no more of it."""
    try:
        parameter.data = parameter.data.pin_memory()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        log.warning("No more page-locked memory (%s): weights wait in plain memory, which is slower.", reason)
        return False
    return True


@dataclass(frozen=True)
class MemoryPlan:
    """How much is worked on at once, and where the weights are."""

    chunk_bytes: int  # bound for a part's intermediate results in the UNet
    encode_batch: int  # images per pass of the autoencoder's halves
    decode_batch: int
    placement: Placement
    estimated_bytes: int  # peak of weights and activations on the device

    def __str__(self) -> str:
        return (
            f"at most about {self.estimated_bytes / 1e9:.1f} GB; {PLACEMENTS[self.placement]}, parts of "
            f"{self.chunk_bytes / 1e9:.2f} GB, {self.encode_batch} images encoded and {self.decode_batch} "
            f"decoded at once"
        )


def plan_memory(
    config: ModelConfig,
    dtype: torch.dtype,
    size: int,  # of the images, pixels
    budget_gb: float,  # of the device, for weights and activations, GiB
    device: torch.device | str = "cpu",
    eight_bits: bool = False,  # in the UNet, by `keep_in_eight_bits`
) -> MemoryPlan:
    """Return the plan that uses a budget best: few moves of weights first, then large parts.

    Raises ValueError where it is too little for the smallest parts, and says what is needed.
    """
    share = _GPU_SHARE if torch.device(device).type == "cuda" else 1
    plans = _plans(config, dtype, size, torch.device(device), eight_bits)
    for plan in plans:
        if plan.estimated_bytes <= int(budget_gb * _GIB * share):
            return plan
    weights = sum(_weight_bytes(config, dtype, eight_bits)[0].values())
    raise ValueError(
        f"Expected at least {plans[-1].estimated_bytes / share / _GIB:.1f} GiB for {config.variant} at "
        f"{size} px (weights {weights / _GIB:.1f} GiB); got a budget of {budget_gb:g} GiB. Use smaller "
        f"pictures, half precision (--dtype), 8-bit weights, or a larger budget (--memory-gb)."
    )


def plan_for_free_memory(
    config: ModelConfig, dtype: torch.dtype, size: int, device: torch.device, eight_bits: bool = False
) -> MemoryPlan | None:
    """Return the plan for a GPU's free memory, at worst the smallest parts; None on other devices."""
    if device.type != "cuda":
        return None
    # What PyTorch keeps for later is free, too.
    empty_device_cache()
    free_gb = torch.cuda.mem_get_info(device)[0] / _GIB
    try:
        return plan_memory(config, dtype, size, free_gb, device, eight_bits)
    except ValueError as error:
        log.warning("Little memory is free. %s Trying the smallest parts.", error)
        return _plans(config, dtype, size, device, eight_bits)[-1]


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
    """Return a checkpoint's model that works within a plan (None: as `load_checkpoint` makes it)."""
    resident = plan is None or plan.placement == "resident"
    model = load_checkpoint(path, variant, dtype, device if resident else "cpu")
    if eight_bits:
        keep_in_eight_bits(model.unet)
    if plan is not None:
        apply_plan(model, plan, device)
    return model


def _plans(
    config: ModelConfig, dtype: torch.dtype, size: int, device: torch.device, eight_bits: bool
) -> list[MemoryPlan]:
    """Return all plans, the fastest first and the one that needs least last."""
    weights, unet_layer = _weight_bytes(config, dtype, eight_bits)
    # Guidance doubles the images.
    images, pixels = 2 * config.n_frames * config.n_views, (size // config.latent_factor) ** 2

    encoders = max(weights[name] for name in ("clip", "frame_encoder", "view_encoder"))
    everything = sum(weights.values())
    # The weights on the device while the UNet, an encoder and the decoder work.
    held: dict[Placement, tuple[int, int, int]] = {
        "resident": (everything, everything, everything),
        "turns": (weights["unet"], encoders, weights["decoder"]),
        "streamed": (unet_layer, encoders, weights["decoder"]),
    }
    decoder_itemsize = stored_dtype("decoder", dtype).itemsize
    placements = tuple(PLACEMENTS) if device.type == "cuda" else ("resident",)
    plans = []
    for placement, chunk, (encode, decode) in product(placements, _CHUNKS, _BATCHES):
        activations = (
            activation_bytes(config, images, pixels, dtype.itemsize, chunk),
            autoencoder_bytes(config, "encoder", encode, size, dtype.itemsize),
            autoencoder_bytes(config, "decoder", decode, size, decoder_itemsize),
        )
        peak = max(map(sum, zip(held[placement], activations, strict=True)))
        plans.append(MemoryPlan(chunk, encode, decode, placement, peak))
    return plans


def _weight_bytes(config: ModelConfig, dtype: torch.dtype, eight_bits: bool) -> tuple[dict[str, int], int]:
    """Return the weights of each network, and of the UNet's largest layer with what is in none."""
    networks = build_networks(config)
    unet = networks["unet"]
    narrow = {id(layer.weight) for layer in matrices(unet)} if eight_bits else set()
    weights = {name: _bytes(network, stored_dtype(name, dtype), narrow) for name, network in networks.items()}
    layers = [_bytes(layer, dtype, narrow) for layer in layers_of(unet)]
    return weights, weights["unet"] - sum(layers) + max(layers)


def _bytes(module: nn.Module, dtype: torch.dtype, narrow: Collection[int]) -> int:
    """Return the bytes of a module's weights; those whose identity is in ``narrow`` take one each."""
    return sum(p.numel() * (1 if id(p) in narrow else dtype.itemsize) for p in module.parameters())
