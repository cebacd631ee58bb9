"""How far half precision drifts from float32 on the trained tiny model: one forward pass, and a whole sample.

    python tests/bench/drift.py [--steps 10]

All start from the same noise and the first held-out object, on a CPU. A forward pass is the guided denoiser's
prediction at one noise level, from equal inputs; relative figures are to the largest and to the root mean
square of the float32 values. Sampled pictures are compared in grey levels of 255.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from sv4d2_core.cameras import Cameras
from sv4d2_core.diffusion.checkpoint import load_checkpoint
from sv4d2_core.diffusion.model import Model
from sv4d2_core.diffusion.novel_views import sample_views, window_conditioning, window_noise
from sv4d2_core.diffusion.sampling import guidance_table, guided_denoiser, guided_inputs
from sv4d2_core.shipped import TINY_MODEL
from sv4d2_core.training.scenes import held_out_views

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SIGMAS = (100.0, 5.0, 0.5)


@torch.no_grad()
def predictions(model: Model, reference: Model, clip: Tensor, cameras: Cameras) -> list[Tensor]:
    """Return the guided predictions of ``model`` at each of `SIGMAS`, conditioned by ``reference``."""
    config, like = reference.config, next(model.unet.parameters())
    conditioning = window_conditioning(reference, clip, cameras)
    guidance = guidance_table(
        config.guidance, config.n_frames, config.n_views, config.cfg_min, config.cfg_max
    )
    denoise = guided_denoiser(model.unet, guided_inputs(conditioning, like.device, like.dtype), guidance)
    size = conditioning.frame_latents.shape[-1]
    noise = window_noise(0, 0, (config.n_frames * config.n_views, config.unet.latent_channels, size, size))
    clean = (conditioning.frame_latents * config.scale_factor).repeat_interleave(config.n_views, dim=0)
    return [denoise(clean + sigma * noise, torch.tensor(sigma)) for sigma in SIGMAS]


def differences(actual: Tensor, expected: Tensor) -> str:
    """Return the largest difference of the largest value, and the difference's share by root mean square."""
    error = actual - expected
    largest = error.abs().max() / expected.abs().max()
    rms = (error.square().mean() / expected.square().mean()).sqrt()
    return f"{largest:.2%} / {rms:.2%}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    reference = load_checkpoint(TINY_MODEL)
    config, cameras = reference.config, Cameras.from_lists(reference.config.n_views)
    clip = held_out_views(0, config.n_frames, cameras, config.size).images[:, 0]
    forwards = predictions(reference, reference, clip, cameras)
    sampled = sample_views(reference, clip, cameras, steps=steps)
    columns = [f"forward at sigma {sigma:g}: largest / rms" for sigma in SIGMAS]
    columns += [f"latents after {steps} steps: largest / rms", "pictures: mean / largest grey levels"]
    print(f"| dtype | {' | '.join(columns)} |\n|---" + "|---" * len(columns) + "|")
    for name, dtype in DTYPES.items():
        model = load_checkpoint(TINY_MODEL, dtype=dtype)
        found = predictions(model, reference, clip, cameras)
        made = sample_views(model, clip, cameras, steps=steps)
        cells = [differences(*pair) for pair in zip(found, forwards, strict=True)]
        cells.append(differences(made.latents, sampled.latents))
        grey = 255 * (made.images - sampled.images)[:, 1:].abs()
        print(f"| {name} | {' | '.join(cells)} | {grey.mean():.2f} / {grey.max():.0f} |")


if __name__ == "__main__":
    main()
