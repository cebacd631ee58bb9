"""Low-rank adaptation of the UNet's attention: a few trained numbers beside frozen weights.

A layer's weight W [out, in] becomes W + (alpha / rank) up down with up [out, rank] and down [rank, in].
Source: "LoRA: Low-Rank Adaptation of Large Language Models" (Hu et al., 2021), section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..diffusion.blocks import AttentionBlock, OneTokenAttention, SelfAttention
from ..diffusion.convert import write_checkpoint_file
from ..diffusion.layout import PARTS
from ..diffusion.model import Model
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


# The average forgets its start: in its first steps it follows the weights.
_WARM_UP = 10


class Weights:
    """float32 weights, AdamW's moments and the running average of a network's trained parameters.

    Args:
        network: its parameters that require gradients are trained.
        dtype: what the network computes in from now on; beside bfloat16 weights, float32 ones are kept and
            rounded into them after each step.
        weight_decay: of matrices and kernels; norms, biases and blends have none.
        average: decay of the running average.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, weight_decay: float, average: float) -> None:
        self.network = network
        self.working = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.master = {
            name: p if dtype == torch.float32 else nn.Parameter(p.detach().clone().float())
            for name, p in self.working.items()
        }
        # Weights that are not trained come back as they were, not as they were rounded.
        frozen = {} if dtype == torch.float32 else dict(network.named_parameters())
        self.frozen = {n: p.detach().cpu().clone() for n, p in frozen.items() if not p.requires_grad}
        network.to(dtype)
        self.mean = {name: p.detach().clone() for name, p in self.master.items()}
        self.average = average
        groups = [
            {
                "params": [p for p in self.master.values() if (p.ndim > 1) == decays],
                "weight_decay": weight_decay * decays,
            }
            for decays in (True, False)
        ]
        self.optimiser = torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.99))

    def step(self, number: int, learning_rate: float, clip: float) -> float:
        """Step along the gradients of the working weights and return their norm before clipping.

        Nothing is changed along gradients that are not finite.

        Args:
            number: steps done before this one.
            learning_rate: of this step.
            clip: longest gradient.
        """
        for name, parameter in self.working.items():
            if parameter is not self.master[name]:
                self.master[name].grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
        norm = nn.utils.clip_grad_norm_(list(self.master.values()), clip)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        if norm.isfinite():
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self._follow(min(self.average, (1 + number) / (_WARM_UP + number)))
        return float(norm)

    @torch.no_grad()
    def _follow(self, decay: float) -> None:
        for name, master in self.master.items():
            if self.working[name] is not master:
                self.working[name].copy_(master)
            self.mean[name].lerp_(master, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the running average into the network as long as the block runs."""
        with torch.no_grad():
            now = {name: parameter.clone() for name, parameter in self.working.items()}
            for name, parameter in self.working.items():
                parameter.copy_(self.mean[name])
            try:
                yield
            finally:
                for name, parameter in self.working.items():
                    parameter.copy_(now[name])

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the running average into the network, in float32 again; training ends here."""
        self.network.float()
        weights = {**self.frozen, **self.mean}
        for name, parameter in self.network.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])

    def tensors(self) -> dict[str, Tensor]:
        """Return all that decides how training goes on."""
        tensors = {f"mean.{name}": mean for name, mean in self.mean.items()}
        for name, master in self.master.items():
            tensors[f"weight.{name}"] = master
            for key, value in self.optimiser.state.get(master, {}).items():
                tensors[f"{key}.{name}"] = value
        return tensors

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` returned.

        Raises:
            ValueError: the tensors belong to another network.
        """
        expected = {f"{kind}.{name}" for kind in ("mean", "weight") for name in self.master}
        if missing := sorted(expected - tensors.keys()):
            raise ValueError(
                f"Expected the state of this network; {len(missing)} of its tensors are missing, first "
                f"{missing[0]}. Start anew in another folder."
            )
        for name, master in self.master.items():
            master.copy_(tensors[f"weight.{name}"])
            self.mean[name].copy_(tensors[f"mean.{name}"])
            self.working[name].copy_(master)
            if f"step.{name}" in tensors:
                self.optimiser.state[master] = {
                    key: tensors[f"{key}.{name}"].to("cpu" if key == "step" else master.device, copy=True)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }


def write_checkpoint(path: Path, model: Model, dtype: torch.dtype, notes: dict[str, str]) -> Path:
    """Write all networks of a model in ``dtype`` and return the path; `load_checkpoint` reads it.

    Args:
        path: the file; replaced when the new one is complete.
        model: what to write; one encoder that serves frames and views is stored once.
        dtype: float32, float16 or bfloat16.
        notes: further metadata, such as how the model was trained.
    """
    shared = model.view_encoder is model.frame_encoder
    weights: dict[str, Tensor] = {
        part.prefix + key: tensor
        for part in PARTS
        if not (shared and part.name == "view_encoder")
        for key, tensor in getattr(model, part.name).state_dict().items()
    }
    kinds = {key: (dtype, tuple(tensor.shape)) for key, tensor in weights.items()}
    return write_checkpoint_file(
        path,
        kinds,
        lambda key: weights[key].detach().cpu().to(dtype),
        model.config,
        shared,
        notes,
        overwrite=True,
    )
