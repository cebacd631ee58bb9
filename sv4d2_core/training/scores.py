"""How good novel views of objects are that no training sees, against copies of the input and white."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from ..cameras import Cameras
from ..diffusion.model import Backend
from ..diffusion.novel_views import sample_views
from ..diffusion.sampling import precondition
from ..diffusion.unet import UNet
from ..metrics.image import mask_iou, psnr
from ..video.foreground import near_white_masks
from ..video.pictures import to_bytes
from ..views import ViewGrid
from ..world.body import framed, parts_at
from ..world.render import render_parts
from ..world.suite import HELD_OUT_OBJECTS, draw_object
from .batches import ViewsBatch, as_network_inputs, input_of_each_view
from .scenes import ELEVATIONS_DEG

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


_GAP, _TEXT, _LABELS = 6, 13, 64
# Small pictures are shown at about this size.
_SHOWN = 96
_ROWS = ("true", "made")


def sample_sheet(model: Backend, objects: Sequence[int], *, steps: int = 20, seed: int = 0) -> Image.Image:
    """Return a picture of held-out objects: the true and the made views of the first and the last frame.

    Args:
        model: makes the views.
        objects: numbers of held-out objects.
        steps: of the sampler.
        seed: of the noise.
    """
    config = model.config
    pairs = []
    for number in objects:
        truth = held_out_views(number, config.n_frames, Cameras.default(config.n_views), config.size)
        made = sample_views(model, truth.images[:, 0], truth.cameras, steps=steps, seed=seed)
        pairs.append((truth, made))
    return comparison_sheet(pairs)


def comparison_sheet(pairs: Sequence[tuple[ViewGrid, ViewGrid]]) -> Image.Image:
    """Return a picture of pairs of true and made views: per pair two rows, the first and the last frame."""
    strips = [_strip(grid) for pair in pairs for grid in pair]
    cell = max(1, round(_SHOWN / strips[0].shape[0]))
    height, width = strips[0].shape[0] * cell, strips[0].shape[1] * cell
    sheet = Image.new("RGB", (_LABELS + width + _GAP, _GAP + len(strips) * (height + _GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    for row, strip in enumerate(strips):
        y = _GAP + row * (height + _GAP)
        draw.text((_GAP, y + height // 2), _ROWS[row % 2], "black", font, anchor="lm")
        picture = Image.fromarray(to_bytes(strip)).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(picture, (_LABELS, y))
        if row % 2 == 1:
            draw.line((0, y + height + _GAP // 2, sheet.width, y + height + _GAP // 2), (222, 222, 222))
    return sheet


def _strip(grid: ViewGrid) -> Tensor:
    """Return all views of the first frame and then of the last side by side, [H, 2 (V + 1) W, 3]."""
    frames = grid.images[[0, -1]]
    return torch.cat([image for frame in frames for image in frame], dim=1)


class ViewsLoss(nn.Module):
    """The loss of a UNet on a `ViewsBatch`; computes in the UNet's dtype."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, batch: ViewsBatch) -> Tensor:
        """Return the mean square error of the network's output."""
        b, t, v = batch.clean.shape[:3]
        dtype = next(self.unet.parameters()).dtype
        noise, clean = as_network_inputs(batch)
        scale = precondition(batch.sigmas)
        c_skip, c_out, c_in = (
            x.repeat_interleave(t * v)[:, None, None, None] for x in (scale.c_skip, scale.c_out, scale.c_in)
        )
        noisy = clean + noise * batch.sigmas.repeat_interleave(t * v)[:, None, None, None]
        window = self.unet.prepare(batch.tokens.to(dtype), batch.references.flatten(0, 1).to(dtype))
        inputs = torch.cat([noisy * c_in, input_of_each_view(batch)], dim=1).to(dtype)
        timesteps = scale.c_noise.repeat_interleave(v)
        out = self.unet(inputs, timesteps, batch.vectors.flatten(0, 1).to(dtype), window).float()
        return (out - (clean - c_skip * noisy) / c_out).square().mean()


def initialise(unet: UNet) -> None:
    """Start a UNet that was never trained: residual branches add nothing, frames do not mix yet.

    torch's own initialisation serves the rest.
    """
    for name, module in unet.named_modules():
        ends_branch = name.endswith(("out_layers.3", "proj_out")) or name == "out.2"
        ends_motion = ".motion_blocks." in name and name.endswith(("to_out.0", "net.2"))
        if ends_branch or ends_motion or name.endswith("time_mix_motion_embed.2"):
            nn.init.zeros_(module.weight)  # pyright: ignore
            if module.bias is not None:  # pyright: ignore
                nn.init.zeros_(module.bias)  # pyright: ignore
