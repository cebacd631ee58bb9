"""Which rasteriser draws Gaussians: Triton only where a first tiny picture of it is right."""

import importlib.util
import logging
import sys
import types
from contextlib import contextmanager

import pytest
import torch

from sv4d2_core.scene.gaussians import splatting
from sv4d2_core.scene.gaussians.splat_torch import TileLists, composite_torch
from sv4d2_core.scene.gaussians.splatting import rasteriser, triton_fault

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
KERNELS = "sv4d2_core.scene.gaussians.splat_triton"


@pytest.fixture(autouse=True)
def forgetful():
    rasteriser.cache_clear()
    yield
    rasteriser.cache_clear()


def pretend(monkeypatch, composite):
    """Let the package triton be there, and its kernels do this."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "triton" else None)
    module = types.SimpleNamespace(composite_triton=composite)
    monkeypatch.setitem(sys.modules, KERNELS, module)


def no_compiler(*_):
    raise RuntimeError("Failed to find C compiler.\nPlease specify via CC.")


def out_of_memory(*_):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("composite", "fault"),
    [
        (composite_torch, None),
        (no_compiler, "RuntimeError: Failed to find C compiler."),
        (lambda *args: composite_torch(*args) + 0.1, "its picture or gradient is wrong"),
        (lambda splats, lists: composite_torch(splats.detach(), lists), "RuntimeError: element 0"),
    ],
)
def test_a_first_tiny_picture_says_whether_triton_works(monkeypatch, composite, fault):
    pretend(monkeypatch, composite)
    # Scenes are rendered where nothing has gradients; the kernels of the gradient are tried all the same.
    with torch.inference_mode():
        found = triton_fault(CPU)
    assert found is None if fault is None else found.startswith(fault)


def test_running_out_of_memory_is_no_fault_of_triton(monkeypatch):
    pretend(monkeypatch, out_of_memory)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        triton_fault(CPU)


@pytest.mark.parametrize(
    ("device", "installed", "fault", "expected", "said"),
    [
        (CPU, True, None, "torch", "the device is cpu"),
        (CUDA, True, None, "triton", "drawn by triton"),
        (CUDA, True, "RuntimeError: no gcc", "torch", "(RuntimeError: no gcc). It needs a C compiler"),
        (CUDA, False, None, "torch", "installing the package triton"),
    ],
)
def test_the_rasteriser_is_chosen_and_named_once(
    monkeypatch, caplog, device, installed, fault, expected, said
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(splatting, "triton_fault", lambda _: fault)
    with caplog.at_level(logging.INFO, logger=splatting.__name__):
        assert rasteriser(device) == rasteriser(device) == expected
    assert len(caplog.records) == 1 and said in caplog.text


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch):
    """With a stand-in for the package, as the current device matters only where there are several."""
    current, launches = [], []

    class Kernel:
        def __init__(self, function):
            self.name = function.__name__

        def __getitem__(self, grid):
            return lambda *args, **constants: launches.append((self.name, current[-1]))

    triton, language = types.ModuleType("triton"), types.ModuleType("triton.language")
    vars(triton).update(jit=Kernel, language=language)
    monkeypatch.setitem(sys.modules, "triton", triton)
    monkeypatch.setitem(sys.modules, "triton.language", language)
    monkeypatch.delitem(sys.modules, KERNELS, raising=False)

    @contextmanager
    def device_of(tensor):
        current.append(tensor.data_ptr())
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    from sv4d2_core.scene.gaussians.splat_triton import composite_triton

    splats = torch.ones(1, 10, requires_grad=True)
    composite_triton(splats, TileLists(8, torch.tensor([0]), torch.tensor([0, 1]))).sum().backward()
    assert launches == [("_forward", splats.data_ptr()), ("_backward", splats.data_ptr())]
    monkeypatch.delitem(sys.modules, KERNELS)
