"""Weights in training, with their moments and average, and low-rank parts of the attention.

W [out, in] becomes W + up down, [out, rank] and [rank, in] (Hu et al. 2021, LoRA, section 4.1, alpha = rank).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..diffusion.blocks import OneTokenAttention, SelfAttention
from ..diffusion.unet import UNet
from ..stored import Tensors

# With one context token the queries and keys of OneTokenAttention change nothing, so they are not adapted.
_MOMENTS = ("exp_avg", "exp_avg_sq")
_ADAPTED = {SelfAttention: ("to_q", "to_k", "to_v", "to_out.0"), OneTokenAttention: ("to_v", "to_out.0")}


class LoRALinear(nn.Linear):
    """A linear layer that shares weight and bias of ``base`` and adds a low-rank part, zero at first."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        device = base.weight.device
        self.lora_down = nn.Linear(base.in_features, rank, bias=False, device=device)
        self.lora_up = nn.Linear(rank, base.out_features, bias=False, device=device)
        nn.init.zeros_(self.lora_up.weight)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.lora_up(self.lora_down(input))


@torch.no_grad()
def add_lora(unet: UNet, rank: int, seed: int = 0) -> list[nn.Parameter]:
    """Add low-rank parts, zero at first, to the attention layers, freeze the rest, return what is trained."""
    unet.requires_grad_(False)
    # On the CPU: every process and device gets the same.
    generator = torch.Generator("cpu").manual_seed(seed)
    modules = list(unet.named_modules())
    names = [f"{name}.{layer}" for name, module in modules for layer in _ADAPTED.get(type(module), ())]
    for name in names:
        layer = LoRALinear(unet.get_submodule(name), rank)  # pyright: ignore
        bound = layer.in_features**-0.5
        start = torch.empty(rank, layer.in_features).uniform_(-bound, bound, generator=generator)
        layer.lora_down.weight.copy_(start)
        _replace(unet, name, layer)
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def lora_state(unet: UNet) -> dict[str, Tensor]:
    """Return float32 copies of the low-rank parts on the CPU under the keys of ComfyUI's LoRA loaders."""
    state = {}
    for name, layer in _lora_layers(unet).items():
        key = f"diffusion_model.{name}"
        for part in ("lora_down", "lora_up"):
            weight = layer.get_submodule(part).weight
            state[f"{key}.{part}.weight"] = weight.detach().to("cpu", torch.float32, copy=True)  # pyright: ignore
        state[f"{key}.alpha"] = torch.tensor(float(layer.lora_down.out_features))
    return state


@torch.no_grad()
def merge_lora(unet: UNet) -> None:
    """Turn every adapted layer of ``unet`` into a plain one that does the same, in place."""
    for name, layer in _lora_layers(unet).items():
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        weight = layer.weight.float() + layer.lora_up.weight.float() @ layer.lora_down.weight.float()
        plain.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
        plain.bias = layer.bias
        _replace(unet, name, plain)


def _lora_layers(unet: UNet) -> dict[str, LoRALinear]:
    return {name: module for name, module in unet.named_modules() if isinstance(module, LoRALinear)}


def _replace(unet: UNet, name: str, layer: nn.Module) -> None:
    parent, _, own_name = name.rpartition(".")
    setattr(unet.get_submodule(parent), own_name, layer)


# The average forgets its start: in its first steps it follows the weights.
_WARM_UP = 10


class Weights:
    """float32 weights, AdamW's moments and the running average of parameters that require gradients.

    The network computes in ``dtype``; beside bfloat16 weights, float32 ones are kept and rounded into them.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, weight_decay: float, average: float) -> None:
        self.network, self.rounds = network, dtype != torch.float32
        self.working = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.master = {
            name: nn.Parameter(p.detach().clone().float()) if self.rounds else p
            for name, p in self.working.items()
        }
        # Weights that are not trained come back as they were, not as they were rounded.
        frozen = dict(network.named_parameters()) if self.rounds else {}
        self.frozen = {n: p.detach().cpu().clone() for n, p in frozen.items() if not p.requires_grad}
        network.to(dtype)
        self.mean = {name: p.detach().clone() for name, p in self.master.items()}
        self.average = average
        # Only matrices and kernels decay.
        groups = [
            {"params": [p for p in self.master.values() if (p.ndim > 1) == decays], "weight_decay": rate}
            for decays, rate in ((True, weight_decay), (False, 0.0))
        ]
        self.optimiser = torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.99))

    def step(self, number: int, learning_rate: float, clip: float) -> float:
        """Step along gradients clipped to a length and return their norm; no step where it isn't finite."""
        for name, parameter in self.working.items():
            if self.rounds:
                self.master[name].grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
        norm = nn.utils.clip_grad_norm_(self.master.values(), clip)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        if norm.isfinite():
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        decay = min(self.average, (1 + number) / (_WARM_UP + number))
        masters = list(self.master.values())
        with torch.no_grad():
            # All at once: a GPU would do each faster than it is told to.
            torch._foreach_lerp_(list(self.mean.values()), masters, 1 - decay)  # pyright: ignore
            if self.rounds:
                torch._foreach_copy_(list(self.working.values()), masters)  # pyright: ignore
        return float(norm)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the running average into the network as long as the block runs."""
        now = {name: parameter.detach().clone() for name, parameter in self.working.items()}
        try:
            _copy_into(self.working, self.mean)
            yield
        finally:
            _copy_into(self.working, now)

    def use_average(self) -> None:
        """Put the running average into the network, in float32 again; training ends here."""
        self.network.float()
        _copy_into(dict(self.network.named_parameters()), {**self.frozen, **self.mean})

    def tensors(self) -> dict[str, Tensor]:
        """Return all that decides how training goes on."""
        tensors = {f"mean.{name}": mean for name, mean in self.mean.items()}
        for name, master in self.master.items():
            tensors[f"weight.{name}"] = master
            for key, value in self.optimiser.state.get(master, {}).items():
                tensors[f"{key}.{name}"] = value
        return tensors

    def load(self, tensors: Tensors) -> None:
        """Go on from what `tensors` returned. Raises ValueError when that was another network's."""
        for kind, own in (("mean.", self.mean), ("weight.", self.master)):
            stored = tensors.under(kind)
            stored.check_like(own)
            _copy_into(own, stored)
        _copy_into(self.working, self.master)
        for name, master in self.master.items():
            if f"step.{name}" in tensors:
                moments = {key: tensors.shaped(f"{key}.{name}", *master.shape) for key in _MOMENTS}
                kept = {key: x.to(master.device, copy=True) for key, x in moments.items()}
                self.optimiser.state[master] = {"step": tensors.shaped(f"step.{name}").clone(), **kept}


@torch.no_grad()
def _copy_into(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Give each of the parameters that has a value that value."""
    for name in parameters.keys() & values.keys():
        parameters[name].copy_(values[name])
