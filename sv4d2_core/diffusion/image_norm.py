"""Group norms of images on a CPU, where PyTorch is several times slower than memory for small maps.

For channels-last images of fewer than 1,024 pixels its kernel gathers the few channels of a group pixel by
pixel. Sums over pixels of all channels at once read memory in order.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn

# Below, the calls themselves cost more than they save; above, PyTorch reads in order too.
_SMALLEST, _LARGEST = 64, 1023


def image_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Return ``norm(x)`` of images [N, C, h, w], channels-last where ``x`` is; equal up to rounding."""
    if not _is_slow(norm, x):
        return norm(x)
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
    n, count, width = pixels.shape
    grouped = n, norm.num_groups, -1
    # Mean and mean square of each group, as PyTorch's own kernel takes them.
    of_channels = torch.stack([pixels.sum(dim=1), pixels.square().sum(dim=1)])
    mean, square = of_channels.view(2, *grouped).sum(dim=-1) / (count * width // norm.num_groups)
    weight, bias = (values.view(norm.num_groups, -1) for values in (norm.weight, norm.bias))
    scale = (square - mean.square()).clamp(min=0).add_(norm.eps).rsqrt_()[..., None] * weight
    offset = torch.addcmul(bias, mean[..., None], scale, value=-1)
    out = torch.addcmul(offset.view(n, 1, width), pixels, scale.view(n, 1, width))
    return out.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def _is_slow(norm: nn.Module, x: Tensor) -> TypeGuard[nn.GroupNorm]:
    return (
        type(norm) is nn.GroupNorm
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and _SMALLEST <= x.shape[2] * x.shape[3] <= _LARGEST
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )
