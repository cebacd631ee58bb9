"""The procedure from a clip to a grid of novel views; the one implementation for every backend.

Source: specification sections 3, 9 and 10; users' decisions on windows, noise and passes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor

from ..cameras import Cameras
from ..video.crop import PreparedClip
from ..video.foreground import near_white_masks
from ..views import ViewGrid
from .conditioning import Conditioning
from .guidance import resolve_guidance
from .inputs import check_cameras, checked, checked_clip
from .model import Backend, SamplingJob
from .one_window import encode_window
from .sampler import Callback
from .schedule import first_step
from .solver import Solver
from .windows import ping_pong, plan_windows

log = logging.getLogger(__name__)


class WindowStore(Protocol):
    """Keeps the latents of finished windows so that a later run can continue."""

    def load(self, index: int) -> Tensor | None:
        """Return the latents [T * V, 4, h, w] of a finished window, or None."""
        ...

    def save(self, index: int, latents: Tensor) -> None:
        """Keep the latents of a finished window."""
        ...


def window_seed(seed: int, index: int) -> int:
    """Return the seed of window ``index``, ``seed + index`` within the 64 bits that generators take."""
    return (seed + index) % 2**64


def window_noise(seed: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """Return the initial noise of window ``index``, from a CPU generator of its own."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(window_seed(seed, index)))


def sample_views(
    model: Backend,
    clip: PreparedClip | Tensor,
    cameras: Cameras,
    *,
    steps: int = 50,
    seed: int = 23,
    cfg: float | tuple[float, float] | Tensor | None = None,
    noise: Tensor | None = None,
    reference_views: Tensor | None = None,
    init_views: Tensor | None = None,
    strength: float = 1.0,
    sampler: str = "euler",
    guidance_interval: tuple[float, float] | None = None,
    step_cache: float = 0.0,
    fps: float | None = None,
    store: WindowStore | None = None,
    callback: Callback | None = None,
) -> ViewGrid:
    """Return the clip seen from all cameras.

    Args:
        model: a loaded `Model`, or a host's backend.
        clip: a prepared clip, or images [T, H, W, 3] in 0..1 that are taken as they are. A clip shorter
            than the model's window is extended by playing it back and forth, and trimmed again.
        cameras: V novel views, or a multiple of the model's V: then several passes share the input.
        steps: denoising steps of the full schedule.
        seed: window k starts from CPU noise seeded with ``seed + k``.
        cfg: guidance: None (the variant's own), a number, (min, max), or a table [T, V] of one window.
        noise: explicit initial noise [windows, T * V, 4, h, w] in place of the seeded one.
        reference_views: [V, H, W, 3] images of frame 0 from the novel cameras, for the first window.
        init_views: [T, V, H, W, 3] views to start from when ``strength`` is below 1.
        strength: share of the schedule to run.
        sampler, guidance_interval, step_cache: what trades accuracy for time, see `Solver`; a host's backend
            has its own sampler and does not read them.
        fps: frames per second of the result (None: the clip's own, 8 for plain images).
        store: keeps finished windows; what it already holds is not computed again.
        callback: ``callback(step, total, preview)`` after each step; may raise to cancel.

    Raises:
        ValueError: inputs whose shapes or values do not fit the model.
    """
    config = model.config
    solver = Solver(sampler, guidance_interval, step_cache)
    images = checked_clip(clip if isinstance(clip, Tensor) else clip.images, config)
    check_cameras(cameras, config)
    shape = tuple(images.shape[1:])
    if reference_views is not None:
        reference_views = checked("reference_views", reference_views, (cameras.n_views, *shape))
    if init_views is not None:
        init_views = checked("init_views", init_views, (len(images), cameras.n_views, *shape))
    if init_views is None and first_step(steps, strength) > 0:
        raise ValueError(
            f"Strength (denoise) {strength:g} starts from given views; got none: give init_views."
        )

    order = ping_pong(len(images), config.n_frames)
    if len(order) > len(images):
        log.warning(
            "The clip has %d frames, a window needs %d: it is played back and forth and trimmed again.",
            len(images),
            config.n_frames,
        )
    starts = plan_windows(len(order), config.n_frames)
    latent_shape = (
        config.n_frames * config.n_views,
        config.unet.latent_channels,
        shape[0] // config.latent_factor,
        shape[1] // config.latent_factor,
    )
    passes = cameras.n_views // config.n_views
    if noise is not None:
        noise = checked("noise", noise, (passes * len(starts), *latent_shape), in_unit_range=False)
    run = _Run(
        model=model,
        steps=steps,
        strength=strength,
        guidance=resolve_guidance(
            cfg, config.guidance, config.n_frames, config.n_views, (config.cfg_min, config.cfg_max)
        ),
        seed=seed,
        solver=solver,
        noise=noise,
        store=store,
        callback=callback,
        starts=starts,
        n_windows=passes * len(starts),
        latent_shape=latent_shape,
        tokens=model.embed(images)[order],
        frame_latents=model.encode(images, role="frames")[order],
    )
    views, latents = [], []
    for number in range(passes):
        selected = range(number * config.n_views, (number + 1) * config.n_views)
        references = None if reference_views is None else reference_views[list(selected)]
        init = None if init_views is None else init_views[order][:, list(selected)]
        of_pass = run.one_pass(number, cameras.select(selected), references, init)
        views.append(of_pass[0][: len(images)])
        latents.append(of_pass[1][: len(images)])
    novel = torch.cat(views, dim=1)
    grid = torch.cat([images[:, None], novel], dim=1)
    input_masks = near_white_masks(images) if isinstance(clip, Tensor) else clip.masks
    return ViewGrid(
        images=grid,
        cameras=cameras,
        masks=torch.cat([input_masks[:, None].float(), near_white_masks(novel)], dim=1),
        fps=fps if fps is not None else (8.0 if isinstance(clip, Tensor) else clip.fps),
        latents=torch.cat(latents, dim=1),
        variant=config.label,
        trained=config.trained,
        seed=seed,
        steps=steps,
    )


@dataclass(frozen=True)
class _Run:
    """What all windows of a run share.

    Args:
        starts: first frame of each window of a pass.
        n_windows: of all passes.
        latent_shape: of one window, [T * V, 4, h, w].
        tokens: [frames, D] image embeddings.
        frame_latents: [frames, 4, h, w] latents of the input frames.
    """

    model: Backend
    steps: int
    strength: float
    guidance: Tensor
    seed: int
    solver: Solver
    noise: Tensor | None
    store: WindowStore | None
    callback: Callback | None
    starts: list[int]
    n_windows: int
    latent_shape: tuple[int, ...]
    tokens: Tensor
    frame_latents: Tensor

    def one_pass(
        self, number: int, cameras: Cameras, references: Tensor | None, init: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return images [frames, V, H, W, 3] and latents [frames, V, 4, h, w] from one set of V cameras."""
        config = self.model.config
        n_frames, n_views = len(self.tokens), config.n_views
        height, width = (n * config.latent_factor for n in self.latent_shape[2:])
        images = torch.zeros(n_frames, n_views, height, width, 3)
        latents = torch.zeros(n_frames, n_views, *self.latent_shape[1:])
        for index, start in enumerate(self.starts, number * len(self.starts)):
            frames = slice(start, start + config.n_frames)
            if start > 0:
                references = images[start]
            sampled = self._finished(index)
            if sampled is None:
                conditioning = encode_window(
                    self.model, self.tokens[frames], self.frame_latents[frames], cameras, references
                )
                sampled = self._window(index, conditioning, None if init is None else init[frames])
            latents[frames] = rearrange(sampled, "(t v) c h w -> t v c h w", v=n_views)
            images[frames] = rearrange(self.model.decode(sampled), "(t v) h w c -> t v h w c", v=n_views)
        return images, latents

    def _finished(self, index: int) -> Tensor | None:
        """Return the latents of a window that the store has, or None."""
        finished = None if self.store is None else self.store.load(index)
        if finished is not None:
            self._progress(index, self.steps, None)
        return finished

    def _window(self, index: int, conditioning: Conditioning, init: Tensor | None) -> Tensor:
        """Return the latents of one window, sampled and kept in the store."""
        if init is not None:
            encoded = self.model.encode(init.flatten(0, 1), role="frames")
            init = encoded * self.model.config.scale_factor
        sampled = self.model.denoise(
            SamplingJob(
                conditioning=conditioning,
                noise=(
                    window_noise(self.seed, index, self.latent_shape)
                    if self.noise is None
                    else self.noise[index]
                ),
                steps=self.steps,
                guidance=self.guidance,
                init=init,
                strength=self.strength,
                seed=window_seed(self.seed, index),
                solver=self.solver,
                callback=lambda step, _total, preview: self._progress(index, step, preview),
            )
        )
        if not sampled.isfinite().all():
            raise ValueError(
                "Expected finite latents from the sampler; got NaN or infinite ones. Half precision may have "
                "overflowed: use bf16 or fp32. If it is not in use, the checkpoint is damaged."
            )
        if self.store is not None:
            self.store.save(index, sampled)
        return sampled

    def _progress(self, index: int, step: int, preview: Tensor | None) -> None:
        if self.callback is not None:
            self.callback(index * self.steps + step, self.n_windows * self.steps, preview)
