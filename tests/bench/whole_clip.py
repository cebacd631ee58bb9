"""How long a whole clip takes: by arithmetic from one measured step, or sampled from end to end.

Weights and images are random: times depend on neither.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from measure import clock, seconds
from memory_plan import random_model

from sv4d2_core.cameras import Cameras
from sv4d2_core.diffusion.config import ModelConfig
from sv4d2_core.diffusion.memory import place
from sv4d2_core.diffusion.model import Model
from sv4d2_core.diffusion.novel_views import ping_pong, plan_windows, sample_views

CLIP_FRAMES = 21
STEPS = (50, 20)


class ClipCosts(NamedTuple):
    """What a clip takes beside its denoising steps, in seconds.

    Args:
        windows: how many windows it has.
        frames: image tower and frame encoder for all input frames.
        references: encoder for the reference views of one window.
        decode: decoder for one window.
    """

    windows: int
    frames: float
    references: float
    decode: float

    def seconds(self, steps: int, step_seconds: float) -> float:
        """Return the time of a clip; the first window has no reference views."""
        sampling = self.windows * (steps * step_seconds + self.decode)
        return self.frames + sampling + (self.windows - 1) * self.references


def model_on(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Model:
    """Return a model with random weights on a device."""
    model = random_model(config, dtype)
    place(model, device, "resident")
    return model


def clip_costs(model: Model, size: int, device: torch.device) -> ClipCosts:
    """Return the measured costs of a clip of `CLIP_FRAMES` images of ``size`` pixels."""
    config = model.config
    images = _clip(size)
    latents = torch.randn(
        config.n_frames * config.n_views,
        config.unet.latent_channels,
        *[size // config.latent_factor] * 2,
    )
    views = images[: config.n_views]
    # The first pass through each network warms up.
    model.embed(images[:1])
    model.encode(images[:1], "frames")
    model.encode(images[:1], "views")
    model.decode(latents[:1])
    return ClipCosts(
        windows=_windows(config),
        frames=seconds(lambda: (model.embed(images), model.encode(images, "frames")), device),
        references=seconds(lambda: model.encode(views, "views"), device),
        decode=seconds(lambda: model.decode(latents), device),
    )


def clip_seconds(model: Model, size: int, steps: int, device: torch.device) -> float:
    """Return the time in which a clip is really sampled, from images to images."""
    start = clock(device)
    sample_views(model, _clip(size), Cameras.from_lists(model.config.n_views), steps=steps)
    return clock(device) - start


def clip_report(costs: ClipCosts, step_seconds: float, sampled: dict[int, float]) -> str:
    """Return the times of a clip as Markdown; ``sampled``: really measured seconds by number of steps."""
    lines = [
        f"A clip of {CLIP_FRAMES} frames, {costs.windows} windows: {costs.frames:.2f} s for its frames, "
        f"{costs.references:.2f} s for a window's reference views, {costs.decode:.2f} s to decode a window, "
        f"{step_seconds:.3f} s per step.",
        "",
        "| steps | s by arithmetic | s sampled |",
        "|--:|--:|--:|",
    ]
    for steps in STEPS:
        measured = f"{sampled[steps]:.1f}" if steps in sampled else "not run"
        lines.append(f"| {steps} | {costs.seconds(steps, step_seconds):.1f} | {measured} |")
    return "\n".join(lines)


def _windows(config: ModelConfig) -> int:
    return len(plan_windows(len(ping_pong(CLIP_FRAMES, config.n_frames)), config.n_frames))


def _clip(size: int) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.rand(CLIP_FRAMES, size, size, 3)
