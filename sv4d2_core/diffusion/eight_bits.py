"""Weights of the UNet kept in 8 bits and widened for every use: half the memory of half precision."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .attention_block import AttentionBlock
from .res_block import ResBlock
from .unet import UNet

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
    """Find out before any work whether a device has numbers of 8 bits.

    Raises:
        ValueError: it has not.
    """
    try:
        torch.ones(1, device=device).to(_TYPE).float()
    except (RuntimeError, TypeError) as error:
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
    """Keep the matrices of a UNet's residual and attention blocks in 8 bits; not undone.

    The network computes in the dtype that it had. Offsets, norms, the embeddings of noise level and cameras,
    and the few convolutions outside of blocks stay as they are.
    """
    for layer in list(matrices(unet)):
        parametrize.register_parametrization(layer, "weight", EightBits(layer.weight.dtype))
