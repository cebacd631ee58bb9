"""How good novel views of objects are that no training sees, against copies of the input and white."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..cameras import Cameras
from ..diffusion.model import Backend
from ..diffusion.novel_views import sample_views
from ..metrics.image import mask_iou, psnr
from ..video.foreground import near_white_masks
from ..views import ViewGrid
from ..world.creature import parts_at
from ..world.distribution import HELD_OUT_OBJECTS, draw_object
from ..world.framing import framed
from ..world.render import render_parts
from .procedural import ELEVATIONS_DEG

_FILL = 0.9
# A window of frames this far apart, in the middle of the object's motion.
_FRAME_STEP = 0.05

METHODS = ("model", "with_references", "copy", "white")


@dataclass(frozen=True)
class Scores:
    """Means over frames and novel views of each object, [N] float64.

    Args:
        psnr: dB, whole pictures.
        foreground_psnr: dB, where the true picture shows the object.
        iou: of the silhouettes, those of the true pictures found like those of the made ones.
    """

    psnr: Tensor
    foreground_psnr: Tensor
    iou: Tensor


def held_out_views(number: int, n_frames: int, cameras: Cameras, size: int) -> ViewGrid:
    """Return the true views of one of the 64 held-out objects from cameras at an elevation of its own."""
    seed = HELD_OUT_OBJECTS[number]
    low, high = ELEVATIONS_DEG
    share = float(torch.rand((), generator=torch.Generator("cpu").manual_seed(seed)))
    lifted = replace(cameras, input_elevation_deg=low + (high - low) * share)
    times = 0.5 + _FRAME_STEP * (torch.arange(n_frames, dtype=torch.float64) - (n_frames - 1) / 2)
    rendering = render_parts(framed(parts_at(draw_object(seed), times), lifted, _FILL), lifted, size)
    return ViewGrid(rendering.rgb, lifted, rendering.mask, times=tuple(times.tolist()))


def score_model(
    model: Backend,
    n_objects: int,
    *,
    steps: int = 20,
    seed: int = 0,
    methods: tuple[str, ...] = METHODS,
    callback: Callable[[int], None] | None = None,
) -> dict[str, Scores]:
    """Return the scores of each method on the first held-out objects.

    Args:
        model: makes windows of T frames from its default orbit.
        n_objects: at most 64.
        steps: of the sampler.
        seed: of the noise.
        methods: out of ``METHODS``: the model without and with true reference views of the first frame, the
            input view in place of all others, and white pictures.
        callback: called with the number of objects done.

    Raises:
        ValueError: more objects than there are.
    """
    if not 1 <= n_objects <= len(HELD_OUT_OBJECTS):
        raise ValueError(f"Expected 1 to {len(HELD_OUT_OBJECTS)} objects; got {n_objects}.")
    config = model.config
    rows: dict[str, list[tuple[float, float, float]]] = {method: [] for method in methods}
    for number in range(n_objects):
        truth = held_out_views(number, config.n_frames, Cameras.default(config.n_views), config.size)
        for method, images in _made(model, truth, steps, seed, methods):
            rows[method].append(_score(images, truth))
        if callback is not None:
            callback(number + 1)
    return {method: Scores(*torch.tensor(rows[method], dtype=torch.float64).T) for method in methods}


def _made(
    model: Backend, truth: ViewGrid, steps: int, seed: int, methods: tuple[str, ...]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the novel views [T, V, H, W, 3] of each method."""
    given, novel = truth.images[:, 0], truth.images[:, 1:]
    for method in methods:
        if method == "copy":
            yield method, given[:, None].expand_as(novel)
        elif method == "white":
            yield method, torch.ones_like(novel)
        else:
            references = novel[0] if method == "with_references" else None
            made = sample_views(
                model, given, truth.cameras, steps=steps, seed=seed, reference_views=references
            )
            yield method, made.images[:, 1:]


def _score(images: Tensor, truth: ViewGrid) -> tuple[float, float, float]:
    if truth.masks is None:
        raise ValueError("Expected true views with masks; the grid has none.")
    novel, masks = truth.images[:, 1:].flatten(0, 1), truth.masks[:, 1:].flatten(0, 1)
    images = images.flatten(0, 1).contiguous()
    return (
        float(psnr(images, novel).mean()),
        float(psnr(images, novel, masks).mean()),
        float(mask_iou(near_white_masks(images), near_white_masks(novel)).mean()),
    )
