"""What one call computes, needs and takes: floating-point operations, peak memory, seconds."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def flops(call: Callable[[], Any]) -> int:
    """Return the floating-point operations of the matrix products, convolutions and attention of ``call``."""
    # PyTorch's counter does not know the kernels of the CPU.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    attention = {kernel: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        call()
    return counter.get_total_flops()


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Return the peak of the memory that ``call`` allocates, in bytes; what exists before does not count.

    On a CPU the allocator's own record, which includes the buffers inside of operations.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events), default=0)


def clock(device: torch.device) -> float:
    """Return the time in seconds at which the device has done all work that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Return the time of one call."""
    start = clock(device)
    call()
    return clock(device) - start


def matrix_product_rate(device: torch.device, dtype: torch.dtype, size: int, repeats: int = 20) -> float:
    """Return the best rate of a square matrix product, in floating-point operations per second."""
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(repeats))


def interval(values: Tensor, n: int = 10_000) -> tuple[float, float]:
    """Return the middle 95 % of the mean of values [N] under resampling."""
    generator = torch.Generator().manual_seed(0)
    means = values[torch.randint(len(values), (n, len(values)), generator=generator)].mean(1)
    low, high = torch.quantile(means.double(), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
