"""What works on a device, Triton kernels and PyTorch itself: what came out right in a first tiny try."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..files import is_out_of_memory

_log = logging.getLogger(__name__)


class Try(NamedTuple):
    """A tiny piece of work."""

    work: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]  # of both, float32 on the CPU; all have gradients


@functools.cache
def by_triton(work: str, device: torch.device, tiny: Callable[..., Try], *given: Any) -> bool:
    """Return whether Triton does ``work``: on CUDA, where ``tiny(*given)`` came out right; log it once."""
    if device.type != "cuda":
        _log.info("%s by torch: the device is %s.", work, device.type)
        return False
    if importlib.util.find_spec("triton") is None:
        _log.info("%s by torch: installing the package triton makes this much faster.", work)
        return False
    fault = fault_of(device, tiny, *given)
    if fault is None:
        _log.info("%s by triton.", work)
        return True
    _log.warning(
        "%s by torch, which is much slower: Triton failed in a first tiny try (%s). It needs a C compiler, "
        "such as gcc, on the PATH or named by CC.",
        work,
        fault,
    )
    return False


@functools.cache
def scene_device(device: torch.device, tiny: Callable[..., Try]) -> torch.device:
    """Return where a scene lives: the device, or, where ``tiny`` goes wrong there, the CPU; log that once.

    PyTorch reads grids on Apple's GPUs since 2.13; before, gradients were missing or results wrong.
    """
    if device.type in ("cpu", "cuda") or (fault := fault_of(device, tiny)) is None:
        return device
    _log.warning(
        "4D scenes stay on the CPU: PyTorch %s failed on %s in a first tiny try (%s). A newer one may do.",
        torch.__version__,
        device.type,
        fault,
    )
    return torch.device("cpu")


def fault_of(device: torch.device, tiny: Callable[..., Try], *given: Any) -> str | None:
    """Return why a `Try` fails on a device; None: it works. Raises OOM errors."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            work, reference, inputs = tiny(*given)
            found = []
            # In double precision neither mixed precision nor TF32 makes the reference coarser.
            for function, leaves in (
                (work, [x.to(device, copy=True).requires_grad_() for x in inputs]),
                (reference, [x.double().requires_grad_() for x in inputs]),
            ):
                result = function(*leaves)
                gradients = torch.autograd.grad(result.square().sum(), leaves)
                found.append(torch.cat([x.detach().flatten().cpu().double() for x in (result, *gradients)]))
        return None if torch.allclose(*found, rtol=1e-3, atol=1e-3) else "its result or gradient is wrong"
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
