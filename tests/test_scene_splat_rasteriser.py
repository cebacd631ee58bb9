"""Which rasteriser draws Gaussians: never one that would start a compiler."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import logging
import sys

import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.scene import splatting
from sv4d2_core.scene.splatting import rasteriser, splat

GAUSSIANS = (torch.zeros(2, 3), torch.ones(2, 4), torch.ones(2, 3), torch.ones(2), torch.ones(2, 3))


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Return a function that pretends packages, which must never be imported, and hides all others."""

    def install(*files: str) -> None:
        for file in files:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text("raise AssertionError('imported')")
        real = importlib.util.find_spec
        own = {file.split("/")[0] for file in files}
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: real(name) if name in own else None)

    for name in ("gsplat", "triton"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    splatting._rasteriser.cache_clear()
    yield install
    splatting._rasteriser.cache_clear()


CUDA, CPU = torch.device("cuda"), torch.device("cpu")
EXTENSION = f"gsplat/csrc{importlib.machinery.EXTENSION_SUFFIXES[-1]}"
GSPLAT, TRITON = "gsplat/__init__.py", "triton/__init__.py"


@pytest.mark.parametrize(
    ("device", "files", "expected"),
    [
        (CPU, (GSPLAT, EXTENSION, TRITON), "torch"),
        (CUDA, (GSPLAT, EXTENSION, TRITON), "gsplat"),
        (CUDA, (GSPLAT, TRITON), "triton"),
        (CUDA, (TRITON,), "triton"),
        (CUDA, (GSPLAT,), "torch"),
        (CUDA, (), "torch"),
    ],
)
def test_the_rasteriser_needs_no_compiler_and_is_named_once(packages, caplog, device, files, expected):
    packages(*files)
    with caplog.at_level(logging.INFO, logger=splatting.__name__):
        assert rasteriser(device) == rasteriser(device) == expected
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        f"Gaussians are drawn by {expected}"
    ]


@pytest.mark.parametrize("backend", ["triton", "gsplat"])
def test_a_rasteriser_that_is_not_installed_says_so(packages, backend):
    packages()
    with pytest.raises(RuntimeError, match=f"needs the package {backend}, which is not installed"):
        splat(*GAUSSIANS, Cameras.ring(4), 0, 8, backend=backend)
