"""Previews on a node: progress and pictures while it runs, a picture and text at its end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import comfy.utils
import numpy as np
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy_api.latest import io, ui
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..sv4d2_core.cameras import Cameras
from ..sv4d2_core.scene.scene import Scene4D, own_cameras
from ..sv4d2_core.video.pictures import pick_frames, to_bytes
from ..sv4d2_core.views import ViewGrid
from .host import check_cancelled

_FRAMES, _VIEWS = 6, 3  # frames of latents, and views of a scene, that are shown
# Previews of a fit: seconds between two, their share of the time, and their sides in pixels.
_EVERY_S, _SHARE = 2.0, 0.1
_SMALLEST, _FIRST, _LARGEST = 32, 64, 128

Draw = Callable[[], Image.Image | None]


class Progress:
    """The bar of the running node, as callback (done, total, ...); raises when the user cancels."""

    def __init__(self) -> None:
        self._bar: comfy.utils.ProgressBar | None = None

    def __call__(self, done: int, total: int, *_: object) -> None:
        self.show(done, total, lambda: None)

    def show(self, done: int, total: int, draw: Draw, full_size: bool = False) -> None:
        """Move the bar, with a picture where the user wants one."""
        check_cancelled()
        bar = self._bar = self._bar or comfy.utils.ProgressBar(total)
        bar.update_absolute(done, total, live_preview(draw, full_size))


def live_preview(draw: Draw, full_size: bool = False) -> tuple[str, Image.Image, int | None] | None:
    """Return a picture as the host's progress bar takes it; None, and nothing drawn, without previews.

    The user chooses method and size for the server, in newer hosts for each run.
    """
    if args.preview_method == LatentPreviewMethod.NoPreviews:
        return None
    picture = draw()
    return None if picture is None else ("JPEG", picture, None if full_size else args.preview_size)


def latent_picture(latents: Tensor | None, n_views: int, latent_format: Any) -> Image.Image | None:
    """Return latents [T * V, 4, h, w] as a picture, a row per view; None without latents or RGB factors."""
    if latents is None or latent_format.latent_rgb_factors is None:
        return None
    grid = rearrange(latents, "(t v) c h w -> v t h w c", v=n_views)
    shown = grid[:, pick_frames(grid.shape[1], _FRAMES)].float()
    factors = torch.tensor(latent_format.latent_rgb_factors).to(shown)
    bias = torch.tensor(getattr(latent_format, "latent_rgb_factors_bias", None) or [0.0, 0.0, 0.0]).to(shown)
    return _tiled((shown @ factors + bias + 1) / 2)


class ScenePreview:
    """Views above, the scene below, another frame each time; as large as `_SHARE` of the time allows."""

    def __init__(self, views: ViewGrid) -> None:
        self._views = views
        self._largest = min(_LARGEST, views.images.shape[2])
        self._size = min(_FIRST, self._largest)
        self._count, self._next = 0, 0.0

    def picture(self, scene: Scene4D) -> Image.Image | None:
        """Return the picture of the moment, or None while it is too early for one."""
        began = time.perf_counter()
        if began < self._next:
            return None
        frame = self._count % self._views.n_frames
        shown, chosen = _seen(scene, self._views.cameras, self._views.frame_times()[frame], self._size)
        given = self._views.at_frames([frame]).resized(self._size).images[0, chosen]
        picture = _tiled(torch.stack([given, shown]))
        self._count += 1
        ended = time.perf_counter()
        seconds = ended - began
        self._next = ended + max(_EVERY_S, seconds * (1 / _SHARE - 1))
        size = self._size * math.sqrt(_SHARE * _EVERY_S / max(seconds, 1e-3))
        self._size = max(min(int(size) // 8 * 8, self._largest), min(_SMALLEST, self._largest))
        return picture


def scene_strip(scene: Scene4D) -> Image.Image:
    """Return the scene in the middle of its time from some of its own cameras, side by side."""
    shown, _ = _seen(scene, own_cameras(scene), scene.times[len(scene.times) // 2], _LARGEST)
    return _tiled(shown[None])


def _seen(scene: Scene4D, cameras: Cameras, moment: float, size: int) -> tuple[Tensor, list[int]]:
    """Return pictures [C, H, W, 3] of a scene from some cameras, and which these are."""
    chosen = pick_frames(cameras.n_views + 1, _VIEWS)
    how = {"views": chosen, "normals": False, "callback": check_cancelled}
    return scene.render(cameras, [moment], size, **how).rgb[0], chosen


def _tiled(pictures: Tensor) -> Image.Image:
    """Return pictures [R, C, H, W, 3] in R rows and C columns."""
    return Image.fromarray(to_bytes(rearrange(pictures.clamp(0, 1), "r c h w k -> (r h) (c w) k")))


def as_images(picture: Image.Image) -> Tensor:
    """Return a picture as the host's IMAGE [1, H, W, 3]."""
    return torch.from_numpy(np.asarray(picture.convert("RGB")).astype(np.float32) / 255)[None]


def picture_preview(
    picture: Image.Image | Tensor, lines: Sequence[str] = (), cls: type[io.ComfyNode] | None = None
) -> dict[str, Any]:
    """Return the `ui` result of a node that shows a picture and, where the page knows how, lines of text.

    Tensors are [H, W, 3] or [N, H, W, 3] in 0..1. The host writes the workflow of ``cls`` into the picture.
    """
    images = as_images(picture) if isinstance(picture, Image.Image) else picture
    shown = ui.PreviewImage(images if images.ndim == 4 else images[None], cls=cls).as_dict()
    return {**shown, "text": list(lines)} if lines else shown
