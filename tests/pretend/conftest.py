"""Shared by the tests on a pretend device, which run on a real one with `-m gpu`."""

import pytest
import torch
from pretend.cuda import PretendCuda

from sv4d2_core.diffusion import sampling
from sv4d2_core.scene import kernels

REAL = torch.cuda.is_available()
real_device = pytest.mark.skipif(not REAL, reason="there is no CUDA device")
no_real_device = pytest.mark.skipif(REAL, reason="the CUDA device is a real one")
KINDS = [
    pytest.param("pretend", marks=no_real_device),
    pytest.param("real", marks=[pytest.mark.gpu, real_device]),
]


@pytest.fixture(params=KINDS)
def cuda(request):
    """Return a device of 8 GiB, without float64 as Apple's, where PyTorch draws; None: a real one."""
    if request.param == "real":
        torch.cuda.reset_peak_memory_stats()
        yield None
        return
    with PretendCuda(gib=8, float64=False) as device, pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "by_triton", lambda *_: False)
        yield device


def pytest_collection_modifyitems(items):
    """Leave out what is about the pretend device alone where there is a real one."""
    for item in items:
        if "tests/pretend" in item.path.as_posix() and "cuda" not in item.fixturenames:
            item.add_marker(no_real_device)


@pytest.fixture
def alike(cuda):
    """Return a comparison of what a device made with what the CPU made; a real one rounds in its own way."""

    def compare(made, expected, largest, rms):
        """Compare by the largest difference, or on a real device by the root mean square."""
        assert made.shape == expected.shape
        error = (made - expected).double()
        if cuda is None:
            assert error.square().mean().sqrt() <= rms
        else:
            assert error.abs().max() <= largest

    return compare


@pytest.fixture
def no_waits(monkeypatch):
    """Let what makes the CPU wait for the device inside the sampling loop raise."""

    def guarded(sample):
        def sampled(*arguments):
            torch.cuda.set_sync_debug_mode("error")
            try:
                return sample(*arguments)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return sampled

    for name, sample in sampling.SAMPLERS.items():
        monkeypatch.setitem(sampling.SAMPLERS, name, guarded(sample))
