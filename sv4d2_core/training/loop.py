"""One loop for everything that is trained: steps, learning rate, several processes, resumption."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..diffusion.safetensors_stream import write_safetensors
from ..scene.config import Settings, setting
from ..stored import read_tensors
from .weights import Weights


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join ``torchrun``'s processes, if any, and yield this one's device, on CUDA the GPU of its number."""
    if "LOCAL_RANK" not in os.environ or not dist.is_available():
        yield device
        return
    cuda = device.type == "cuda"
    if cuda:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # The first process draws and writes for long while the others wait; torchrun ends all when one dies.
    backend = "nccl" if cuda and dist.is_nccl_available() else "gloo"  # Windows has no NCCL
    dist.init_process_group(backend, timeout=timedelta(days=1))
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank_and_size() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_first_process() -> bool:
    """Return whether this process writes the files."""
    return rank_and_size()[0] == 0


def any_process(answer: bool) -> bool:
    """Return whether any process answers yes; all must ask, and all wait for the last."""
    if rank_and_size()[1] == 1:
        return answer
    answers = torch.tensor(float(answer), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(answers, dist.ReduceOp.MAX)
    return bool(answers)


_FORMAT = "sv4d2.training"
_LAST_RATE = 0.02


@dataclass(frozen=True)
class LoopConfig(Settings):
    """How a network is trained. Raises ValueError for a field out of its range."""

    steps: int = setting(0, "in all", least=0)
    learning_rate: float = setting(
        1e-3, "the highest; it warms up linearly and falls along a cosine to a fiftieth", above=0, most=1
    )
    warm_up: int = setting(100, "steps", least=0)
    weight_decay: float = setting(0.01, "of matrices and kernels", least=0)
    clip: float = setting(1.0, "longest gradient", above=0)
    average: float = setting(
        0.999, "decay of the weights' running average, which is kept in the end", least=0, most=0.9999
    )

    def rate(self, step: int, share: float) -> float:
        """Return the learning rate of a step, which begins after a share of all steps or of all time."""
        warm = min(1.0, (step + 1) / max(1, self.warm_up))
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, share))
        return self.learning_rate * warm * (_LAST_RATE + (1 - _LAST_RATE) * cosine)


@dataclass(frozen=True)
class Progress:
    """What a callback learns after each step."""

    step: int
    total: int  # estimated where the time decides
    losses: list[float]  # [step] of all steps so far, means over the processes
    save: Callable[[Path], None]  # writes the state to a file
    averaged: Callable[[], AbstractContextManager[None]]  # the average is in the network while a block runs


def train(
    network: nn.Module,  # called with a batch it returns the loss
    batches: Callable[[int], Any],  # by the step's number alone, so that a resumed training sees the same
    config: LoopConfig,
    *,
    dtype: torch.dtype = torch.float32,  # of the arithmetic; the result is float32
    fingerprint: str = "",  # of everything that decides the result
    seconds: float | None = None,  # to train for, instead of the steps; those before an interruption count
    began: float | None = None,  # `time.monotonic` from which they count (default: now)
    state: Path | None = None,  # file of `Progress.save` to go on from, if it exists
    callback: Callable[[Progress], None] | None = None,  # after each step; may raise to stop
) -> list[float]:
    """Train what requires gradients, leave the weights' average in the network, return each step's loss.

    With ``torch.distributed``, every process has batches of its own, and all keep the same weights. Raises
    ValueError where the loss is not finite or the state belongs to another training.
    """
    weights = Weights(network, dtype, config.weight_decay, config.average)
    losses: list[float] = []
    began = time.monotonic() if began is None else began
    if state is not None and state.exists():
        tensors, header = read_tensors(state, _FORMAT, mapped=True)
        if header.get("fingerprint") != fingerprint:
            raise ValueError(
                f"{state} belongs to a training with other data, settings or number of processes. Give those "
                f"of that training, or another folder."
            )
        weights.load(tensors)
        losses = tensors["losses"].tolist()
        del tensors  # the file is replaced soon
        began -= header.number("seconds") if seconds is not None else 0.0
    n_processes = rank_and_size()[1]
    parallel = DistributedDataParallel(network) if n_processes > 1 else network

    def save(path: Path) -> None:
        # Written tensor by tensor: the state of a full-size model does not fit into memory twice.
        tensors = {**weights.tensors(), "losses": torch.tensor(losses, dtype=torch.float32)}
        kinds = {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}
        metadata = {_FORMAT: json.dumps({"fingerprint": fingerprint, "step": len(losses)} | spent())}
        write_safetensors(path, kinds, lambda key: tensors[key].detach().cpu(), metadata, overwrite=True)

    def spent() -> dict[str, float]:
        return {} if seconds is None else {"seconds": time.monotonic() - began}

    def done() -> float:
        if seconds is not None:
            return spent()["seconds"] / seconds
        return len(losses) / config.steps if config.steps else 1.0

    def check_finite(value: float, what: str) -> None:
        if not math.isfinite(value):
            raise ValueError(
                f"The training diverged: in step {len(losses)} {what} is {value}. Check the data, or start "
                f"anew with a lower learning rate (it is {config.learning_rate:g}) or --dtype fp32."
            )

    share = done()
    while share < 1 or (seconds is not None and not losses):
        step = len(losses)
        loss = parallel(batches(step))
        loss.backward()
        mean = loss.detach().float()
        if n_processes > 1:
            dist.all_reduce(mean)
            mean /= n_processes
        length = weights.step(step, config.rate(step, share), config.clip)
        check_finite(float(mean), "the loss")
        check_finite(length, "the gradient's length")
        losses.append(float(mean))
        share = done()
        if callback is not None:
            total = config.steps if seconds is None else max(step + 1, math.ceil((step + 1) / share))
            callback(Progress(step + 1, total, losses, save, weights.averaged))
    weights.use_average()
    return losses
