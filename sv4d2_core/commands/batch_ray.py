"""Shares the clips of a batch among the GPUs of a Ray cluster, one process (actor) for each."""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from .batch_worker import Make, Outcome, Worker

log = logging.getLogger(__name__)

# Every actor sees its own GPU alone, as the first.
_DEVICES = ("auto", "cpu", "cuda")


class RayWorker:
    """A `Worker` in a process of a Ray cluster, which reads and writes the same paths as the command.

    Args:
        folder: the command's working directory.
        threads: of the command's PyTorch, on which the last bits of results on a CPU depend.
    """

    def __init__(self, folder: str, threads: int) -> None:
        os.chdir(folder)
        torch.set_num_threads(threads)
        self._worker = Worker()

    def make(self, args: Namespace) -> Outcome:
        """Make the views of a clip; return how it went."""
        return self._worker.make(args)


@contextmanager
def on_ray(device: str, actors: int | None, largest: int) -> Iterator[Make]:
    """Yield what makes clips on a Ray cluster, whose processes end with the block.

    The cluster is the one that ``RAY_ADDRESS`` names or that runs on this machine, else one on this machine
    for the time of the block.

    Args:
        device: the option of `sv4d2 views`.
        actors: how many processes; None is one per GPU. Where there are no GPUs, each takes a CPU core.
        largest: as many processes are of use.

    Raises:
        ValueError: Ray is not installed or does not start, no GPUs and no ``actors``, more actors than the
            cluster can hold.
    """
    if device not in _DEVICES:
        raise ValueError(f"Expected --device {', '.join(_DEVICES)} with --ray; got {device!r}.")
    ray = _import_ray()
    began = not ray.is_initialized()
    if began:
        _connect(ray)
    workers: list[Any] = []
    try:
        resources = ray.cluster_resources()
        # A progress bar per actor would drown what they have to say.
        quiet = {"env_vars": {"TQDM_DISABLE": "1"}}
        needs = needs_of_actor(resources, device, actors)
        remote = ray.remote(RayWorker).options(**needs, runtime_env=quiet)
        count = min(largest, actors or int(resources["GPU"]))

        def start() -> Any:
            workers.append(remote.remote(os.getcwd(), torch.get_num_threads()))
            return workers[-1]

        yield partial(_share, ray, start, count)
    except KeyboardInterrupt:
        log.warning("Finished clips and windows are kept; the same command continues.")
        raise
    finally:
        for worker in workers:
            ray.kill(worker)
        if began:
            ray.shutdown()


def _share(
    ray: Any, start: Callable[[], Any], count: int, clips: list[Namespace]
) -> Iterator[tuple[Namespace, Outcome]]:
    """Yield clips in the order in which they end; who has finished one is given the next."""
    idle, waiting = [start() for _ in range(count)], list(reversed(clips))
    busy: dict[Any, tuple[Any, Namespace]] = {}
    while waiting or busy:
        while waiting and idle:
            worker, clip = idle.pop(), waiting.pop()
            log.info("Clip %d of %d: %s", len(clips) - len(waiting), len(clips), clip.input)
            busy[worker.make.remote(clip)] = worker, clip
        [ended], _ = ray.wait(list(busy), num_returns=1)
        worker, clip = busy.pop(ended)
        try:
            outcome = ray.get(ended)
        except ray.exceptions.RayError as error:
            # The process died, for example because the machine ran out of memory. Ray's own restart would
            # refuse the next clips until it is there again.
            outcome = Outcome(0.0, f"The worker failed ({type(error).__name__}): {error}")
            ray.kill(worker)
            worker = start()
        idle.append(worker)
        yield clip, outcome


def needs_of_actor(resources: dict[str, float], device: str, actors: int | None) -> dict[str, int]:
    """Return what one actor takes of a cluster: a GPU where there are some, else a CPU core.

    Args:
        resources: of the cluster.
        device: the option, ``auto``, ``cpu`` or ``cuda``.
        actors: how many, or None for one per GPU.

    Raises:
        ValueError: the cluster cannot hold them.
    """
    cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    on_gpus = gpus > 0 and device != "cpu"
    if not on_gpus and (actors is None or device == "cuda"):
        raise ValueError(
            f"Expected a Ray cluster with GPUs for --device {device}; got {cores} CPU cores only. Give "
            f"--actors N and --device cpu to use N of them, or leave --ray out."
        )
    kind, there = ("GPU", gpus) if on_gpus else ("CPU", cores)
    if actors is not None and actors > there:
        raise ValueError(
            f"Expected at most {there} --actors, one per {kind} of the Ray cluster; got {actors}."
        )
    return {"num_gpus": int(on_gpus), "num_cpus": 1}


def _import_ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            "Expected the package ray for --ray; it is not installed. Install the extra ray "
            '(pip install ".[ray]" or pip install ray), or leave --ray out.'
        ) from error
    return ray


def _connect(ray: Any) -> None:
    """Connect to a cluster, or start one. Raises ValueError with Ray's reason where neither works."""
    # Nothing is reported to anybody unless the user says so.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(include_dashboard=False, logging_level=logging.WARNING)
    except Exception as error:
        raise ValueError(
            f"Expected a Ray cluster; Ray could neither reach nor start one ({error}). Try again, set "
            f"RAY_ADDRESS, or leave --ray out."
        ) from error
