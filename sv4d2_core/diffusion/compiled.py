"""Compiles the UNet's repeated work with torch.compile: what runs once per part of the images or tokens.

Compiled are the functions inside the loops over parts, not the loops. Blocks of equal sizes share one
compiled function, and every step and window calls the same shapes, so that all compiling happens in the first
step: once for the parts of full size and once for a smaller last one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from .attention_block import TransformerBlock
from .res_block import ResBlock, TemporalConvs
from .unet import UNet

# Sizes per function: four levels, three kinds of attention, joined and plain inputs, full and last parts.
_SIZES_PER_FUNCTION = 128

# As `torch.compile` takes it; only ``inductor`` makes anything faster.
Backend = str | Callable[..., Any]

log = logging.getLogger(__name__)


def check_compiler(device: torch.device, backend: Backend = "inductor") -> None:
    """Compile a trivial function, to learn before any work whether compiling works here.

    Raises:
        ValueError: it does not; names the reason.
    """

    def twice(x: torch.Tensor) -> torch.Tensor:
        return x + x

    try:
        torch.compile(twice, backend=backend, fullgraph=True)(torch.ones(8, device=device))
    except (RuntimeError, ImportError, OSError) as error:
        needed = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler, such as g++"
        raise ValueError(
            f"Expected --compile to find {needed}; got {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]} Install {needed}, or run without --compile."
        ) from error


def compile_blocks(unet: UNet, backend: Backend = "inductor") -> None:
    """Replace the work per part in all blocks of a UNet by compiled functions; results equal up to rounding.

    The first step compiles, which takes minutes, and so does the first of another size: another number of
    frames or views, guidance switched off for some steps, smaller parts after memory ran out. Not undone.
    """
    _allow_sizes()
    compiled = partial(torch.compile, backend=backend, fullgraph=True, dynamic=False)
    for module, name in _per_part(unet):
        setattr(module, name, compiled(getattr(module, name)))
    log.info("The first denoising step compiles the network, which can take minutes.")


def _per_part(unet: UNet) -> Iterator[tuple[nn.Module, str]]:
    """Yield which method of which module does the work of one part."""
    for module in unet.modules():
        if isinstance(module, (TransformerBlock, TemporalConvs)):
            yield module, "forward"
        elif isinstance(module, ResBlock):
            yield module, "_within_images"


def _allow_sizes() -> None:
    """Let one function be compiled for all sizes of a network; by default few are, the rest run as before."""
    config: Any = torch._dynamo.config
    # Up to torch 2.5 the same number is called cache_size_limit.
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, name, max(getattr(config, name), _SIZES_PER_FUNCTION))
