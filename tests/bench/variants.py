"""A forward pass without some of the savings, and what can be measured of it, here or in its own process."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch
from measure import flops, peak_bytes, seconds
from savings import WindowInputs, switched_off
from torch import Tensor

from sv4d2_core.diffusion.config import UNetConfig
from sv4d2_core.diffusion.unet import UNet

FRAMES, VIEWS, GUIDANCE_BATCH = 12, 4, 2


class Work(NamedTuple):
    """The size of a forward pass and where it runs; ``size`` is the height and width of the latents."""

    config: UNetConfig
    size: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    threads: int = 2

    def network(self) -> UNet:
        """Return a UNet with PyTorch's random initial weights, always the same."""
        torch.manual_seed(0)
        return UNet(self.config, device=self.device, dtype=self.dtype).eval().requires_grad_(False)

    def inputs(self) -> WindowInputs:
        """Return random inputs of one guided step, always the same."""
        torch.manual_seed(1)
        draw = partial(torch.randn, device=self.device, dtype=self.dtype)
        rows, latent = GUIDANCE_BATCH * VIEWS, self.config.latent_channels
        return WindowInputs(
            x=draw(rows * FRAMES, 2 * latent, self.size, self.size),
            timesteps=torch.full((rows,), 0.3, device=self.device),
            y=draw(rows, self.config.vector_dim),
            context=draw(GUIDANCE_BATCH, FRAMES, self.config.context_dim),
            cond_view=draw(rows, latent, self.size, self.size),
        )


class Variant:
    """A forward pass of ``net`` without ``savings``."""

    def __init__(self, net: UNet, inputs: WindowInputs, savings: Collection[str]) -> None:
        self.net, self.inputs, self.savings = net, inputs, savings

    def output(self) -> Tensor:
        """Return the network's prediction, float32 on the CPU."""
        return self._measure(lambda call: call().float().cpu())

    def flops(self) -> int:
        """Return the floating-point operations."""
        return self._measure(flops)

    def peak_bytes(self) -> int:
        """Return the peak activation memory; the product's prepared window counts as activations."""
        return self._measure(partial(peak_bytes, device=self.inputs.x.device), prepare=True)

    def seconds(self) -> float:
        """Return the time of one pass."""
        return self._measure(partial(seconds, device=self.inputs.x.device))

    @torch.no_grad()
    def _measure(self, of: Callable[[Callable[[], Tensor]], Any], prepare: bool = False) -> Any:
        with switched_off(self.net, self.inputs, self.savings, prepare) as call:
            return of(call)


class InOwnProcess:
    """The measurements of a `Variant` that lives in a process of its own.

    How long the allocation of a large tensor takes depends on everything the process allocated before: one
    variant's leftovers would spare another the cost of fresh memory pages.
    """

    def __init__(self, work: Work, savings: Collection[str]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, spawn, _start, (work, savings))
        self.output = partial(self._ask, "output")
        self.flops = partial(self._ask, "flops")
        self.peak_bytes = partial(self._ask, "peak_bytes")
        self.seconds = partial(self._ask, "seconds")

    def _ask(self, measurement: str) -> Any:
        return self._pool.submit(_answer, measurement).result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


_variant: Variant | None = None


def _start(work: Work, savings: Collection[str]) -> None:
    global _variant
    torch.set_num_threads(work.threads)
    torch.set_flush_denormal(True)
    _variant = Variant(work.network(), work.inputs(), savings)


def _answer(measurement: str) -> Any:
    return getattr(_variant, measurement)()
