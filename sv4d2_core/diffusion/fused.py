"""Linear layers on a CPU that do what follows the product in the same pass over memory.

PyTorch's own layers add the offset, take the GELU and multiply by it in passes of their own. oneDNN, which
comes with PyTorch, does all of that to each block of the product while it is in the cache; torch.compile
calls the same two operators. Results differ by rounding.
"""

from __future__ import annotations

from functools import cache
from typing import TypeGuard

import torch
from torch import Tensor, nn


def fuses(layer: nn.Module, x: Tensor) -> TypeGuard[nn.Linear]:
    """Return whether `linear` and `geglu` can stand for the plain computation of ``layer`` on ``x``.

    Not where autograd records or a compiler reads along, nor for layers that cast or widen their weights.
    """
    return (
        type(layer) is nn.Linear
        and x.device.type == "cpu"
        and x.dtype == layer.weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and has_operators()
    )


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Return ``layer(x)``, [..., out], for ``x`` [..., in]."""
    return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "none", [], "")


def geglu(layer: nn.Linear, x: Tensor) -> Tensor:
    """Return the first half of ``layer(x)`` times the exact GELU of the second, [..., out / 2]."""
    (value, gate), (value_bias, gate_bias) = layer.weight.chunk(2), layer.bias.chunk(2)
    gates = torch.ops.mkldnn._linear_pointwise(x, gate, gate_bias, "gelu", [], "none")
    return torch.ops.mkldnn._linear_pointwise.binary(x, gates, value, value_bias, "mul")


@cache
def has_operators() -> bool:
    """Return whether this PyTorch has the two operators, which it does not promise to keep."""
    layer, x = nn.Linear(2, 2, device="cpu", dtype=torch.float32), torch.ones(2, 2)
    try:
        linear(layer, x)
        geglu(layer, x)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return True
