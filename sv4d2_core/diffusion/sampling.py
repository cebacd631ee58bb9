"""The sampling method, top to bottom: noise levels, conditioning, guidance, solvers, one window.

Source: Karras et al. 2022 (EDM), whose equations and algorithms are cited by number; see docs/method.md.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

from ..cameras import Cameras
from .blocks import retry_on_oom, sinusoidal_embedding
from .config import ModelConfig
from .unet import PreparedWindow, UNet

# denoised = denoise(x, sigma), x [N, C, h, w], sigma [] on the CPU, where reading it waits for no device.
DenoiseFunction = Callable[[Tensor, Tensor], Tensor]
# callback(step, total, preview): called after each step with its denoised latents; may raise to cancel.
Callback = Callable[[int, int, Tensor | None], None]

# The reference embeds this constant where other models of the family embed the conditioning noise level.
NOISE_CONSTANT = 1e-5

log = logging.getLogger(__name__)


def karras_sigmas(steps: int, sigma_min: float = 0.002, sigma_max: float = 700.0, rho: float = 7.0) -> Tensor:
    """Return descending noise levels that end with 0, [steps + 1] float32 (equation 5)."""
    ramp = torch.linspace(0, 1, steps)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def first_step(steps: int, strength: float) -> int:
    """Return the step at which denoising of given strength starts; ValueError unless a step is left."""
    if steps < 1:
        raise ValueError(f"Expected at least 1 step; got {steps}.")
    start = round((1 - strength) * steps) if 0 < strength <= 1 else steps
    if start >= steps:
        raise ValueError(
            f"Expected 0 < strength <= 1 with at least one of {steps} steps left; got {strength:g}. "
            f"Use at least {1 / steps:.3g} or more steps."
        )
    return start


def start_latents(noise: Tensor, sigmas: Tensor, start: int = 0, init: Tensor | None = None) -> Tensor:
    """Return the latents [N, C, h, w] at noise level ``sigmas[start]``: noise, alone or on ``init``."""
    if init is None or start == 0:
        return noise * (1 + sigmas[start] ** 2).sqrt().to(noise)
    return init + noise * sigmas[start].to(noise)


class Preconditioning(NamedTuple):
    """Factors around the network: ``denoised = c_skip * x + c_out * network(c_in * x, c_noise)``."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def precondition(sigma: Tensor) -> Preconditioning:
    """Return the factors for noise levels ``sigma``, of the same shape (table 1, v-prediction)."""
    root = torch.sqrt(sigma**2 + 1)
    return Preconditioning(1 / (sigma**2 + 1), -sigma / root, 1 / root, 0.25 * torch.log(sigma))


def to_network_images(images: Tensor) -> Tensor:
    """Return images [N, H, W, 3] in 0..1 as [N, 3, H, W] in -1..1."""
    return rearrange(images, "n h w c -> n c h w") * 2 - 1


def from_network_images(images: Tensor) -> Tensor:
    """Return images [N, 3, H, W], about -1..1, as [N, H, W, 3] clamped to 0..1."""
    return rearrange(((images + 1) / 2).clamp(0, 1), "n c h w -> n h w c")


@dataclass(frozen=True)
class Conditioning:
    """Conditioning of one window of T frames and V novel views."""

    tokens: Tensor  # [T, D] image embedding of each input frame
    frame_latents: Tensor  # [T, 4, h, w] unscaled latents of the input frames
    reference_latents: Tensor  # [V, 4, h, w] of the reference views, zeros when there are none
    vectors: Tensor  # [V, A] camera vectors
    uncond_vectors: Tensor  # [V, A] camera vectors without conditioning on the frames

    def unconditional(self) -> Conditioning:
        """Return the other half of guidance: zeros for all but the cameras."""
        given = (self.tokens, self.frame_latents, self.reference_latents)
        tokens, frames, references = (torch.zeros_like(x) for x in given)
        return Conditioning(tokens, frames, references, self.uncond_vectors, self.uncond_vectors)


def camera_vectors(cameras: Cameras, dims: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Return the novel views' cond and uncond vectors (noise constant 0 in these), each [V, sum(dims)]."""
    polar, azimuth = cameras.network_angles_rad()
    constant = torch.full((cameras.n_views,), NOISE_CONSTANT)
    parts = [sinusoidal_embedding(x, dim) for x, dim in zip((constant, polar, azimuth), dims, strict=True)]
    return torch.cat(parts, dim=-1), torch.cat([torch.zeros_like(parts[0]), *parts[1:]], dim=-1)


@dataclass(frozen=True)
class GuidedInputs:
    """The conditioning as the network takes it for guidance: unconditional first, B = 2."""

    context: Tensor  # [B, T, D]
    concat: Tensor  # [B T V, 4, h, w]
    vectors: Tensor  # [B V, A], the same for all frames
    references: Tensor  # [B V, 4, h, w]

    def conditional(self) -> GuidedInputs:
        """Return the conditional half alone, B = 1."""
        halves = (self.context, self.concat, self.vectors, self.references)
        return GuidedInputs(*(both.chunk(2)[1] for both in halves))


def guided_inputs(conditioning: Conditioning, device: torch.device, dtype: torch.dtype) -> GuidedInputs:
    """Return the network inputs of the unconditional and the conditional half."""
    halves = (conditioning.unconditional(), conditioning)
    frames = torch.cat([half.frame_latents for half in halves]).to(device, dtype)
    return GuidedInputs(
        context=torch.stack([half.tokens for half in halves]).to(device, dtype),
        concat=repeat(frames, "bt c h w -> (bt v) c h w", v=len(conditioning.vectors)),
        vectors=torch.cat([half.vectors for half in halves]).to(device, dtype),
        references=torch.cat([half.reference_latents for half in halves]).to(device, dtype),
    )


def predict(unet: UNet, inputs: GuidedInputs, window: PreparedWindow, x: Tensor, sigma: Tensor) -> Tensor:
    """Return the denoised predictions of all halves in ``inputs``, [B T V, 4, h, w] float32 (equation 7)."""
    c, halves = precondition(sigma), len(inputs.context)
    noisy = (x * c.c_in).to(inputs.concat).repeat(halves, 1, 1, 1)
    c_noise = torch.full((len(inputs.vectors),), float(c.c_noise), device=x.device)
    out = unet(torch.cat([noisy, inputs.concat], dim=1), c_noise, inputs.vectors, window)
    return out.float() * c.c_out + (x * c.c_skip).repeat(halves, 1, 1, 1)


def guide(uncond: Tensor, cond: Tensor, scale: Tensor) -> Tensor:
    """Return ``uncond + scale * (cond - uncond)``, scale [T, V] (Ho and Salimans 2022, equation 6)."""
    return torch.lerp(uncond, cond, scale.to(cond).reshape(-1, 1, 1, 1))


def guided_denoiser(
    unet: UNet, inputs: GuidedInputs, guidance: Tensor, interval: tuple[float, float] | None = None
) -> DenoiseFunction:
    """Return ``denoise(x, sigma)`` for latents ``x`` [T * V, 4, h, w] float32, guided by scales [T, V].

    Outside ``interval``, the lowest and highest guided noise level, only the conditional half is computed.
    """
    guidance = guidance.to(inputs.context.device)
    halves = {True: inputs, False: inputs.conditional()}

    @cache
    def prepared(guided: bool) -> PreparedWindow:
        return unet.prepare(halves[guided].context, halves[guided].references)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        guided = interval is None or interval[0] <= float(sigma) <= interval[1]
        predicted = predict(unet, halves[guided], prepared(guided), x, sigma)
        if not guided:
            return predicted
        uncond, cond = predicted.chunk(2)
        return guide(uncond, cond, guidance)

    return denoise


def _triangle(n_views: int) -> Tensor:
    """Return a triangle wave over the views, [V]: 0 at the first and the last, 1 in the middle."""
    r = torch.arange(n_views, dtype=torch.float32) / max(1, n_views - 1)
    return 2 * (r - torch.floor(r + 0.5)).abs()


def guidance_table(shape: str, n_frames: int, n_views: int, cfg_min: float, cfg_max: float) -> Tensor:
    """Return the guidance scale of each frame and view, [T, V]; ValueError: a range not finite and rising."""
    if shape == "constant":
        cfg_min = cfg_max
    if not (math.isfinite(cfg_min) and math.isfinite(cfg_max) and cfg_min <= cfg_max):
        raise ValueError(
            f"Expected a finite guidance range with minimum <= maximum; got {cfg_min:g} to {cfg_max:g}. "
            f"Give the smaller number first."
        )
    if shape == "linear":  # rises over the flattened (t v) order, official sv4d2
        position = torch.linspace(0, 1, n_frames * n_views).view(n_frames, n_views)
    elif shape == "spatiotemporal":  # official sv4d2_8views
        position = 0.5 * torch.linspace(0, 1, n_frames)[:, None] + 0.5 * _triangle(n_views)[None]
    elif shape == "triangle":
        position = _triangle(n_views).expand(n_frames, n_views)
    else:  # constant
        position = torch.ones(n_frames, n_views)
    return cfg_min + (cfg_max - cfg_min) * position


def resolve_guidance(cfg: float | tuple[float, float] | Tensor | None, config: ModelConfig) -> Tensor:
    """Return the table [T, V] that a user's ``cfg`` asks for.

    ``cfg``: None (the variant's own range), a number, (min, max), or a finite table [T, V]; else ValueError.
    """
    n_frames, n_views = config.n_frames, config.n_views
    if isinstance(cfg, Tensor):
        if tuple(cfg.shape) != (n_frames, n_views) or not cfg.isfinite().all():
            raise ValueError(
                f"Expected a finite guidance table [{n_frames}, {n_views}] (frames, views); got "
                f"{list(cfg.shape)}: {cfg}."
            )
        return cfg.float()
    if isinstance(cfg, (int, float)):
        return guidance_table("constant", n_frames, n_views, float(cfg), float(cfg))
    if cfg is not None and len(cfg) != 2:
        raise ValueError(f"Expected a guidance range (min, max); got {len(cfg)} values: {cfg}.")
    low, high = (config.cfg_min, config.cfg_max) if cfg is None else cfg
    return guidance_table(config.guidance, n_frames, n_views, float(low), float(high))


def sample_euler(
    denoise: DenoiseFunction, x: Tensor, sigmas: Tensor, start: int = 0, callback: Callback | None = None
) -> Tensor:
    """Return latents at noise level 0 from ``x`` [N, C, h, w] at ``sigmas[start]`` (algorithm 1, Euler)."""
    sigmas, steps = sigmas.to(x.dtype), len(sigmas) - 1
    for i in range(start, steps):
        denoised = denoise(x, sigmas[i])
        # The derivative dx / dsigma of the probability flow (equation 3).
        d = (x - denoised) / sigmas[i]
        x = x + d * (sigmas[i + 1] - sigmas[i])
        if callback is not None:
            callback(i + 1, steps, denoised)
    return x


def sample_dpmpp_2m(
    denoise: DenoiseFunction, x: Tensor, sigmas: Tensor, start: int = 0, callback: Callback | None = None
) -> Tensor:
    """Denoise like `sample_euler`, in second order: DPM-Solver++(2M) (Lu et al. 2022, algorithm 2)."""
    sigmas, steps, old_denoised = sigmas.to(x.dtype), len(sigmas) - 1, None
    t = -sigmas.log()
    for i in range(start, steps):
        denoised = extrapolated = denoise(x, sigmas[i])
        if old_denoised is not None and i < steps - 1:
            # The prediction half-way to the next level in t, from this step's and the one before.
            r = (t[i] - t[i - 1]) / (t[i + 1] - t[i])
            extrapolated = denoised + (denoised - old_denoised) / (2 * r)
        x = torch.lerp(extrapolated, x, float(sigmas[i + 1] / sigmas[i]))
        old_denoised = denoised
        if callback is not None:
            callback(i + 1, steps, denoised)
    return x


SAMPLERS = {"euler": sample_euler, "dpmpp_2m": sample_dpmpp_2m}


@dataclass(frozen=True)
class Solver:
    """The method and its shortcuts; the default is the official computation. Raises ValueError."""

    sampler: str = "euler"  # a name in `SAMPLERS`
    guidance_interval: tuple[float, float] | None = None  # Kynkäänniemi et al. 2024; see `guided_denoiser`
    step_cache: float = 0.0  # threshold of `StepCache`; 0: none

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"Expected sampler {' or '.join(SAMPLERS)}; got {self.sampler!r}.")
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            if not 0 <= low < high < math.inf:
                raise ValueError(
                    f"Expected a guidance interval of two noise levels, 0 <= low < high; got {low:g} to "
                    f"{high:g}. Give the smaller number first."
                )
        if not 0 <= self.step_cache < math.inf:
            raise ValueError(
                f"Expected a step cache threshold from 0 (off) on; got {self.step_cache:g}. Try 0.1."
            )

    def changed(self) -> dict[str, object]:
        """Return the fields that differ from the default, as JSON values."""
        changed = {name: value for name, value in asdict(self).items() if value != getattr(Solver, name)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}


class StepCache:
    """A denoise function for one window that reuses the network's own output, which changes slowly."""

    def __init__(self, denoise: DenoiseFunction, threshold: float) -> None:
        self.denoise = denoise
        self.threshold = threshold  # of the output's expected change, as a share of its size
        self.evaluated = 0
        self._last: tuple[Tensor, Tensor] | None = None  # input and output of the last evaluation
        self._rate = math.inf  # how far the output moved per movement of the input, once known

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the denoised prediction for latents ``x`` [N, C, h, w] at noise level ``sigma``."""
        c = precondition(sigma)
        given = x * c.c_in
        if self._last is not None:
            last_given, last_output = self._last
            moved = _distance(given, last_given)
            if self._rate * moved < self.threshold * float(last_output.abs().mean()):
                return last_output * c.c_out + x * c.c_skip
        denoised = self.denoise(x, sigma)
        self.evaluated += 1
        output = (denoised - x * c.c_skip) / c.c_out
        if self._last is not None:
            self._rate = _distance(output, self._last[1]) / max(_distance(given, self._last[0]), 1e-12)
        self._last = given, output
        return denoised


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().mean())


@dataclass(frozen=True)
class SamplingJob:
    """One window to denoise."""

    conditioning: Conditioning
    noise: Tensor  # [T * V, 4, h, w] float32 unit variance, order (t v)
    steps: int  # of the full schedule
    guidance: Tensor  # [T, V] guidance scales
    init: Tensor | None = None  # [T * V, 4, h, w] scaled latents; needed where ``strength`` skips steps
    strength: float = 1.0  # share of the schedule to run
    known: Tensor | None = None  # [K * V, 4, h, w] scaled latents of the first K frames, which stay
    seed: int = 0  # of the noise that a stochastic sampler adds on its way
    solver: Solver = Solver()  # of our own networks; a host brings its own
    callback: Callback | None = None


def holding(denoise: DenoiseFunction, known: Tensor, noise: Tensor) -> DenoiseFunction:
    """Return ``denoise`` where the first latents are ``known`` [K, C, h, w], under ``noise`` [N, C, h, w].

    The network sees them at the noise level of the others. Source: Lugmayr et al. 2022 (RePaint), equation 8.
    """
    held = len(known)

    def denoise_others(x: Tensor, sigma: Tensor) -> Tensor:
        noisy = known + noise[:held] * sigma.to(noise)
        return torch.cat([known, denoise(torch.cat([noisy, x[held:]]), sigma)[held:]])

    return denoise_others


def sample_window(unet: UNet, job: SamplingJob, sigma_min: float, sigma_max: float) -> Tensor:
    """Return the sampled latents of a window, [T * V, 4, h, w] float32 on the CPU."""
    weight = next(unet.parameters())
    sigmas = karras_sigmas(job.steps, sigma_min, sigma_max)
    start = first_step(job.steps, job.strength)
    noise = job.noise.to(weight.device, torch.float32)
    x = start_latents(noise, sigmas, start, None if job.init is None else job.init.to(noise))
    inputs = guided_inputs(job.conditioning, weight.device, weight.dtype)
    guided = guided_denoiser(unet, inputs, job.guidance, job.solver.guidance_interval)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return retry_on_oom(lambda: guided(x, sigma), unet.shrink_parts)

    cached = StepCache(denoise, job.solver.step_cache) if job.solver.step_cache else None
    network = cached or denoise
    if job.known is not None:
        network = holding(network, job.known.to(noise), noise)
    sampled = SAMPLERS[job.solver.sampler](network, x, sigmas, start, job.callback)
    if cached is not None:
        log.info("Step cache: %d of %d steps evaluated.", cached.evaluated, job.steps - start)
    return sampled.cpu()
