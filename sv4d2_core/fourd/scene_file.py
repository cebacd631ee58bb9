"""Reads a scene of any backend back from its file."""

from __future__ import annotations

from pathlib import Path

import torch

from ..tensor_file import read_tensors
from .dynerf import DyNeRF
from .gaussians import Gaussians
from .scene import SCENE_FORMAT, SCENE_VERSION, Scene4D


def load_scene(path: str | Path, device: torch.device | str = "cpu") -> Scene4D:
    """Return the scene that a file holds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a scene, damaged, or of a backend that this version does not read.
    """
    tensors, header = read_tensors(path, SCENE_FORMAT)
    readers = {DyNeRF.backend: DyNeRF.from_tensors, Gaussians.backend: Gaussians.from_tensors}
    backend = header.get("backend")
    if backend not in readers or header.get("version") != SCENE_VERSION:
        raise ValueError(
            f"Expected a scene of backend {' or '.join(readers)}, version {SCENE_VERSION}; {path} holds "
            f"backend {backend!r}, version {header.get('version')!r}. Use the version of this program that "
            f"wrote it."
        )
    try:
        return readers[backend](tensors, header, device)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is a damaged scene file ({error}). Fit the scene again.") from error
