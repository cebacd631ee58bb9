"""What the fields of `RefineConfig` may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_CHOICES = {
    "backend": ("dynerf", "gaussians"),
    "field": ("planes", "canonical"),
    "photometric": ("mse", "charbonnier"),
}
_ABOVE_ZERO = (
    "learning_rate",
    "learning_rate_decoder",
    "learning_rate_deformation",
    "learning_rate_end",
    "density_scale",
    "strength",
    "strength_falling",
    "refine_rate",
)
_LEAST = {
    "memory_gb": 0,
    "rounds": 0,
    "steps_refine": 1,
    "patches_per_step": 0,
    "patch_size": 8,
    "weight_deformation": 0,
    "weight_deformation_slope": 0,
    "weight_ssim": 0,
    "weight_perceptual": 0,
    "weight_depth": 0,
    "weight_normal_smoothness": 0,
    "weight_normal": 0,
    "steps_static": 0,
    "steps": 1,
    "rays_per_step": 16,
    "frames_per_step": 1,
    "views_per_step": 1,
    "samples": 8,
    "time_size": 0,
    "change_size": 2,
    "smooth_every": 1,
    "features": 1,
    "hidden": 1,
    "hull_size": 8,
    "hull_dilation": 0,
    "occupancy_every": 0,
    "occupancy_opacity": 0,
    "weight_mask": 0,
    "weight_planes": 0,
    "weight_time_smoothness": 0,
    "weight_time_offset": 0,
    "weight_entropy": 0,
}


def check_limits(fields: Mapping[str, Any]) -> None:
    """Raise ValueError for a field of `RefineConfig` out of its range; the text names it, with what it is."""
    for name, least in _LEAST.items():
        value = fields[name]
        if not (math.isfinite(value) and value >= least):
            raise ValueError(f"Expected {name} >= {least:g}; got {value}. Change this field.")
    for name in _ABOVE_ZERO:
        value = fields[name]
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"Expected {name} > 0; got {value}. Change this field.")
    for name, choices in _CHOICES.items():
        if fields[name] not in choices:
            raise ValueError(f"Expected {name} {' or '.join(choices)}; got {fields[name]!r}.")
    if not 0 <= fields["patch_start"] < 1 or fields["strength"] > 1:
        raise ValueError(
            f"Expected patch_start in 0..1 and a strength of at most 1; got {fields['patch_start']:g} and "
            f"{fields['strength']:g}."
        )
    _check_sizes(fields)


def _check_sizes(fields: Mapping[str, Any]) -> None:
    if fields["plane_sizes"] and min(fields["plane_sizes"]) < 2:
        raise ValueError(f"Expected plane sizes of at least 2 nodes; got {fields['plane_sizes']}.")
    if not fields["deformation_sizes"] or min(fields["deformation_sizes"]) < 2:
        raise ValueError(
            f"Expected deformation sizes of at least 2 nodes; got {fields['deformation_sizes']}."
        )
    if fields["time_size"] == 1:
        raise ValueError("Expected time_size 0 (one node per frame) or at least 2; got 1.")
    sizes, starts = fields["image_sizes"], fields["image_size_starts"]
    rising = all(a < b for a, b in zip(starts, starts[1:], strict=False))
    if len(sizes) != len(starts) or not rising or (starts and (starts[0] != 0 or starts[-1] >= 1)):
        raise ValueError(
            f"Expected one start per picture size, rising from 0 and below 1; got sizes {sizes} and "
            f"starts {starts}. Write for example image_sizes=(128, 256), image_size_starts=(0, 0.4)."
        )
    if sizes and min(sizes) < 16:
        raise ValueError(f"Expected picture sizes of at least 16 pixels; got {sizes}.")
