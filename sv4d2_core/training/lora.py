"""Low-rank adaptation of the UNet's attention: a few trained numbers beside frozen weights.

A layer's weight W [out, in] becomes W + (alpha / rank) up down with up [out, rank] and down [rank, in].
Source: "LoRA: Low-Rank Adaptation of Large Language Models" (Hu et al., 2021), section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..diffusion.attention import OneTokenAttention, SelfAttention
from ..diffusion.attention_block import AttentionBlock
from ..diffusion.unet import UNet

# Names in a file of LoRA weights start as the UNet is called inside ComfyUI's model.
FILE_PREFIX = "diffusion_model."
_DOWN, _UP, _ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"

# With one context token the queries and keys of OneTokenAttention change nothing, so they are not adapted.
_ATTENTION_LAYERS = {
    SelfAttention: ("to_q", "to_k", "to_v", "to_out.0"),
    OneTokenAttention: ("to_v", "to_out.0"),
}
_PROJECTIONS = {AttentionBlock: ("proj_in", "proj_out")}


class LoRALinear(nn.Linear):
    """A linear layer that shares the weight and bias of ``base`` and adds a low-rank part to the weight.

    ``lora_up`` starts at zero, so that nothing changes at first. Both factors start in float32 whatever the
    base is; in a training of 16 bits the optimiser steps float32 copies of them.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.alpha = alpha
        kw = {"bias": False, "dtype": torch.float32, "device": base.weight.device}
        self.lora_down = nn.Linear(base.in_features, rank, **kw)
        self.lora_up = nn.Linear(rank, base.out_features, **kw)
        nn.init.zeros_(self.lora_up.weight)

    @property
    def rank(self) -> int:
        """Return the number of columns of ``lora_up``."""
        return self.lora_down.out_features

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output for ``input`` [..., in], [..., out]."""
        down, up = self.lora_down.weight.to(input.dtype), self.lora_up.weight.to(input.dtype)
        return super().forward(input) + F.linear(F.linear(input, down) * (self.alpha / self.rank), up)

    def merged_weight(self) -> Tensor:
        """Return the weight [out, in] of the plain layer that does the same, in the base's dtype."""
        added = self.lora_up.weight.float() @ self.lora_down.weight.float()
        return (self.weight.float() + added * (self.alpha / self.rank)).to(self.weight.dtype)


def add_lora(
    unet: UNet, rank: int, alpha: float, *, projections: bool = False, seed: int = 0
) -> list[nn.Parameter]:
    """Give every attention layer of ``unet`` a low-rank part, freeze all else, and return what is trained.

    The output stays exactly what it was until the returned parameters change.

    Args:
        unet: changed in place; without low-rank parts.
        rank: of each part.
        alpha: the parts count ``alpha / rank`` times.
        projections: also adapt the linear layers into and out of each attention block.
        seed: of the start values of the ``lora_down``, on the CPU: every process and device gets the same.

    Raises:
        ValueError: a rank or alpha out of range, a UNet that has low-rank parts already.
    """
    _check(rank, alpha)
    if _lora_layers(unet):
        raise ValueError(
            f"Expected a UNet without LoRA; got one with {len(_lora_layers(unet))} adapted layers. Merge "
            f"them (merge_lora), or go on training those."
        )
    unet.requires_grad_(False)
    generator = torch.Generator("cpu").manual_seed(seed)
    for name in list(_adapted_names(unet, projections)):
        layer = _adapt(unet, name, rank, alpha)
        bound = layer.in_features**-0.5
        start = torch.empty(rank, layer.in_features).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            layer.lora_down.weight.copy_(start)
    return lora_parameters(unet)


def lora_parameters(unet: UNet) -> list[nn.Parameter]:
    """Return the factors of all low-rank parts, in the order of the layers."""
    layers = _lora_layers(unet).values()
    factors = (factor for layer in layers for factor in (layer.lora_down, layer.lora_up))
    return [parameter for factor in factors for parameter in factor.parameters()]


def lora_state(unet: UNet) -> dict[str, Tensor]:
    """Return the low-rank parts as a LoRA file holds them, float32 on the CPU.

    Keys are ``diffusion_model.<layer>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``, which ComfyUI's
    LoRA loaders understand.
    """
    state = {}
    for name, layer in _lora_layers(unet).items():
        key = FILE_PREFIX + name
        state[key + _DOWN] = _on_cpu(layer.lora_down.weight)
        state[key + _UP] = _on_cpu(layer.lora_up.weight)
        state[key + _ALPHA] = torch.tensor(float(layer.alpha))
    return state


def load_lora_state(unet: UNet, state: dict[str, Tensor]) -> list[nn.Parameter]:
    """Put the low-rank parts of `lora_state` into ``unet``, freeze all else, and return what is trained.

    Args:
        unet: changed in place. Layers without a low-rank part get one; parts of the same rank take the values
            and remain the same parameters, so that an optimiser keeps them.
        state: see `lora_state`.

    Raises:
        ValueError: keys that are none of a LoRA of this UNet, shapes that do not fit, parts in ``unet`` that
            ``state`` does not have. ``unet`` is then unchanged.
    """
    names = {key.removeprefix(FILE_PREFIX).removesuffix(_DOWN) for key in state if key.endswith(_DOWN)}
    expected = {FILE_PREFIX + name + end for name in names for end in (_DOWN, _UP, _ALPHA)}
    if odd := sorted(expected ^ state.keys()):
        raise ValueError(
            f"Expected {_DOWN[1:]}, {_UP[1:]} and {_ALPHA[1:]} for each layer of a LoRA; {len(odd)} keys are "
            f"missing or unknown, the first is {odd[0]}. Give a file that this program wrote."
        )
    if not names or (left := sorted(_lora_layers(unet).keys() - names)):
        raise ValueError(
            f"Expected a LoRA of every adapted layer; the file has {len(names)} layers"
            + (f" and lacks {len(left)} of the UNet's, the first is {left[0]}" if names else "")
            + ". Load it into the model that it was trained for."
        )
    linear = {name: module for name, module in unet.named_modules() if isinstance(module, nn.Linear)}
    for name in sorted(names):
        _check_fit(name, linear.get(name), state)
    unet.requires_grad_(False)
    for name in names:
        down, up, alpha = (state[FILE_PREFIX + name + end] for end in (_DOWN, _UP, _ALPHA))
        layer = _adapt(unet, name, len(down), float(alpha))
        with torch.no_grad():
            layer.lora_down.weight.copy_(down)
            layer.lora_up.weight.copy_(up)
    return lora_parameters(unet)


def merged_state(unet: UNet) -> dict[str, Tensor]:
    """Return the state dict of the plain UNet that does the same; ``unet`` keeps its low-rank parts."""
    state, layers = unet.state_dict(), _lora_layers(unet)
    for name, layer in layers.items():
        del state[name + _DOWN], state[name + _UP]
        state[f"{name}.weight"] = layer.merged_weight().detach()
    return state


@torch.no_grad()
def merge_lora(unet: UNet) -> None:
    """Turn every adapted layer of ``unet`` into a plain one that does the same, in place."""
    for name, layer in _lora_layers(unet).items():
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(layer.merged_weight(), requires_grad=layer.weight.requires_grad)
        plain.bias = layer.bias
        _replace(unet, name, plain)


def _lora_layers(unet: UNet) -> dict[str, LoRALinear]:
    return {name: module for name, module in unet.named_modules() if isinstance(module, LoRALinear)}


def _adapted_names(unet: UNet, projections: bool) -> Iterator[str]:
    kinds = {**_ATTENTION_LAYERS, **(_PROJECTIONS if projections else {})}
    for name, module in unet.named_modules():
        yield from (f"{name}.{layer}" for layer in kinds.get(type(module), ()))


def _adapt(unet: UNet, name: str, rank: int, alpha: float) -> LoRALinear:
    """Return the adapted layer ``name``, made unless it is there with this rank; its factors are trained."""
    layer = unet.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"Expected a linear layer {name}; got {type(layer).__name__}.")
    if not isinstance(layer, LoRALinear) or layer.rank != rank:
        layer = LoRALinear(layer, rank, alpha)
        _replace(unet, name, layer)
    layer.alpha = alpha
    layer.lora_down.requires_grad_(True)
    layer.lora_up.requires_grad_(True)
    return layer


def _replace(unet: UNet, name: str, layer: nn.Module) -> None:
    parent, _, own_name = name.rpartition(".")
    setattr(unet.get_submodule(parent), own_name, layer)


def _on_cpu(parameter: Tensor) -> Tensor:
    # A copy: what is trained on must not change what is being written.
    return parameter.detach().to("cpu", torch.float32, copy=True).contiguous()


def _check(rank: int, alpha: float) -> None:
    if rank < 1 or not 0 < alpha < math.inf:
        raise ValueError(f"Expected a LoRA of rank 1 or more and alpha above 0; got {rank} and {alpha:g}.")


def _check_fit(name: str, layer: nn.Linear | None, state: dict[str, Tensor]) -> None:
    if layer is None:
        raise ValueError(
            f"Expected a LoRA of this UNet; it has no linear layer {name}. Load the LoRA into the model that "
            f"it was trained for."
        )
    down, up, alpha = (state[FILE_PREFIX + name + end] for end in (_DOWN, _UP, _ALPHA))
    rank = down.shape[0] if down.ndim else 0
    if down.shape != (rank, layer.in_features) or up.shape != (layer.out_features, rank):
        raise ValueError(
            f"Expected factors [{layer.out_features}, rank] and [rank, {layer.in_features}] for {name}; got "
            f"{list(up.shape)} and {list(down.shape)}. Load the LoRA into the model that it was trained for."
        )
    if alpha.numel() != 1:
        raise ValueError(f"Expected one number as alpha of {name}; got {list(alpha.shape)}.")
    _check(rank, float(alpha))
