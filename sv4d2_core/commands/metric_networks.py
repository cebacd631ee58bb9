"""The networks of LPIPS, CLIP-S and FVD out of local files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..diffusion.clip_file import load_clip_vision
from ..metrics.evaluate import Networks
from ..metrics.i3d import I3D
from ..metrics.lpips import LPIPS
from .machine import choose_device

# Images that the CLIP tower takes at once.
_CLIP_BATCH = 8


def load_networks(lpips: Path | None, clip: Path | None, i3d: Path | None, device: str = "auto") -> Networks:
    """Return the networks in local files, ready to run on a device.

    Raises:
        FileNotFoundError, ValueError: a file that is not there or holds something else.
    """
    place = choose_device(device)
    return Networks(
        lpips=None if lpips is None else LPIPS(lpips, place),
        clip=None if clip is None else _embedder(clip, place),
        i3d=None if i3d is None else I3D(i3d, place),
    )


def _embedder(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    tower = load_clip_vision(path, torch.float32, device)

    @torch.no_grad()
    def embed(images: Tensor) -> Tensor:
        """Return embeddings [N, D] of images [N, H, W, 3] in 0..1."""
        batches = images.movedim(-1, 1).split(_CLIP_BATCH)
        return torch.cat([tower(batch.to(device) * 2 - 1).float().cpu() for batch in batches])

    return embed
