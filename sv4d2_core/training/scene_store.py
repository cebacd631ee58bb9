"""Scenes on disk as 8-bit pictures, made ahead by other processes while training runs."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..cameras import Cameras
from ..tensor_file import read_tensors, write_tensors
from ..views import ViewGrid
from ..whole_file import write_whole

_FORMAT = "sv4d2.training_scene"
_SETTINGS = "scenes.json"
# Characters of the settings in a message.
_LONGEST = 200


class SceneSource(Protocol):
    """Where scenes come from; sent to other processes, so plain data."""

    def scene(self, index: int) -> ViewGrid:
        """Return scene ``index``, the same at every call."""
        ...


@dataclass(frozen=True)
class SceneStore:
    """The scenes of a source in a folder, each made when it is first wanted.

    Args:
        folder: belongs to the store.
        source: makes a scene.
        settings: JSON values that tell this source from others.
        keeps: False makes a scene at every reading, where pictures would fill the disk and are read once.
        workers: the processes of `made_ahead`.
    """

    folder: Path
    source: SceneSource
    settings: dict
    keeps: bool = True
    workers: list[BaseProcess] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / _SETTINGS
        if not file.exists():
            write_whole(file, json.dumps(self.settings, indent=1).encode())
        elif (found := json.loads(file.read_text())) != self.settings:
            raise ValueError(
                f"Expected scenes of the same source in {self.folder}; those there are made with "
                f"{_short(found)}, not {_short(self.settings)}. Choose another folder."
            )

    def path(self, index: int) -> Path:
        """Return the file of a scene, there or not."""
        return self.folder / f"{index:08d}.safetensors"

    def make(self, index: int) -> None:
        """Write a scene's file, unless it is there."""
        if self.path(index).exists():
            return
        images, cameras = self._made(index)
        write_tensors(self.path(index), _FORMAT, {"images": images}, {"cameras": cameras.to_json()})

    def _made(self, index: int) -> tuple[Tensor, Cameras]:
        grid = self.source.scene(index)
        return (grid.images * 255).round().to(torch.uint8), grid.cameras

    def read(self, index: int) -> tuple[Tensor, Cameras]:
        """Return pictures [F, C, H, W, 3] uint8 of a scene and its C cameras; made here if nobody did.

        Workers go in order and may come to a late scene last of all, so nobody waits for them.
        """
        if not self.keeps:
            return self._made(index)
        self.make(index)
        tensors, header = read_tensors(self.path(index), _FORMAT)
        return tensors["images"], Cameras.from_json(header["cameras"])

    @contextmanager
    def made_ahead(self, n_scenes: int, n_workers: int) -> Iterator[None]:
        """Let other processes make the first scenes in order, as long as the block runs."""
        context = multiprocessing.get_context("spawn")
        plain = replace(self, workers=[])
        for k in range(n_workers if self.keeps else 0):
            arguments = (plain, k, n_workers, n_scenes)
            self.workers.append(context.Process(target=_make_every, args=arguments, daemon=True))
            self.workers[-1].start()
        try:
            yield
        finally:
            for worker in self.workers:
                worker.terminate()
                worker.join()
            self.workers.clear()
            # Without workers, what is being written belongs to another process.
            for left in self.folder.glob(".*.part") if n_workers else ():
                left.unlink(missing_ok=True)


def _short(settings: dict) -> str:
    text = json.dumps(settings)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _make_every(store: SceneStore, first: int, stride: int, n_scenes: int) -> None:
    # Ctrl-C reaches all processes of a terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    for index in range(first, n_scenes, stride):
        # A killed parent takes no care of its children.
        if parent is not None and not parent.is_alive():
            return
        store.make(index)
