"""Classifier-free guidance with its own scale for every frame and view.

Source: specification section 6.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .config import GUIDANCE_SHAPES


def _triangle(n_views: int) -> Tensor:
    """Return a triangle wave over the views: 0 at the first and the last, 1 in the middle, [V]."""
    r = torch.arange(n_views, dtype=torch.float32) / max(1, n_views - 1)
    return 2 * (r - torch.floor(r + 0.5)).abs()


def guidance_table(shape: str, n_frames: int, n_views: int, cfg_min: float, cfg_max: float) -> Tensor:
    """Return the guidance scale of each frame and view, [T, V] float32.

    Args:
        shape: ``linear`` rises over the flattened (t v) order (official sv4d2), ``spatiotemporal`` is the
            mean of a rise over frames and a triangle over views (official sv4d2_8views), ``triangle`` is the
            triangle over views, ``constant`` is ``cfg_max`` everywhere.
        n_frames: T.
        n_views: V.
        cfg_min, cfg_max: range of the scale; ``constant`` does not use ``cfg_min``.

    Raises:
        ValueError: an unknown shape, or a range that is not finite and rising.
    """
    if shape == "constant":
        cfg_min = cfg_max
    if not (math.isfinite(cfg_min) and math.isfinite(cfg_max) and cfg_min <= cfg_max):
        raise ValueError(
            f"Expected a finite guidance range with minimum <= maximum; got {cfg_min:g} to {cfg_max:g}. "
            f"Give the smaller number first."
        )
    if shape == "linear":
        position = torch.linspace(0, 1, n_frames * n_views).view(n_frames, n_views)
    elif shape == "spatiotemporal":
        position = 0.5 * torch.linspace(0, 1, n_frames)[:, None] + 0.5 * _triangle(n_views)[None]
    elif shape == "triangle":
        position = _triangle(n_views).expand(n_frames, n_views)
    elif shape == "constant":
        position = torch.ones(n_frames, n_views)
    else:
        raise ValueError(f"Expected guidance shape {', '.join(GUIDANCE_SHAPES)}; got {shape!r}.")
    return cfg_min + (cfg_max - cfg_min) * position


def resolve_guidance(
    cfg: float | tuple[float, float] | Tensor | None,
    shape: str,
    n_frames: int,
    n_views: int,
    default_range: tuple[float, float],
) -> Tensor:
    """Return the table that a user's ``cfg`` asks for, [T, V].

    Args:
        cfg: None (the variant's own range), a number (constant), (min, max), or a table [T, V].
        shape: the variant's shape, used for ranges.
        n_frames, n_views: T and V of a window.
        default_range: the variant's (min, max).

    Raises:
        ValueError: a table of another shape, or values that are not finite.
    """
    if isinstance(cfg, Tensor):
        if tuple(cfg.shape) != (n_frames, n_views):
            raise ValueError(
                f"Expected a guidance table [{n_frames}, {n_views}] (frames, views); got {list(cfg.shape)}."
            )
        table = cfg.float()
    elif isinstance(cfg, (int, float)):
        table = guidance_table("constant", n_frames, n_views, float(cfg), float(cfg))
    elif cfg is not None and len(cfg) != 2:
        raise ValueError(f"Expected a guidance range (min, max); got {len(cfg)} values: {cfg}.")
    else:
        low, high = default_range if cfg is None else cfg
        table = guidance_table(shape, n_frames, n_views, float(low), float(high))
    if not table.isfinite().all():
        raise ValueError(f"Guidance scales must be finite numbers; got {cfg}.")
    return table


def guide(uncond: Tensor, cond: Tensor, scale: Tensor) -> Tensor:
    """Return ``uncond + scale * (cond - uncond)`` on denoised predictions [N, C, h, w].

    Args:
        scale: [T, V] with T * V = N, order (t v).
    """
    return torch.lerp(uncond, cond, scale.to(cond).reshape(-1, 1, 1, 1))
