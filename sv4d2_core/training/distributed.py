"""Several processes that train one model, started by ``torchrun``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed as dist


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that ``torchrun`` started, if it did, and yield this process's device.

    On CUDA every process takes the GPU of its own number; CPUs talk through gloo.
    """
    if "LOCAL_RANK" not in os.environ or not dist.is_available():
        yield device
        return
    cuda = device.type == "cuda"
    if cuda:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank_and_size() -> tuple[int, int]:
    """Return the number of this process and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_first_process() -> bool:
    """Return whether this process writes the files."""
    return rank_and_size()[0] == 0


def any_process(answer: bool) -> bool:
    """Return whether any process answers yes; all must ask, and all hear the same."""
    if rank_and_size()[1] == 1:
        return answer
    answers = torch.tensor(float(answer), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(answers, dist.ReduceOp.MAX)
    return bool(answers)


def wait_for_all() -> None:
    """Return when all processes have come here."""
    if rank_and_size()[1] > 1:
        dist.barrier()
