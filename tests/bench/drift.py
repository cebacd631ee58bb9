"""How far half precision drifts from float32 on the trained tiny model: one forward pass, and a whole sample.

python tests/bench/drift.py [--steps 10] [--objects 1] [--markdown FILE]

All start from the same noise and the same procedural object, on a CPU. A forward pass is the guided
denoiser's prediction at one noise level, from equal inputs; relative figures are to the largest and to the
root mean square of the float32 values. Sampled pictures are compared in grey levels of 255.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sv4d2_core.cameras import Cameras
from sv4d2_core.diffusion.checkpoint import load_checkpoint
from sv4d2_core.diffusion.model import Model
from sv4d2_core.diffusion.novel_views import sample_views, window_conditioning, window_noise
from sv4d2_core.diffusion.sampling import guidance_table, guided_denoiser, guided_inputs
from sv4d2_core.shipped import TINY_MODEL
from sv4d2_core.training.scenes import held_out_views

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SIGMAS = (100.0, 5.0, 0.5)


def clip_of(model: Model, number: int) -> Tensor:
    """Return one window of a procedural object as the input camera sees it, [T, H, W, 3]."""
    config = model.config
    return held_out_views(number, config.n_frames, Cameras.from_lists(config.n_views), config.size).images[
        :, 0
    ]


@torch.no_grad()
def predictions(model: Model, reference: Model, clip: Tensor) -> list[Tensor]:
    """Return the guided predictions of ``model`` at each of `SIGMAS`, conditioned by ``reference``."""
    config = reference.config
    conditioning = window_conditioning(reference, clip, Cameras.from_lists(config.n_views))
    like = next(model.unet.parameters())
    guidance = guidance_table(
        config.guidance, config.n_frames, config.n_views, config.cfg_min, config.cfg_max
    )
    denoise = guided_denoiser(model.unet, guided_inputs(conditioning, like.device, like.dtype), guidance)
    size = conditioning.frame_latents.shape[-1]
    noise = window_noise(0, 0, (config.n_frames * config.n_views, config.unet.latent_channels, size, size))
    clean = (conditioning.frame_latents * config.scale_factor).repeat_interleave(config.n_views, dim=0)
    return [denoise(clean + sigma * noise, torch.tensor(sigma)) for sigma in SIGMAS]


def differences(actual: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return the largest difference of the largest value, and the difference's share by root mean square."""
    error = actual - expected
    return (
        (error.abs().max() / expected.abs().max()).item(),
        (error.square().mean() / expected.square().mean()).sqrt().item(),
    )


def table(steps: int, objects: int) -> str:
    """Return the drift as a Markdown table, the means over objects."""
    reference = load_checkpoint(TINY_MODEL)
    clips = [clip_of(reference, number) for number in range(objects)]
    cameras = Cameras.from_lists(reference.config.n_views)
    expected = [
        (predictions(reference, reference, clip), _sample(reference, clip, cameras, steps)) for clip in clips
    ]
    noise_levels = [f"forward at sigma {sigma:g}: largest / rms" for sigma in SIGMAS]
    sampled = [f"latents after {steps} steps: largest / rms", "pictures: mean / largest grey levels"]
    columns = ["dtype", *noise_levels, *sampled]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name, dtype in DTYPES.items():
        model = load_checkpoint(TINY_MODEL, dtype=dtype)
        rows = torch.tensor(
            [_row(model, reference, *pair, steps) for pair in zip(clips, expected, strict=True)]
        )
        pairs = rows.mean(0).view(-1, 2).tolist()
        cells = [f"{a:.2%} / {b:.2%}" for a, b in pairs[:-1]]
        lines.append(f"| {name} | {' | '.join(cells)} | {pairs[-1][0]:.2f} / {pairs[-1][1]:.0f} |")
    return "\n".join(lines)


def _row(
    model: Model,
    reference: Model,
    clip: Tensor,
    expected: tuple[list[Tensor], tuple[Tensor, Tensor]],
    steps: int,
) -> list[float]:
    forwards, (latents, images) = expected
    found = predictions(model, reference, clip)
    row = [x for pair in zip(found, forwards, strict=True) for x in differences(*pair)]
    sampled = _sample(model, clip, Cameras.from_lists(reference.config.n_views), steps)
    grey = 255 * (sampled[1] - images).abs()
    return [*row, *differences(sampled[0], latents), grey.mean().item(), grey.max().item()]


def _sample(model: Model, clip: Tensor, cameras: Cameras, steps: int) -> tuple[Tensor, Tensor]:
    grid = sample_views(model, clip, cameras, steps=steps)
    if grid.latents is None:
        raise RuntimeError("Expected the sampled latents beside the views; got none.")
    return grid.latents, grid.images[:, 1:]


def main(arguments: list[str] | None = None) -> None:
    """Print the table and, where asked for, write it."""
    parser = argparse.ArgumentParser(description="Drift of half precision from float32, tiny model.")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--objects", type=int, default=1)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    report = table(options.steps, options.objects)
    sys.stdout.write(report + "\n")
    if options.markdown:
        options.markdown.write_text(report + "\n")


if __name__ == "__main__":
    main()
