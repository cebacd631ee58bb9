"""Spoils true views the way a model's views are spoilt: a stand-in to try metrics and repairs on.

The errors imitate those that were measured on SV4D 2.0 (specification of the 4D part, section 1.4). Every
novel view is warped smoothly and its colours drift. Most of it is the same in all frames, as the model's is;
a small part is drawn anew for every frame. All of it grows with the angle to the input view.

At strength 1, mean over the ten scenes of the benchmark at 64 pixels and over eight seeds:

=====================================================  ==========  =================================
what was matched                                       SV4D 2.0    this model
=====================================================  ==========  =================================
PSNR near the input azimuth, dB                        37.5        37.4 at 1 degree, 36.7 at 15
PSNR obliquely behind, dB                              19.4        19.7 at 135, 18.8 at 150
change of PSNR per 10 degrees of elevation, dB         -0.77       -0.64, mean over six azimuths
static pixels that move, near the input                5.7 %       4.6 % at 15 degrees
static pixels that move, off the axis                  57 %        54 % at 135, 62 % at 150
static pixels that move, all views                     37.5 %      37.0 %, mean over 1 to 180 degrees
=====================================================  ==========  =================================

A static pixel is one of the object that stays within 1 grey level over the true clip; it moves when it
changes by more than 3 from one frame to the next. What the model invents
outright, a fifth of its wrong pixels, is not imitated.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..cameras import Cameras
from ..views import ViewGrid

# Standard deviations at severity 1: shifts as shares of the picture's side, colours as shares of full scale.
_STEADY_SHIFT, _FRAME_SHIFT = 0.019, 0.0019
_STEADY_COLOUR, _FRAME_COLOUR = 0.049, 0.004
# Shifts are drawn on a lattice of this many nodes a side and interpolated.
_NODES = 5
# Ink of a lower opacity, left behind by bicubic reading, is none.
_LEAST_INK = 1e-4
# Severity at the input view itself, and its growth per degree of elevation away from the input's.
_NEAREST = 0.09
_PER_DEGREE = 0.009


def corrupt_views(grid: ViewGrid, seed: int, strength: float = 1.0, *, per_frame: bool = False) -> ViewGrid:
    """Return the views with every novel one, and its mask, warped and discoloured; the input stays as it is.

    Args:
        grid: true views with masks, on white, of any size.
        seed: the errors are the same for a seed at every size; those of two seeds are independent.
        strength: factor of all errors, 1: as large as SV4D 2.0's; 0 leaves every pixel as it is.
        per_frame: draw all errors anew for every frame, equally large, as methods make them that know
            nothing of the frames before.

    Raises:
        ValueError: a strength that is negative or not finite, a grid without masks.
    """
    if not math.isfinite(strength) or strength < 0:
        raise ValueError(
            f"Expected a finite strength of at least 0; got {strength:g}. Use 1 for errors as large as the "
            f"model's."
        )
    if grid.masks is None:
        raise ValueError(
            "Expected views with masks, which tell the object from the white around it; got none. Add the "
            "masks to the grid."
        )
    settings = {
        **(grid.settings or {}),
        "corruption": {"seed": seed, "strength": strength, "per_frame": per_frame},
    }
    if strength == 0:
        return replace(grid, settings=settings)
    amounts = (strength * _severity(grid.cameras)).tolist()
    generator = torch.Generator("cpu").manual_seed(seed)
    images, masks = grid.images.clone(), grid.masks.clone()
    for view in range(1, grid.n_views + 1):
        shift, gain, offset = _errors(grid.n_frames, amounts[view], generator, per_frame)
        ink = _ink(images[:, view], masks[:, view])
        ink = _drifted(_warped(ink, shift), gain, offset)
        masks[:, view] = ink[:, 3]
        images[:, view] = (ink[:, :3] + 1 - ink[:, 3:]).clamp(0, 1).permute(0, 2, 3, 1)
    # Latents would show the views as they were.
    return replace(grid, images=images, masks=masks, latents=None, settings=settings)


def _severity(cameras: Cameras) -> Tensor:
    """Return how large the errors of every view are, [V + 1] float64, about 1 behind the object.

    It grows with the haversine of the great-circle angle to the input view, which is 0 at the input view and
    1 opposite to it, and besides with the difference in elevation: the haversine alone would make lifted
    views behind the object better.
    """
    directions = F.normalize(cameras.eyes(), dim=-1)
    haversine = (1 - directions @ directions[0]) / 2
    lift_deg = torch.tensor(cameras.elevations_deg, dtype=torch.float64).abs()
    return (_NEAREST + (1 - _NEAREST) * haversine) * (1 + _PER_DEGREE * lift_deg)


def _errors(
    n_frames: int, amount: float, generator: torch.Generator, per_frame: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one view's shifts at the nodes [T, 2, N, N], gains and offsets of its colours, each [T, 3]."""

    def drawn(*shape: int, steady: float, fresh: float) -> Tensor:
        if per_frame:
            steady, fresh = 0.0, math.hypot(steady, fresh)
        one = torch.randn(shape, generator=generator, dtype=torch.float64)
        every = torch.randn((n_frames, *shape), generator=generator, dtype=torch.float64)
        return amount * (steady * one + fresh * every)

    shift = drawn(2, _NODES, _NODES, steady=_STEADY_SHIFT, fresh=_FRAME_SHIFT)
    gain, offset = drawn(2, 3, steady=_STEADY_COLOUR, fresh=_FRAME_COLOUR).unbind(1)
    return shift, gain, offset


def _ink(images: Tensor, masks: Tensor) -> Tensor:
    """Return the object's colour times its opacity, and its opacity, [T, 4, H, W], from images on white."""
    opacity = masks[..., None]
    return torch.cat([images - (1 - opacity), opacity], dim=-1).permute(0, 3, 1, 2)


def _warped(ink: Tensor, shift: Tensor) -> Tensor:
    """Return ``ink`` [T, C, H, W] read at places moved by ``shift`` [T, 2, N, N], shares of the side."""
    height, width = ink.shape[2:]
    # grid_sample counts from -1 to 1 across the picture.
    x = (torch.arange(width, dtype=torch.float64) + 0.5) * 2 / width - 1
    y = (torch.arange(height, dtype=torch.float64) + 0.5) * 2 / height - 1
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).expand(len(ink), -1, -1, -1)
    moved = F.grid_sample(shift, places, mode="bicubic", padding_mode="border", align_corners=True)
    places = (places + 2 * moved.permute(0, 2, 3, 1)).to(ink)
    # Bilinear reading would blur the views and so hide flicker. Bicubic reading overshoots: ink of an opacity
    # above 1 is thinned.
    moved_ink = F.grid_sample(ink, places, mode="bicubic", padding_mode="border", align_corners=False)
    opacity = moved_ink[:, 3:]
    return moved_ink * opacity.clamp(0, 1) / opacity.where(opacity > _LEAST_INK, math.inf)


def _drifted(ink: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """Return ``ink`` [T, 4, H, W] with the object's colours c as (1 + gain) c + offset, held in 0..1."""
    gain, offset = (values.to(ink)[:, :, None, None] for values in (gain, offset))
    opacity = ink[:, 3:].clamp(0, 1)
    colour = (1 + gain) * ink[:, :3] + offset * opacity
    return torch.cat([torch.minimum(colour.clamp(min=0), opacity), opacity], dim=1)
