"""The networks that metrics need: files in the model folder sv4d2_metrics, and a CLIP vision model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from torch import Tensor

from ..sv4d2_core.metrics.evaluate import Networks
from ..sv4d2_core.metrics.frechet import I3D, I3D_HELP
from ..sv4d2_core.metrics.lpips import LPIPS, LPIPS_HELP

NONE = "none"

_FOLDER = "sv4d2_metrics"
_LPIPS, _I3D = ".safetensors", ".pt"
# Images per call of a network: a job can be cancelled between two calls.
_BATCH = 4
# What the networks and their activations take at most on large images, bytes.
_ROOM = 2 * 2**30


def register_folder() -> None:
    """Tell the host about models/sv4d2_metrics; doing so again changes nothing."""
    folder_paths.add_model_folder_path(_FOLDER, str(Path(folder_paths.models_dir) / _FOLDER))
    # A folder that extra_model_paths.yaml or the line above has named first knows no extensions.
    places, _ = folder_paths.folder_names_and_paths[_FOLDER]
    folder_paths.folder_names_and_paths[_FOLDER] = (places, {_LPIPS, _I3D})


def lpips_choices() -> list[str]:
    """Return the files that may hold LPIPS weights, and before them "none"."""
    return _choices(_LPIPS)


def i3d_choices() -> list[str]:
    """Return the files that may hold the I3D network, and before them "none"."""
    return _choices(_I3D)


def host_networks(lpips: str, i3d: str, clip_vision: Any) -> Networks:
    """Return the networks that were chosen, on the host's device.

    Args:
        lpips, i3d: names of files in the model folder, or "none".
        clip_vision: CLIP_VISION, or None.

    Raises:
        FileNotFoundError: there is no such file in the model folder.
        ValueError: a file or a model of another kind.
    """
    device = comfy.model_management.get_torch_device()
    if (lpips, i3d) != (NONE, NONE):
        comfy.model_management.free_memory(_ROOM, device)
    return Networks(
        lpips=None if lpips == NONE else _in_batches(LPIPS(_file(lpips, LPIPS_HELP), device)),
        clip=None if clip_vision is None else _in_batches(_embedder(clip_vision)),
        i3d=None if i3d == NONE else _in_batches(I3D(_file(i3d, I3D_HELP), device)),
    )


def _choices(suffix: str) -> list[str]:
    files = folder_paths.get_filename_list(_FOLDER)
    return [NONE, *(name for name in files if Path(name).suffix.lower() == suffix)]


def _file(name: str, help_text: str) -> Path:
    path = folder_paths.get_full_path(_FOLDER, name)
    if path is None:
        places = " or ".join(folder_paths.get_folder_paths(_FOLDER))
        raise FileNotFoundError(
            f"Expected {name} in the model folder models/{_FOLDER} ({places}); it is not there. Put it there "
            f"and press R, or choose {NONE}. {help_text}"
        )
    return Path(path)


def _embedder(clip_vision: Any) -> Callable[[Tensor], Tensor]:
    """Return what makes embeddings [N, D] of images [N, H, W, 3], prepared by the host's own rules."""
    if not hasattr(clip_vision.model, "visual_projection"):
        raise ValueError(
            f"Expected a CLIP vision model for CLIP-S; got {type(clip_vision.model).__name__}, whose "
            f"embeddings are no CLIP's. Connect clip_vision of SV4D2 Load Checkpoint or of Load CLIP Vision."
        )
    return lambda images: clip_vision.encode_image(images).image_embeds.float()


def _in_batches(network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a network that takes few images or clips at once and lets the user cancel in between."""

    @torch.no_grad()
    def call(*inputs: Tensor) -> Tensor:
        outputs = []
        for batch in zip(*(tensor.split(_BATCH) for tensor in inputs), strict=True):
            comfy.model_management.throw_exception_if_processing_interrupted()
            outputs.append(network(*batch).cpu())
        return torch.cat(outputs)

    return call
