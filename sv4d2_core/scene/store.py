"""Scene files of any kind are loaded; the state of an interrupted fit is saved and loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cameras import Cameras
from ..messages import cut
from ..stored import Tensors, read_tensors, write_tensors
from ..views import ViewGrid
from .config import RefineConfig
from .dynerf.dynerf import DyNeRF
from .dynerf.planes import tiny_scene
from .gaussians.gaussians import Gaussians
from .geometry.placement import ObjectPath
from .kernels import scene_device
from .scene import SCENE_FORMAT, SCENE_VERSION, Scene4D
from .tracking.motion import Motion

_FORMAT = "sv4d2.fit"


@dataclass(frozen=True)
class FitState:
    """The state of a fit between two steps; a fit resumed from it gives the same bits on the same machine."""

    step: int  # steps done
    fingerprint: str  # of the views, the settings and the models
    tensors: dict[str, Tensor]  # scene, optimiser, generator, losses, targets of a round of the second stage
    cameras: Cameras | None = None  # of these targets; None in the first stage
    total_steps: int = 0  # of the fit

    def save(self, path: str | Path) -> None:
        """Write the state to a file, which appears complete or not at all."""
        header = {key: getattr(self, key) for key in ("step", "fingerprint", "total_steps")}
        header["cameras"] = None if self.cameras is None else self.cameras.to_json()
        write_tensors(path, _FORMAT, self.tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> FitState:
        """Return the state that `save` wrote; FileNotFoundError, or ValueError for a damaged file."""
        tensors, header = read_tensors(path, _FORMAT)
        cameras = Cameras.from_json(header.object("cameras")) if header.has("cameras") else None
        total = header.count("total_steps", 0, 2**31)  # of phases that may each have a million
        return cls(header.count("step", 0, total), header.text("fingerprint"), tensors, cameras, total)


def fit_fingerprint(
    views: ViewGrid,
    config: RefineConfig,
    normals: Tensor | None = None,
    perceptual: bool = False,
    identity: dict[str, Any] | None = None,  # of the models; without it the hash is that of older versions
) -> str:
    """Return a hash of what decides a fit's result, without the memory budget: it may go on with less."""
    plain = [
        asdict(replace(config, memory_gb=0.0)),
        perceptual,
        views.cameras.to_json(),
        list(views.frame_times()),
        list(views.images.shape),
        *([identity] if identity else []),
    ]
    digest = hashlib.sha256(json.dumps(plain).encode())
    for tensor in (views.images, views.masks, normals):
        if tensor is not None:
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def load_scene(path: str | Path, device: torch.device | str = "cpu") -> Scene4D:
    """Return the scene that a file holds; FileNotFoundError, or ValueError for one that cannot be read."""
    tensors, header = read_tensors(path, SCENE_FORMAT)
    readers = {DyNeRF.backend: DyNeRF.from_tensors, Gaussians.backend: Gaussians.from_tensors}
    backend = header.text("backend")
    if backend not in readers or header.get("version") != SCENE_VERSION:
        raise ValueError(
            f"Expected a scene of backend {' or '.join(readers)}, version {SCENE_VERSION}; {path} holds "
            f"backend {cut(repr(backend))}, version {cut(header.get('version'))}. Use the version of this "
            f"program that wrote it."
        )
    moving = tensors.under("motion.")
    own = {key: tensor for key, tensor in tensors.items() if not key.startswith("motion.")}
    device = scene_device(torch.device(device), tiny_scene)
    scene = readers[backend](Tensors(own, tensors.place), header, device)
    if any(a >= b for a, b in pairwise(scene.times)):
        raise header.wrong("times", "rising times, each once,")
    if header.has("motion"):
        scene.motion = Motion.from_tensors(moving, header.object("motion"), scene.n_frames)
    scene.path = ObjectPath.from_json(header.object("path")) if header.has("path") else None
    scene.fit = dict(header.object("fit")) if header.has("fit") else None
    scene.knows_world = header.has("knows_world") and header.flag("knows_world")
    return scene
