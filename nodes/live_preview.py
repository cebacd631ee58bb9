"""Progress of a job in ComfyUI's bar, with a picture of all views while they take shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.utils
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..sv4d2_core.video.pictures import pick_frames, to_bytes
from .preview import live_preview

_FRAMES = 6


def progress_with_preview(latent_format: Any, n_views: int) -> Callable[[int, int, Tensor | None], None]:
    """Return a callback of the core's pipeline that moves the bar of the running node.

    Args:
        latent_format: the host's description of the latents, with a rough map to colours.
        n_views: V of a window.
    """
    bar = None

    def callback(step: int, total: int, latents: Tensor | None) -> None:
        nonlocal bar
        bar = bar or comfy.utils.ProgressBar(total)
        bar.update_absolute(
            step, total, live_preview(lambda: latent_picture(latents, n_views, latent_format))
        )

    return callback


def latent_picture(latents: Tensor | None, n_views: int, latent_format: Any) -> Image.Image | None:
    """Return a picture of denoised latents [T * V, 4, h, w]: a row per view, a column per shown frame.

    None without latents, and where the host has no map of them to colours.
    """
    if latents is None or latent_format.latent_rgb_factors is None:
        return None
    grid = rearrange(latents, "(t v) c h w -> t v h w c", v=n_views)
    shown = grid[pick_frames(len(grid), _FRAMES)].float()
    factors = torch.tensor(latent_format.latent_rgb_factors).to(shown)
    bias = torch.tensor(getattr(latent_format, "latent_rgb_factors_bias", None) or [0.0, 0.0, 0.0]).to(shown)
    colours = (shown @ factors + bias + 1) / 2
    return Image.fromarray(to_bytes(rearrange(colours, "t v h w c -> (v h) (t w) c")))
