"""Makes the UNet faster or smaller: its work per part compiled, its matrices kept in 8 bits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..files import is_out_of_memory
from .blocks import AttentionBlock, ResBlock, TemporalConvs, TransformerBlock
from .unet import UNet

# Sizes per function: four levels, three kinds of attention, joined and plain inputs, full and last parts.
_SIZES_PER_FUNCTION = 128

# As `torch.compile` takes it; only ``inductor`` makes anything faster.
Backend = str | Callable[..., Any]

log = logging.getLogger(__name__)


def check_compiler(device: torch.device, backend: Backend = "inductor") -> None:
    """Compile a trivial function before any work; ValueError, with the reason, where that does not work."""
    try:
        torch.compile(lambda x: x + x, backend=backend, fullgraph=True)(torch.ones(8, device=device))
    except (RuntimeError, ImportError, OSError) as error:
        if is_out_of_memory(error):
            raise
        needed = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler, such as g++"
        raise ValueError(
            f"Expected --compile to find {needed}; got {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]} Install {needed}, or run without --compile."
        ) from error


def compile_blocks(unet: UNet, backend: Backend = "inductor") -> None:
    """Compile, for good, what loops over parts call in a UNet's blocks; results equal up to rounding.

    The first step compiles, which takes minutes; later ones have the same shapes. So does the first step of
    another size: of frames or views, without guidance, or in smaller parts after memory ran out.
    """
    # By default one function is compiled for few sizes. Up to torch 2.5 the limit has another name.
    config: Any = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, limit, max(getattr(config, limit), _SIZES_PER_FUNCTION))
    compiled = partial(torch.compile, backend=backend, fullgraph=True, dynamic=False)
    for module in unet.modules():
        if isinstance(module, (ResBlock, TransformerBlock, TemporalConvs)):
            name = "within_images" if isinstance(module, ResBlock) else "forward"
            setattr(module, name, compiled(getattr(module, name)))
    log.info("The first denoising step compiles the network, which can take minutes.")


_TYPE = torch.float8_e4m3fn
_LARGEST = torch.finfo(_TYPE).max
_KINDS = (nn.Linear, nn.Conv2d, nn.Conv3d)


class EightBits(nn.Module):
    """A weight as numbers of 8 bits and a scale per output channel, so that each row uses all their range."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``weight`` [out, ...] as float8_e4m3fn and its scales [out, 1, ...], float32."""
        weight = weight.float()
        scale = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True) / _LARGEST
        # A row of zeros stays one.
        scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
        return (weight / scale).clamp(-_LARGEST, _LARGEST).to(_TYPE), scale

    def forward(self, narrow: Tensor, scale: Tensor) -> Tensor:
        """Return the weight [out, ...] in the dtype that it had."""
        return narrow.to(self.dtype) * scale.to(self.dtype)


def check_eight_bits(device: torch.device) -> None:
    """Raise ValueError, before any work, where a device has no numbers of 8 bits."""
    try:
        torch.ones(1, device=device).to(_TYPE).float()
    except (RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"Expected a device with numbers of 8 bits for --fp8-weights; {device} has none "
            f"({str(error).splitlines()[0]}). Leave the option out and use --dtype fp16."
        ) from error


def matrices(unet: UNet) -> Iterator[nn.Linear | nn.Conv2d | nn.Conv3d]:
    """Yield the layers whose weights can be kept in 8 bits: those of the residual and attention blocks."""
    for block in unet.modules():
        if isinstance(block, (ResBlock, AttentionBlock)):
            yield from (module for module in block.modules() if isinstance(module, _KINDS))


def keep_in_eight_bits(unet: UNet) -> None:
    """Keep the matrices of a UNet's blocks in 8 bits; it computes as before. Not undone."""
    for layer in list(matrices(unet)):
        parametrize.register_parametrization(layer, "weight", EightBits(layer.weight.dtype))
