"""Shared by all tests: one thread, and access to the recorded golden numbers."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

DATA = Path(__file__).parent / "data"
WEIGHT_SEED, INPUT_SEED = 1001, 2001

torch.set_num_threads(1)
torch.set_flush_denormal(True)

_spec = importlib.util.spec_from_file_location("golden_generator", DATA / "generator.py")
assert _spec is not None and _spec.loader is not None
_generator = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_generator)


class Goldens:
    """The recorded numbers of the official code, and the weights and inputs they were made with."""

    generator = _generator
    index = json.loads((DATA / "golden/index.json").read_text())
    windows = json.loads((DATA / "golden/windows.json").read_text())
    manifest = json.loads((DATA / "tiny_manifest.json").read_text())

    def arrays(self, name: str) -> dict[str, torch.Tensor]:
        """Return the arrays of one golden file as tensors (arrays of names are left out)."""
        with np.load(DATA / "golden" / f"{name}.npz") as file:
            return {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind != "U"}

    def names(self, name: str, key: str) -> list[str]:
        """Return an array of names of one golden file."""
        with np.load(DATA / "golden" / f"{name}.npz") as file:
            return [str(x) for x in file[key]]

    def randn(self, name: str, shape: tuple[int, ...] | list[int]) -> torch.Tensor:
        """Return the drawn input ``name``."""
        return torch.from_numpy(_generator.randn(INPUT_SEED, name, shape))

    def weight(self, key: str, shape: tuple[int, ...] | list[int]) -> torch.Tensor:
        """Return the drawn weight ``key``."""
        return torch.from_numpy(np.asarray(_generator.weight(WEIGHT_SEED, key, shape)))

    def fill(self, module: torch.nn.Module, prefix: str) -> None:
        """Set every parameter of ``module`` to the drawn weight of its full key."""
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(self.weight(prefix + name, tuple(parameter.shape)))


@pytest.fixture(scope="session")
def goldens() -> Goldens:
    return Goldens()


@pytest.fixture
def close() -> Callable[..., None]:
    """Return a comparison of two tensors by their largest absolute difference."""

    def compare(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
        assert actual.shape == expected.shape, (actual.shape, expected.shape)
        error = (actual.double() - expected.double()).abs().max().item()
        assert error <= tolerance, f"max difference {error:.3g} > {tolerance:.3g}"

    return compare
