"""The weights that an optimiser steps: float32, of a network that may compute in bfloat16, with averages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

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
