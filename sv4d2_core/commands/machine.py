"""Which device and number format a job uses."""

from __future__ import annotations

import torch

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_device(name: str) -> torch.device:
    """Return the device of that name, or the best one for ``auto``.

    Raises:
        ValueError: a device that this machine or this torch does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"Expected a device of this machine; got {name!r} ({reason}). Try --device auto."
        ) from error
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of that name; ``auto`` is float32 on a CPU, else float16 as in the reference."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return _DTYPES[name]
