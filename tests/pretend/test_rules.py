"""The pretend device keeps CUDA's rules: planted faults are reported with their line, memory is counted."""

import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from pretend.cuda import PretendCuda
from torch import nn
from torch.nn import functional as F

HERE = "tests/pretend/test_rules.py"


def without_a_guard():
    """Work for the second device, as a kernel's launcher would that forgets `torch.cuda.device_of`."""
    x = torch.ones(3, device="cuda:1")
    return x + torch.empty(3, device="cuda")  # fault


def with_a_guard():
    x = torch.ones(3, device="cuda:1")
    with torch.cuda.device_of(x):
        return x + torch.zeros(3, device="cuda")


def backward_on_another_device():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            return grad * torch.full(grad.shape, 2.0, device="cuda:1")  # fault

    Doubled.apply(torch.ones(3, device="cuda", requires_grad=True)).sum().backward()


def in_a_thread():
    failed = []

    def work():
        try:
            torch.ones(3, device="cuda") + torch.ones(3)  # fault
        except RuntimeError as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    raise failed[0]


def waits_in_a_loop():
    torch.cuda.set_sync_debug_mode("error")
    x = torch.arange(4.0, device="cuda")
    for i in range(4):
        x = x * 2 if x[i] > 1 else x  # fault


SAME, WAITS = "tensors to be on the same device", "synchronizing CUDA operation: "
FAULTS = {
    "mixed": (lambda x: x + torch.ones(3), RuntimeError, rf"{SAME}; add got cuda:0 \[3\], cpu \[3\]"),
    "two devices": (
        lambda x: x @ x.to("cuda:1"),
        RuntimeError,
        rf"{SAME}; dot got cuda:0 \[3\], cuda:1 \[3\]",
    ),
    "a number joined": (lambda x: torch.stack([x[0], torch.tensor(1.0)]), RuntimeError, SAME),
    "index of a device": (lambda x: torch.ones(3)[x.long()], RuntimeError, f"{SAME}; index got cpu"),
    "a layer's weights": (nn.Linear(3, 3), RuntimeError, SAME),
    "in backward": (lambda x: backward_on_another_device(), RuntimeError, f"{SAME}; mul"),
    "in a thread": (lambda x: in_a_thread(), RuntimeError, f"{SAME}; add"),
    "no guard": (lambda x: without_a_guard(), RuntimeError, rf"{SAME}; add got cuda:1 \[3\], cuda:0 \[3\]"),
    "no such device": (lambda x: x.to("cuda:2"), RuntimeError, "invalid device ordinal: cuda:2 of 2"),
    "numpy": (lambda x: x.numpy(), TypeError, "can't convert cuda:0 device type tensor to numpy"),
    "asarray": (lambda x: np.asarray(x), TypeError, "can't convert cuda:0"),
    "float64": (lambda x: x.double(), TypeError, r"no float64 on this device; got \[3\]"),
    "float64 made": (
        lambda x: torch.linspace(0, 1, 5, dtype=torch.float64, device="cuda"),
        TypeError,
        "float64",
    ),
    "float64 moved": (lambda x: torch.tensor([1.0], dtype=torch.float64).to(x.device), TypeError, "float64"),
    "generator": (
        lambda x: torch.randn(3, generator=torch.Generator(), device="cuda"),
        RuntimeError,
        "a generator of cuda:0; got one of cpu",
    ),
    "generator of a device": (
        lambda x: torch.rand(3, generator=torch.Generator("cuda:1")),
        RuntimeError,
        "a generator of cpu; got one of cuda:1",
    ),
    "pinned": (lambda x: x.pin_memory(), RuntimeError, "cannot pin cuda:0"),
    "memory": (
        lambda x: torch.empty(2**21, device="cuda"),
        torch.OutOfMemoryError,
        r"8\.00 MiB; 0\.00 of 4\.00",
    ),
    "waits": (lambda x: waits_in_a_loop(), RuntimeError, f"{WAITS}_local_scalar_dense"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_reported_with_its_line(name):
    fault, kind, message = FAULTS[name]
    with PretendCuda(devices=2, gib=2**-8, float64=False):
        with pytest.raises(kind, match=message) as caught:
            fault(torch.ones(3, device="cuda"))
    place = re.search(rf"at {re.escape(HERE)}:(\d+) ", str(caught.value))
    assert place is not None, caught.value
    line = Path(__file__).read_text().splitlines()[int(place[1]) - 1]
    assert "# fault" in line or "lambda x:" in line or "fault(torch.ones" in line, line


def test_what_cuda_allows_is_allowed():
    with PretendCuda(devices=2) as cuda:
        x = torch.arange(6.0, device="cuda")
        results = [
            x + torch.tensor(1.0),
            x[torch.tensor([0, 1])],
            x[x > 1],
            torch.zeros_like(x),
            torch.as_tensor(np.ones(2), device="cuda"),
            F.one_hot(x.long()),
            F.interpolate(x.view(1, 1, 2, 3), scale_factor=2),
            F.scaled_dot_product_attention(*[x.view(1, 1, 2, 3)] * 3),
            torch.quantile(x, 0.5),
            torch.empty(3).copy_(x[:3]).to(x),
            torch.randn(3, generator=torch.Generator("cuda"), device="cuda"),
        ]
        assert {r.device for r in results} == {x.device} and str(x.device) == "cuda:0" and x.is_cuda
        assert with_a_guard().device == torch.device("cuda", 1) and torch.cuda.current_device() == 0
        assert torch.zeros_like(x, device="cpu").is_cpu and x.cpu().is_cpu and x.cpu().numpy().sum() == 15
        weight = torch.ones(3, requires_grad=True)
        loss = (weight.to("cuda") * x[:3]).sum()
        loss.backward()
        assert weight.grad.is_cpu and weight.grad.tolist() == [0, 1, 2]
        layer = nn.Linear(6, 2).cuda()
        layer(x).sum().backward()
        torch.optim.Adam(layer.parameters(), fused=True).step()
        assert layer.weight.grad.is_cuda and layer.weight.is_cuda
        cuda.waits.clear()
        torch.ones(3).pin_memory().to("cuda", non_blocking=True) @ x[:3]
        assert not cuda.waits and torch.ones(3).pin_memory().is_pinned()
        for wait in (lambda: x.sum().item(), lambda: bool(x[0] > 0), lambda: x.cpu(), x.tolist, x.nonzero):
            wait()
        operators = [wait.operator for wait in cuda.waits]
        assert operators == ["_local_scalar_dense"] * 2 + ["a copy from cuda:0 to cpu"] * 2 + ["nonzero"]
        assert all(wait.lines[0].startswith(HERE) for wait in cuda.waits)
    assert x.is_cpu and not torch.cuda.is_available()


@pytest.mark.parametrize("compute", [True, False])
def test_memory_is_counted_until_the_last_view_of_it_is_gone(compute):
    mib = 2**20
    with PretendCuda(devices=2, gib=0.125, compute=compute):
        x = torch.ones(mib // 4, device="cuda", requires_grad=True)
        assert torch.cuda.memory_allocated() == mib and torch.cuda.memory_allocated(1) == 0
        loss = x.exp().exp().sum()  # both are kept for the gradient
        assert torch.cuda.memory_allocated() == 3 * mib + 512
        loss.backward()
        assert torch.cuda.memory_allocated() == 2 * mib + 512
        part = x.detach()[:10]
        x = loss = x.grad = None
        assert torch.cuda.memory_allocated() == mib
        del part
        assert torch.cuda.memory_allocated() == 0 and torch.cuda.max_memory_allocated() >= 4 * mib
        assert torch.cuda.mem_get_info() == (128 * mib, 128 * mib)
        layer = nn.Linear(256, 1024, bias=False)
        layer.to("cuda:1")
        assert torch.cuda.memory_allocated("cuda:1") == mib
        layer.to("cpu")
        assert torch.cuda.memory_allocated("cuda:1") == 0
        torch.cuda.set_per_process_memory_fraction(0.5)
        with pytest.raises(
            torch.cuda.OutOfMemoryError, match=r"allocate 65\.00 MiB; 0\.00 of 64\.00 MiB of cuda:0"
        ):
            torch.empty(65, mib, dtype=torch.uint8, device="cuda")
        assert torch.cuda.memory_allocated() == 0
