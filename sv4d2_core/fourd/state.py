"""A fit that was interrupted: everything that decides how it goes on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..views import ViewGrid
from .config import RefineConfig
from .scene import read_tensors, write_tensors

_FORMAT = "sv4d2.fit"


@dataclass(frozen=True)
class FitState:
    """The state of a fit between two steps; a fit resumed from it gives the same bits on the same machine.

    Args:
        step: steps done.
        fingerprint: of the views and the settings (`fit_fingerprint`).
        tensors: parameters, optimiser, generator and occupancy.
    """

    step: int
    fingerprint: str
    tensors: dict[str, Tensor]

    def save(self, path: str | Path) -> None:
        """Write the state to a file, which appears complete or not at all."""
        write_tensors(path, _FORMAT, self.tensors, {"step": self.step, "fingerprint": self.fingerprint})

    @classmethod
    def load(cls, path: str | Path) -> FitState:
        """Return the state that `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is damaged or of another kind.
        """
        tensors, header = read_tensors(path, _FORMAT)
        return cls(int(header["step"]), str(header["fingerprint"]), tensors)


def fit_fingerprint(views: ViewGrid, config: RefineConfig) -> str:
    """Return a hash of all that decides a fit's result: pictures, masks, cameras, times and settings."""
    plain = [config.to_json(), views.cameras.to_json(), list(views.frame_times()), list(views.images.shape)]
    digest = hashlib.sha256(json.dumps(plain).encode())
    for tensor in (views.images, views.masks):
        if tensor is not None:
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
