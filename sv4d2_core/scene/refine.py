"""Views in, a 4D scene out: a first fit, then rounds that make the views anew from it and fit again.

The second stage follows SV4D 2.0's slides and abstract; its details are not published (strength, cameras,
weights are ours). Without a model to make views anew, its rounds only weigh the given views by visibility.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..cameras import Cameras
from ..video.foreground import near_white_masks
from ..views import ViewGrid
from .config import RefineConfig
from .fit import Fit, FitProgress, RoundTargets
from .following import ring_cameras
from .losses import checked_normals
from .rays import Perceptual
from .scene import Scene4D, SceneRendering
from .store import FitState
from .trust import pixel_trust, visibility_weights

_LOG = logging.getLogger(__name__)
# Silhouettes of fewer pixels, over all frames and views, hold no shape.
_LEAST_SHARE = 0.001


def checked_views(views: ViewGrid) -> ViewGrid:
    """Return float32 views on the CPU with masks, which the near-white rule makes where they are missing.

    Raises:
        ValueError: pictures that are not square, too small, not finite or out of range, pictures without an
            object, times that do not rise.
    """
    n_frames, n_views, height, width = views.images.shape[:4]
    if n_frames < 1:
        raise ValueError("Expected at least one frame; got none. Give views [T, V + 1, H, W, 3] with T >= 1.")
    if height != width or height < 16:
        raise ValueError(
            f"Expected square pictures of at least 16 pixels; got {width} x {height}. Crop or pad the views "
            f"to a square on white."
        )
    times = views.frame_times()
    if not all(0 <= time <= 1 for time in times) or any(
        a >= b for a, b in zip(times, times[1:], strict=False)
    ):
        raise ValueError(f"Expected rising times in 0..1, one per frame; got {times}. Sort the frames.")
    images = views.images.detach().cpu().float()
    _check_range("images", images)
    if views.masks is None:
        _LOG.warning("The views have no masks: every pixel that is not near-white counts as the object.")
        masks = near_white_masks(images)
    else:
        masks = views.masks.detach().cpu().float()
        _check_range("masks", masks)
    _check_silhouettes(masks)
    if float((images - images[:1, :1, :1, :1]).abs().max()) < 1 / 255:
        raise ValueError(
            f"Expected pictures of an object; got {n_frames * n_views} pictures of one colour, "
            f"{images[0, 0, 0, 0].tolist()}. Check where the views come from."
        )
    return replace(views, images=images.clamp(0, 1), masks=masks.clamp(0, 1), latents=None)


def _check_range(name: str, values: torch.Tensor) -> None:
    bad = int((~values.isfinite()).sum())
    if bad:
        raise ValueError(
            f"Expected finite {name}; got {bad} of {values.numel()} values that are NaN or infinite. The "
            f"views were sampled or decoded wrongly: try float32."
        )
    low, high = float(values.min()), float(values.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(f"Expected {name} in 0..1; got {low:g} to {high:g}. Divide 8-bit values by 255.")


def _check_silhouettes(masks: torch.Tensor) -> None:
    inside = masks >= 0.5
    share = float(inside.float().mean())
    if not _LEAST_SHARE <= share < 1:
        what = "no background" if share == 1 else f"an object on {100 * share:.2g} % of the pixels"
        raise ValueError(
            f"Expected an object on a white background; got {what} in {masks.shape[0] * masks.shape[1]} "
            f"pictures. Give masks (white = object)."
        )
    empty = (~inside.flatten(2).any(-1)).nonzero().tolist()
    if empty:
        shown = ", ".join(f"frame {t} view {v}" for t, v in empty[:4])
        raise ValueError(
            f"Expected the object in every picture; {len(empty)} of {masks.shape[0] * masks.shape[1]} are "
            f"empty ({shown}). Leave these frames out, or give better masks."
        )


log = logging.getLogger(__name__)

# Makes views anew from a scene's pictures: (rendered views, strength) -> views of the same cameras and size.
Resynthesize = Callable[[ViewGrid, float], ViewGrid]
Callback = Callable[[int, int, FitProgress], None]
_DEFAULTS = RefineConfig()


def refine_scene(
    views: ViewGrid,
    config: RefineConfig = _DEFAULTS,
    *,
    resynthesize: Resynthesize | None = None,
    perceptual: Perceptual | None = None,
    normals: Tensor | None = None,
    callback: Callback | None = None,
    device: torch.device | str = "cpu",
    state: FitState | None = None,
) -> Scene4D:
    """Return the scene that shows what the views show.

    Args:
        views: square pictures of at least two views; without masks the near-white rule makes them.
        config: every number of the procedure; ``rounds`` 0 leaves the second stage out.
        resynthesize: denoises the scene's pictures again; None: the rounds keep the given views.
        perceptual: distance of patches, such as LPIPS, in place of SSIM.
        normals: [T, V + 1, H, W, 3] of the views from an estimator, unit, in the camera's OpenGL axes (x
            right, y up, z towards the camera), 0 where not known; None: none.
        callback: called with (steps done, all steps, `FitProgress`) after every step, and while a round
            renders; may raise to cancel.
        device: where the scene is fitted and stays.
        state: continue this interrupted fit.

    Raises:
        ValueError: views that cannot be fitted, or a state of another fit; the text says what to change.
        FloatingPointError: the fit diverged; the text says which setting to lower.
    """
    views = checked_views(views)
    fit = Fit(views, config, device, perceptual, checked_normals(normals, views))
    if state is not None:
        fit.restore(state)
    total = config.total_steps
    while fit.step < total:
        after = fit.step - config.stage_one_steps
        if after >= 0 and after % config.steps_refine == 0:
            fit.aim(_round(fit, after // config.steps_refine, resynthesize, callback))
        fit.advance()
        if callback is not None:
            callback(fit.step, total, fit.progress)
    return fit.scene


def _round(
    fit: Fit, number: int, resynthesize: Resynthesize | None, callback: Callback | None
) -> RoundTargets:
    """Return what round ``number``, from 0, is fitted to."""
    config, targets = fit.config, fit.views

    def progress(*_: object) -> None:
        if callback is not None:
            callback(fit.step, config.total_steps, fit.progress)

    def rendered(cameras: Cameras) -> SceneRendering:
        return fit.scene.render(
            cameras, fit.views.frame_times(), fit.views.images.shape[2], callback=progress
        )

    if resynthesize is None:
        if number == 0:
            log.warning("Stage 2 has no model to make views anew with: it only weighs them by visibility.")
        rendering = rendered(targets.cameras) if config.weight_by_visibility else None
    else:
        cameras = ring_cameras(fit.views.cameras, config.ring_elevations_deg)
        rendering = rendered(cameras)
        strength = config.strength * config.strength_falling**number
        targets = _made_anew(fit.views, cameras, rendering, resynthesize, strength)
    return RoundTargets.of(targets, _weights(config, rendering, targets))


def _weights(config: RefineConfig, rendering: SceneRendering | None, targets: ViewGrid) -> Tensor:
    if config.weight_by_visibility and rendering is not None:
        return visibility_weights(rendering, targets, trusted=not config.weight_by_trust)
    return pixel_trust(targets) if config.weight_by_trust else torch.ones(targets.images.shape[:4])


def _made_anew(
    views: ViewGrid, cameras: Cameras, rendering: SceneRendering, resynthesize: Resynthesize, strength: float
) -> ViewGrid:
    """Return views of all cameras, made anew from the scene's pictures; the input view is as given."""
    images, masks = rendering.rgb.clone(), rendering.alpha.clone()
    images[:, 0] = views.images[:, 0]
    if views.masks is not None:
        masks[:, 0] = views.masks[:, 0]
    shown = replace(views, images=images, masks=masks, cameras=cameras, latents=None)
    made = resynthesize(shown, strength)
    if made.images.shape != images.shape or made.cameras != cameras:
        raise ValueError(
            f"Expected resynthesised views {list(images.shape)} of the same cameras; got "
            f"{list(made.images.shape)} of {made.cameras.n_views} novel views. Keep the order of the views."
        )
    new = made.images.detach().cpu().float().clamp(0, 1)
    masks = near_white_masks(new) if made.masks is None else made.masks.detach().cpu().float().clamp(0, 1)
    lost = ~(masks >= 0.5).flatten(2).any(-1) & new.isfinite().flatten(2).all(-1)
    if lost.any():
        count = int(lost.sum())
        log.warning("%d of %d views made anew show no object: the scene's stay.", count, lost.numel())
        new[lost], masks[lost] = images[lost], rendering.alpha[lost]
    return checked_views(replace(shown, images=new, masks=masks))


_WARM_UP, _TIMED = 5, 20


def steps_in(
    minutes: float, views: ViewGrid, config: RefineConfig, device: torch.device | str = "cpu"
) -> int:
    """Return about how many steps of a fit take ``minutes``, by doing a few; at least 4.

    Not counted is what the model of a second stage, a perceptual distance and normals take. Equal steps give
    equal scenes; equal minutes need not.

    Raises:
        ValueError: views that cannot be fitted.
    """
    probe = replace(config, steps_static=0, steps=_WARM_UP + _TIMED, rounds=0, patch_start=0.0)
    fit = Fit(checked_views(views), probe, device)
    for _ in range(_WARM_UP):
        fit.advance()
    began = time.perf_counter()
    for _ in range(_TIMED):
        fit.advance()
    return max(int(60 * minutes * _TIMED / (time.perf_counter() - began)), 4)
