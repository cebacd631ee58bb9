"""From a clip to a grid of novel views: windows of T frames, passes of V views (Yao et al. 2025, SV4D 2.0).

A window's reference views are the generated views of the frame that it shares with an earlier one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import product
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor

from ..cameras import Cameras
from ..video.foreground import near_white_masks
from ..video.prepare import PreparedClip
from ..views import ViewGrid, check_fps
from .config import ModelConfig
from .model import Backend
from .sampling import (
    Callback,
    Conditioning,
    SamplingJob,
    Solver,
    camera_vectors,
    first_step,
    resolve_guidance,
)

# What a window does with frames that the one before made. official: makes them anew; held: keeps them.
WINDOWS = ("official", "held")
_FLAT = 0.03  # range of a picture without an object, 0..1

log = logging.getLogger(__name__)


def plan_windows(n_frames: int, window: int) -> list[int]:
    """Return the first frame of each window; neighbours share a frame, whose views condition the later."""
    if n_frames < window:
        raise ValueError(f"Expected at least {window} frames (one window); got {n_frames}. Extend the clip.")
    starts = [0]
    while starts[-1] + window < n_frames:
        starts.append(min(starts[-1] + window - 1, n_frames - window))
    return starts


def ping_pong(n_frames: int, at_least: int) -> list[int]:
    """Return the numbers of a clip's frames, played forward and backward until there are ``at_least``."""
    forward = list(range(n_frames))
    cycle = forward + forward[-2:0:-1]
    return [cycle[i % len(cycle)] for i in range(max(n_frames, at_least))]


_WHAT_TO_GIVE = {
    "clip": "Give frames as SV4D2 Prepare Clip or prepare_clip makes them.",
    "masks": "Give one mask per frame, of the clip's size.",
    "reference_views": "Give one image of the first frame per novel camera, of the clip's size.",
    "init_views": "Give views of the same frames, cameras and size as this job.",
    "noise": "Give one noise tensor per window.",
}


def checked(name: str, value: Tensor, shape: tuple[int, ...], in_unit_range: bool = True) -> Tensor:
    """Return ``value`` as float32 on the CPU, or raise ValueError for another shape or range."""
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
    """Return a clip [T, H, W, 3] as float32 on the CPU; ValueError where the model cannot take it."""
    images = checked("clip", images, (len(images), *images.shape[1:3], 3))
    height, width = images.shape[1:3]
    if height != width:
        raise ValueError(
            f"Expected square frames; got {width} x {height}. Prepare the clip with a size divisible by "
            f"{config.size_multiple}."
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


def window_frames(config: ModelConfig, clip: Tensor, start: int = 0) -> Tensor:
    """Return a window's frames [T, H, W, 3]; a clip [N, H, W, 3] with fewer is played back and forth.

    Raises ValueError for a clip that the model cannot take, or a window outside it.
    """
    images = checked_clip(clip, config)
    order = ping_pong(len(images), config.n_frames)
    if not 0 <= start <= len(order) - config.n_frames:
        raise ValueError(
            f"Expected a window of {config.n_frames} frames inside the clip of {len(order)}, so a start from "
            f"0 to {len(order) - config.n_frames}; got {start}."
        )
    return images[order[start : start + config.n_frames]]


def window_conditioning(
    model: Backend, frames: Tensor, cameras: Cameras, reference_views: Tensor | None = None
) -> Conditioning:
    """Return the conditioning of one window of `window_frames`, for callers that sample it by themselves.

    ``reference_views`` [V, H, W, 3] show the first frame. ValueError: inputs that do not fit the model.
    """
    config = model.config
    if cameras.n_views != config.n_views:
        raise ValueError(
            f"One window of {config.variant} has {config.n_views} novel views; got {cameras.n_views}. Give "
            f"{config.n_views} cameras, or sample all views with sample_views (SV4D2 Sampler)."
        )
    references = None
    if reference_views is not None:
        references = checked("reference_views", reference_views, (cameras.n_views, *frames.shape[1:]))
    return encode_window(model, model.embed(frames), model.encode(frames, role="frames"), cameras, references)


def encode_window(
    model: Backend, tokens: Tensor, frame_latents: Tensor, cameras: Cameras, references: Tensor | None
) -> Conditioning:
    """Return a window's conditioning from ``tokens`` [T, D] and ``frame_latents`` [T, 4, h, w]."""
    if references is None:
        reference_latents = torch.zeros(cameras.n_views, *frame_latents.shape[1:])
    else:
        reference_latents = model.encode(references, role="views")
    vectors, uncond_vectors = camera_vectors(cameras, model.config.vector_dims)
    return Conditioning(tokens, frame_latents, reference_latents, vectors, uncond_vectors)


class WindowStore(Protocol):
    """Keeps the latents [T * V, 4, h, w] of finished windows so that a later run can continue."""

    def load(self, index: int) -> Tensor | None: ...

    def save(self, index: int, latents: Tensor) -> None: ...


def window_seed(seed: int, index: int) -> int:
    """Return ``seed + index`` within the 64 bits that generators take."""
    return (seed + index) % 2**64


def window_noise(seed: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """Return the initial noise of window ``index``, from a CPU generator of its own."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(window_seed(seed, index)))


def sample_views(
    model: Backend,  # a loaded `Model`, or a host's
    clip: PreparedClip | Tensor,  # Tensor: images [T, H, W, 3] in 0..1, taken as they are
    cameras: Cameras,  # V novel views, or a multiple of the model's V: several passes that share the input
    *,
    steps: int = 50,  # of the full schedule
    seed: int = 23,  # window k starts from CPU noise seeded with ``seed + k``
    cfg: float | tuple[float, float] | Tensor | None = None,  # guidance, see `resolve_guidance`
    noise: Tensor | None = None,  # [windows, T * V, 4, h, w] in place of the seeded one
    reference_views: Tensor | None = None,  # [V, H, W, 3] frame 0 from the novel cameras
    init_views: Tensor | None = None,  # [T, V, H, W, 3] views to start from when ``strength`` is below 1
    strength: float = 1.0,  # share of the schedule to run
    windows: str = "official",  # of `WINDOWS`: how the windows of a long clip agree
    sampler: str = "euler",  # this and the next two: see `Solver`; a host's backend has its own sampler
    guidance_interval: tuple[float, float] | None = None,
    step_cache: float = 0.0,
    fps: float | None = None,  # of the result; None: the clip's own, 8 for plain images
    store: WindowStore | None = None,  # keeps finished windows; what it holds is not computed again
    callback: Callback | None = None,  # ``callback(step, total, preview)`` after each step
) -> ViewGrid:
    """Return the clip seen from all cameras; the callback may raise to cancel.

    A clip shorter than the model's window is played back and forth, and trimmed again. ValueError: inputs
    whose shapes or values do not fit the model.
    """
    if windows not in WINDOWS:
        raise ValueError(f"Expected windows {' or '.join(WINDOWS)}; got {windows!r}.")
    config = model.config
    solver = Solver(sampler, guidance_interval, step_cache)
    plain = isinstance(clip, Tensor)
    images = checked_clip(clip if plain else clip.images, config)
    check_cameras(cameras, config)
    fps = fps if fps is not None else (8.0 if plain else clip.fps)
    check_fps(fps, "the views")
    masks = near_white_masks(images) if plain else checked("masks", clip.masks, tuple(images.shape[:3]))
    size, guidance = tuple(images.shape[1:]), resolve_guidance(cfg, config)
    if reference_views is not None:
        reference_views = checked("reference_views", reference_views, (cameras.n_views, *size))
    if init_views is not None:
        init_views = checked("init_views", init_views, (len(images), cameras.n_views, *size))
    if first_step(steps, strength) > 0 and init_views is None:
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
    passes = [slice(v, v + config.n_views) for v in range(0, cameras.n_views, config.n_views)]
    plan = list(product(passes, plan_windows(len(order), config.n_frames)))
    latent_size = (config.unet.latent_channels, *(n // config.latent_factor for n in size[:2]))
    noise_shape = (config.n_frames * config.n_views, *latent_size)
    if noise is not None:
        noise = checked("noise", noise, (len(plan), *noise_shape), in_unit_range=False)

    tokens, frame_latents = model.embed(images)[order], model.encode(images, role="frames")[order]
    novel = torch.zeros(len(order), cameras.n_views, *size)
    latents = torch.zeros(len(order), cameras.n_views, *latent_size)
    done = 0  # frames that the windows of this pass have made
    for index, (views, start) in enumerate(plan):
        frames = slice(start, start + config.n_frames)

        def progress(step: int, _steps: int, preview: Tensor | None, index: int = index) -> None:
            if callback is not None:
                callback(index * steps + step, len(plan) * steps, preview)

        sampled = None if store is None else store.load(index)
        if sampled is not None:
            progress(steps, steps, None)
        else:
            references = novel[start] if start > 0 else reference_views
            init = None
            if init_views is not None:
                shown = init_views[order[frames], views].flatten(0, 1)
                init = model.encode(shown, role="frames") * config.scale_factor
            held = windows == "held" and start > 0
            known = latents[start:done, views].flatten(0, 1) if held else None
            job = SamplingJob(
                conditioning=encode_window(
                    model,
                    tokens[frames],
                    frame_latents[frames],
                    cameras.select(list(range(cameras.n_views))[views]),
                    None if references is None else references[views],
                ),
                noise=window_noise(seed, index, noise_shape) if noise is None else noise[index],
                steps=steps,
                guidance=guidance,
                init=init,
                strength=strength,
                known=known,
                seed=window_seed(seed, index),
                solver=solver,
                callback=progress,
            )
            sampled = model.denoise(job)
            if known is not None:  # the last step rounds
                sampled = torch.cat([known, sampled[len(known) :]])
            if not sampled.isfinite().all():
                raise ValueError(
                    "Expected finite latents from the sampler; got NaN or infinite ones. Half precision may "
                    "have overflowed: use bf16 or fp32. If it is not in use, the checkpoint is damaged."
                )
            if store is not None:
                store.save(index, sampled)
        done = frames.stop
        latents[frames, views] = rearrange(sampled, "(t v) c h w -> t v c h w", v=config.n_views)
        novel[frames, views] = rearrange(model.decode(sampled), "(t v) h w c -> t v h w c", v=config.n_views)
    novel, latents = novel[: len(images)], latents[: len(images)]
    flat = (novel.amax((2, 3)) - novel.amin((2, 3))).amax(-1) < _FLAT
    if flat.any():
        log.warning(
            "%d of %d sampled pictures are flat (one colour all over): the checkpoint is damaged, or the "
            "object is lost there.",
            *(int(flat.sum()), flat.numel()),
        )
    return ViewGrid(
        images=torch.cat([images[:, None], novel], dim=1),
        cameras=cameras,
        masks=torch.cat([masks[:, None], near_white_masks(novel)], dim=1),
        fps=fps,
        latents=latents,
        variant=config.label,
        trained=config.trained,
        seed=seed if noise is None else None,
        steps=steps,
    )


def resynthesizer(
    model: Backend,
    views: ViewGrid,
    *,
    steps: int = 50,
    seed: int = 23,
    cfg: float | tuple[float, float] | Tensor | None = None,
    callback: Callback | None = None,
) -> Callable[[ViewGrid, float], ViewGrid]:
    """Return a function (rendered, strength) -> views of the rendered ones' cameras and size.

    The network sees the input video of ``views`` at its own size, and frame 0 of the rendered views as
    reference views, the path that it was trained for by masking them at random. ValueError: what does not
    fit the model.
    """
    clip = checked_clip(views.images[:, 0], model.config)
    check_cameras(views.cameras, model.config)

    def resynthesize(rendered: ViewGrid, strength: float) -> ViewGrid:
        if rendered.n_frames != len(clip):
            raise ValueError(
                f"Expected {len(clip)} frames like the input video; got {rendered.n_frames}. Render them all."
            )
        shown = rendered.resized(clip.shape[1])
        made = sample_views(
            model,
            clip,
            rendered.cameras,
            steps=steps,
            seed=seed,
            cfg=cfg,
            reference_views=shown.images[0, 1:],
            init_views=shown.images[:, 1:],
            strength=strength,
            fps=rendered.fps,
            callback=callback,
        )
        return made.resized(rendered.images.shape[2])

    return resynthesize
