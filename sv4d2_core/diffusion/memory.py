"""Fits a run into a memory budget: estimates of activations, offload of weights, and a choice of both."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, product
from typing import Literal

import torch
from torch import Tensor, nn

from .blocks import SMALLEST_CHUNK, empty_device_cache, part_widths
from .checkpoint import build_networks, load_checkpoint, stored_dtype
from .config import ModelConfig, UNetConfig
from .model import Model
from .speed import keep_in_eight_bits, matrices
from .unet import CPU_TOKENS, Stage, UNet

_GIB = 2**30
LARGEST_CHUNK = 4 * _GIB
_CHUNKS = tuple(LARGEST_CHUNK >> i for i in range(9))
# Images per pass of the encoder and the decoder.
_BATCHES = ((32, 32), (16, 16), (8, 8), (8, 4), (4, 2), (2, 1), (1, 1))
# Latent pixels of a batch beyond which it does not pay to grow: at the autoencoder's lowest level, 512 wide,
# they are 8 blocks of 128 x 128 results for each of the 132 multiprocessors of a large card.
_BATCH_PIXELS = 2**15
# Of a GPU's memory: the share to plan with, as gaps between blocks take some, and the bytes of it that are
# left to the workspaces of cuDNN and cuBLAS, beside `_IMAGE_COPIES`. These are allowances, not measured; with
# less cuDNN takes kernels that need less.
_GPU_SHARE, _WORKSPACE = 0.9, 2**27
# Apple's GPUs hold attention's scores and their softmax, float32, and fail at more than 2**32 bytes of them.
_SCORE_BYTES, _SCORES = 8, 2**30

# Copies of a sequence that the convolutions along it hold: norms, results, copies for the kernels.
_SEQUENCE_COPIES = 4
# Widths per token of a part in an attention block: the feed-forward's hidden layer is 8 of them.
_TOKEN_WIDTHS = 16
# Tensors of the first level's width at full resolution that the autoencoder's halves hold per image.
_IMAGE_TENSORS = {"encoder": 5.2, "decoder": 6.2}
# The same for copies that kernels of convolutions make to have another order: a CPU's, and maybe cuDNN's.
_IMAGE_COPIES = {"encoder": 1.2, "decoder": 2.0}
# For everything small: embeddings, inputs, statistics.
_MARGIN = 1.06

log = logging.getLogger(__name__)


def autoencoder_bytes(
    config: ModelConfig, half: str, images: int, size: int, itemsize: int, copies: bool = True
) -> int:
    """Return the estimated peak of the activations of the ``encoder`` or ``decoder`` at ``size`` pixels.

    ``copies``: with those that kernels make.
    """
    tensors = _IMAGE_TENSORS[half] + copies * _IMAGE_COPIES[half]
    return int(tensors * images * size * size * config.vae.base * itemsize)


def activation_bytes(
    config: ModelConfig, images: int, pixels: int, itemsize: int, chunk_bytes: int, score_bytes: int = 0
) -> int:
    """Return the estimated peak of the UNet's activations for B * T * V ``images`` of h * w ``pixels``.

    ``score_bytes`` are those of each of attention's scores; 0: they are never in memory.
    """
    batch = max(1, images // (config.n_frames * config.n_views))
    sizes = _Sizes(images, batch, config.n_views, pixels, itemsize, chunk_bytes, score_bytes)
    return int(_MARGIN * max(_peaks(config.unet, sizes)))


@dataclass(frozen=True)
class _Sizes:
    images: int
    batch: int
    views: int
    pixels: int
    itemsize: int
    chunk_bytes: int
    score_bytes: int

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

    def attention(self, width: int, level: int, heads: int) -> int:
        """Return what an attention block adds: its tokens, and a part's intermediate results."""
        hidden = self.image(8 * width, level)
        # The smallest part of the view block is one frame of all views.
        part = min(max(self.chunk_bytes, self.views * hidden), self.images * hidden)
        images = max(1, min(self.images, self.chunk_bytes // hidden))
        scores = images * heads * (self.pixels >> 2 * level) ** 2 * self.score_bytes
        return self.tensor(width, level) + part * _TOKEN_WIDTHS // 8 + scores


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
                yield sum(skips) + x + sizes.attention(width, level, width // unet.head_channels)
            skips.append(x)
            skip_widths.append(width)
        if level < deepest:
            skips.append(sizes.tensor(width, level + 1))
            skip_widths.append(width)
    x = skips[-1]
    yield sum(skips) + x + sizes.attention(width, deepest, width // unet.head_channels)
    yield sum(skips) + x + sizes.residual(width, width, deepest, joined=False)
    for level, width_out in reversed(widths):
        for index in range(unet.res_blocks + 1):
            # The skip is alive until it is read, the stage's input until its output, which replaces it.
            yield sum(skips) + x + sizes.residual(width + skip_widths.pop(), width_out, level, joined=True)
            skips.pop()
            held, width = sum(skips) + x, width_out
            if level < unet.attention_levels:
                yield held + sizes.attention(width, level, width // unet.head_channels)
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
        unet = model.unet
        unet.loaded = load
        # It does not refer to the model, so that memory is free as soon as nobody else does.
        model.loaded = lambda network: nullcontext() if network is unet else load(network)


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
    plans = _plans(config, dtype, size, torch.device(device), eight_bits)
    for plan, needed in plans:
        if needed <= budget_gb * _GIB:
            return plan
    weights = sum(_weight_bytes(config, dtype, eight_bits)[0].values())
    raise ValueError(
        f"Expected at least {plans[-1][1] / _GIB:.1f} GiB for {config.variant} at {size} px (weights "
        f"{weights / _GIB:.1f} GiB); got a budget of {budget_gb:g} GiB. Use smaller pictures, half precision "
        f"(--dtype), 8-bit weights, or a larger budget (--memory-gb)."
    )


def plan_for_free_memory(
    config: ModelConfig,
    dtype: torch.dtype,
    size: int,
    device: torch.device,
    eight_bits: bool = False,
    limit_gb: float = math.inf,  # of the device, with what our tensors hold of it already
) -> MemoryPlan | None:
    """Return the plan for what is free of a device, at worst the smallest parts; None: nobody limits it."""
    # What PyTorch keeps for later is free, too.
    empty_device_cache()
    free, held = _free_and_held(device)
    budget = min(free, limit_gb * _GIB - held)
    if budget == math.inf:
        return None
    try:
        return plan_memory(config, dtype, size, max(budget, 0) / _GIB, device, eight_bits)
    except ValueError as error:
        log.warning("Little memory is free. %s Trying the smallest parts.", error)
        return _plans(config, dtype, size, device, eight_bits)[-1][0]


def _free_and_held(device: torch.device) -> tuple[float, int]:
    """Return the bytes of a device that are free, and that our tensors hold; of a CPU nothing is known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], torch.cuda.memory_allocated(device)
    # Intel's have figures since torch 2.6, Apple's since 2.5.
    if device.type == "xpu" and hasattr(torch.xpu, "mem_get_info"):
        held = torch.xpu.memory_allocated(device)
        try:
            return torch.xpu.mem_get_info(device)[0], held
        except RuntimeError:  # of some that share the computer's memory
            return torch.xpu.get_device_properties(device).total_memory - held, held
    if device.type == "mps" and hasattr(torch.mps, "recommended_max_memory"):
        held = torch.mps.current_allocated_memory()
        return torch.mps.recommended_max_memory() - held, held
    return math.inf, 0


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
    # A plan in 8 bits has no room for the weights as they are read.
    model = load_checkpoint(path, variant, dtype, device if resident and not eight_bits else "cpu")
    if eight_bits:
        keep_in_eight_bits(model.unet)
        if plan is None:
            place(model, device, "resident")
    if plan is not None:
        apply_plan(model, plan, device)
    return model


def _plans(
    config: ModelConfig, dtype: torch.dtype, size: int, device: torch.device, eight_bits: bool
) -> list[tuple[MemoryPlan, float]]:
    """Return all plans, the fastest first and the one that needs least last, with the memory each is for."""
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
    # Where a device has the computer's memory, weights that wait elsewhere free nothing.
    placements = tuple(PLACEMENTS) if device.type in ("cuda", "xpu") else ("resident",)
    # Fewer parts fill the card better, as the last wave of each kernel's blocks leaves some of it idle, and
    # are fewer launches. So parts grow until no layer has two; a CPU has caches instead.
    heads = config.unet.base // config.unet.head_channels
    useful = {"cpu": CPU_TOKENS, "mps": _SCORES // (2 * heads * pixels)}.get(device.type, images * pixels)
    whole = min(images * pixels, useful) * 8 * config.unet.base * dtype.itemsize
    chunks = [chunk for chunk in _CHUNKS if chunk < 2 * whole] or [SMALLEST_CHUNK]
    batches = [pair for pair in _BATCHES if pair[0] * pixels < 2 * _BATCH_PIXELS] or [(1, 1)]
    score_bytes = _SCORE_BYTES if device.type == "mps" else 0
    decoder_itemsize = stored_dtype("decoder", dtype).itemsize
    plans = []
    for placement, chunk, (encode, decode) in product(placements, chunks, batches):
        unet, peaks = activation_bytes(config, images, pixels, dtype.itemsize, chunk, score_bytes), []
        for copies in (False, True):
            encoder = autoencoder_bytes(config, "encoder", encode, size, dtype.itemsize, copies)
            decoder = autoencoder_bytes(config, "decoder", decode, size, decoder_itemsize, copies)
            peaks.append(max(map(sum, zip(held[placement], (unet, encoder, decoder), strict=True))))
        estimated, needed = peaks[1], float(peaks[1])
        if device.type != "cpu":
            estimated, needed = peaks[0], (peaks[1] + _WORKSPACE) / _GPU_SHARE
        plans.append((MemoryPlan(chunk, encode, decode, placement, estimated), needed))
    return plans


@cache
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
