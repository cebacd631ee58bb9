"""Shared by the tests on a pretend device."""

import pytest
import torch
from pretend.cuda import PretendCuda

from sv4d2_core.diffusion import sampling
from sv4d2_core.scene.gaussians import splatting


@pytest.fixture
def cuda():
    """Return a device of 8 GiB, without float64 as Apple's; Gaussians are drawn by PyTorch."""
    with PretendCuda(gib=8, float64=False) as device, pytest.MonkeyPatch.context() as patch:
        patch.setattr(splatting, "rasteriser", lambda device: "torch")
        yield device


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
