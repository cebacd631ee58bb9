"""A forward pass without some of the savings, and what can be measured of it, here or in its own process."""

from __future__ import annotations

import copy
import itertools
import multiprocessing
from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from measure import clock, flops, peak_bytes, seconds
from network_parts import breakdown
from savings import WindowInputs, switched_off
from torch import Tensor

from sv4d2_core.diffusion.config import UNetConfig
from sv4d2_core.diffusion.sampling import (
    GuidedInputs,
    guidance_table,
    guided_denoiser,
    karras_sigmas,
    sample_euler,
)
from sv4d2_core.diffusion.speed import compile_blocks
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
    """A forward pass of ``net`` without ``savings``, in parts of ``chunk_bytes`` (None: as ``net`` does)."""

    def __init__(
        self, net: UNet, inputs: WindowInputs, savings: Collection[str], chunk_bytes: int | None = None
    ) -> None:
        self.net, self.inputs, self.savings, self.chunk_bytes = net, inputs, savings, chunk_bytes
        self.device = inputs.x.device

    def output(self) -> Tensor:
        """Return the network's prediction, float32 on the CPU."""
        return self._measure(lambda call: call().float().cpu())

    def flops(self) -> int:
        """Return the floating-point operations."""
        return self._measure(flops)

    def peak_bytes(self) -> int:
        """Return the peak activation memory; the product's prepared window counts as activations."""
        return self._measure(partial(peak_bytes, device=self.device), prepare=True)

    def seconds(self) -> float:
        """Return the time of one pass."""
        return self._measure(partial(seconds, device=self.device))

    def parts(self, rounds: int) -> dict[str, dict[str, float]]:
        """Return seconds and operations of each part of the network, from the fastest of some passes."""
        return self._measure(lambda call: breakdown(self.net, call, self.device, rounds))

    def step_seconds(self, steps: int) -> list[float]:
        """Return the time of each step of sampling one window; the first includes preparing the window."""
        return self._measure(lambda _call: self._sample(steps))

    def _sample(self, steps: int) -> list[float]:
        x = self.inputs.x
        noisy, concat = x.chunk(2, dim=1)
        inputs = GuidedInputs(self.inputs.context, concat, self.inputs.y, self.inputs.cond_view)
        stamps = [clock(self.device)]
        denoise = guided_denoiser(self.net, inputs, guidance_table("linear", FRAMES, VIEWS, 1, 2))
        sigmas = karras_sigmas(steps)
        start = noisy[: FRAMES * VIEWS].float() * sigmas[0].to(x.device)
        sample_euler(denoise, start, sigmas, callback=lambda *_: stamps.append(clock(self.device)))
        return [after - before for before, after in itertools.pairwise(stamps)]

    @torch.no_grad()
    def _measure(self, of: Callable[[Callable[[], Tensor]], Any], prepare: bool = False) -> Any:
        budget = self.net.chunk_bytes if self.chunk_bytes is None else self.chunk_bytes
        with (
            patch.object(self.net, "chunk_bytes", budget),
            switched_off(self.net, self.inputs, self.savings, prepare) as call,
        ):
            return of(call)


class CompiledVariant(Variant):
    """The same with the repeated work compiled; operations are those before compiling."""

    def __init__(
        self, net: UNet, inputs: WindowInputs, savings: Collection[str], chunk_bytes: int | None = None
    ) -> None:
        super().__init__(copy.deepcopy(net), inputs, savings, chunk_bytes)
        self._plain = Variant(net, inputs, savings, chunk_bytes)
        compile_blocks(self.net)

    def flops(self) -> int:
        """Return the floating-point operations, which a counter does not see in compiled code."""
        return self._plain.flops()


class InOwnProcess:
    """The measurements of a `Variant` that lives in a process of its own.

    How long the allocation of a large tensor takes depends on everything the process allocated before: one
    variant's leftovers would spare another the cost of fresh memory pages.
    """

    def __init__(
        self,
        work: Work,
        savings: Collection[str],
        chunk_bytes: int | None = None,
        made: type[Variant] = Variant,
    ) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, spawn, _start, (work, savings, chunk_bytes, made))
        self.output = partial(self._ask, "output")
        self.flops = partial(self._ask, "flops")
        self.peak_bytes = partial(self._ask, "peak_bytes")
        self.seconds = partial(self._ask, "seconds")
        self.parts = partial(self._ask, "parts")
        self.step_seconds = partial(self._ask, "step_seconds")

    def _ask(self, measurement: str, *args: Any) -> Any:
        return self._pool.submit(_answer, measurement, *args).result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


_variant: Variant | None = None


def _start(work: Work, savings: Collection[str], chunk_bytes: int | None, made: type[Variant]) -> None:
    global _variant
    torch.set_num_threads(work.threads)
    torch.set_flush_denormal(True)
    _variant = made(work.network(), work.inputs(), savings, chunk_bytes)


def _answer(measurement: str, *args: Any) -> Any:
    return getattr(_variant, measurement)(*args)
