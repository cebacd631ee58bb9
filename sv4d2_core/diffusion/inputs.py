"""What a caller gives to the sampler, checked at the border."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cameras import Cameras
from .config import ModelConfig

_WHAT_TO_GIVE = {
    "clip": "Give frames as SV4D2 Prepare Clip or prepare_clip makes them.",
    "reference_views": "Give one image of the first frame per novel camera, of the clip's size.",
    "init_views": "Give views of the same frames, cameras and size as this job.",
    "noise": "Give one noise tensor per window.",
}


def checked(name: str, value: Tensor, shape: tuple[int, ...], in_unit_range: bool = True) -> Tensor:
    """Return ``value`` as float32 on the CPU, detached.

    Raises:
        ValueError: another shape, values that are not finite or, where asked, not in 0..1.
    """
    if tuple(value.shape) != shape or 0 in shape:
        expected = "[T, H, W, 3] with T >= 1" if name == "clip" else str(list(shape))
        raise ValueError(f"Expected {name} {expected}; got {list(value.shape)}. {_WHAT_TO_GIVE[name]}")
    value = value.detach().to("cpu", torch.float32)
    bad = int((~value.isfinite()).sum())
    if bad:
        raise ValueError(f"Expected finite values in {name}; got {bad} NaN or infinite of {value.numel()}.")
    low, high = float(value.min()), float(value.max())
    if in_unit_range and not -1e-3 <= low <= high <= 1 + 1e-3:
        raise ValueError(
            f"Expected values in 0..1 in {name}; got {low:g} to {high:g}. Divide 8-bit values by 255."
        )
    return value


def checked_clip(images: Tensor, config: ModelConfig) -> Tensor:
    """Return the frames of a clip [T, H, W, 3] as float32 on the CPU.

    Raises:
        ValueError: another shape or range, frames that are not square, a size that the model cannot take.
    """
    images = checked("clip", images, (len(images), *images.shape[1:3], 3))
    height, width = images.shape[1:3]
    if height != width:
        multiple = config.size_multiple
        nearest = max(multiple, round(max(height, width) / multiple) * multiple)
        raise ValueError(
            f"Expected square frames with a side divisible by {multiple}; got {width} x {height}. Prepare "
            f"the clip with size {nearest}."
        )
    check_size(height, config)
    return images


def check_size(size: int, config: ModelConfig) -> None:
    """Raise ValueError, naming the nearest sizes, unless the model can take images of ``size`` pixels."""
    multiple = config.size_multiple
    if size % multiple:
        lower = size // multiple * multiple
        raise ValueError(
            f"Expected a size divisible by {multiple}; got {size}. The nearest sizes are "
            f"{' and '.join(str(x) for x in (lower, lower + multiple) if x)}."
        )


def check_cameras(cameras: Cameras, config: ModelConfig) -> None:
    """Raise ValueError, naming the next count, unless the cameras make up whole passes of the model."""
    if cameras.n_views % config.n_views:
        following = max(2, cameras.n_views // config.n_views + 1) * config.n_views
        raise ValueError(
            f"{config.variant} makes {config.n_views} novel views per pass; got {cameras.n_views} (and the "
            f"input view). Give {config.n_views}, or a multiple of it such as {following} for several passes."
        )
