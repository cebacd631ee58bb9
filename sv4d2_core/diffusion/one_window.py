"""One window of a clip: its frames, and what the network is told about them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cameras import Cameras
from .conditioning import Conditioning, camera_vectors
from .config import ModelConfig
from .inputs import checked, checked_clip
from .model import Backend
from .windows import ping_pong


def window_frames(config: ModelConfig, clip: Tensor, start: int = 0) -> Tensor:
    """Return the frames of one window, [T, H, W, 3] float32 on the CPU.

    Args:
        config: of the model, whose windows have T frames.
        clip: images [N, H, W, 3] in 0..1; a clip shorter than the window is played back and forth.
        start: first frame of the window.

    Raises:
        ValueError: images that do not fit the model, a window beyond the clip.
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
    """Return the conditioning of one window, for callers that sample it by themselves.

    Args:
        model: a loaded `Model`, or a host's backend.
        frames: [T, H, W, 3] from `window_frames`.
        cameras: exactly the model's V novel views.
        reference_views: [V, H, W, 3] images of the first frame from the novel cameras, or None.

    Raises:
        ValueError: inputs whose shapes or values do not fit the model.
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
    """Return a window's conditioning from what its frames were encoded to.

    Args:
        model: encodes the reference views.
        tokens: [T, D] image embedding of each frame.
        frame_latents: [T, 4, h, w] unscaled latents of the frames.
        cameras: V novel views.
        references: [V, H, W, 3] images of the first frame from the novel cameras, or None.
    """
    if references is None:
        reference_latents = torch.zeros(cameras.n_views, *frame_latents.shape[1:])
    else:
        reference_latents = model.encode(references, role="views")
    vectors, uncond_vectors = camera_vectors(cameras, model.config.vector_dims)
    return Conditioning(tokens, frame_latents, reference_latents, vectors, uncond_vectors)
