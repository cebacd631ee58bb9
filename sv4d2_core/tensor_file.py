"""Tensors and JSON values in one safetensors file, which appears complete or not at all."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .whole_file import write_whole


def write_tensors(path: str | Path, kind: str, tensors: dict[str, Tensor], header: dict) -> None:
    """Write tensors and JSON values as one safetensors file, which appears complete or not at all.

    Args:
        path: the file.
        kind: the key of the metadata that holds the header; it tells what the file is.
        tensors: copied to the CPU.
        header: JSON values.
    """
    content = save(
        {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()},
        metadata={kind: json.dumps(header)},
    )
    write_whole(Path(path), content)


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict]:
    """Return the tensors and the header that `write_tensors` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or of another kind.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"Expected a {kind} file; there is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(kind, "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()} if header else {}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"Expected a {kind} file; {path} cannot be read ({error}).") from error
    if not isinstance(header, dict):
        raise ValueError(f"Expected a {kind} file; {path} is a safetensors file of another kind.")
    return tensors, header


def tensors_under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose key begins with a prefix, under the rest of their key."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
