"""Views in, a 4D scene out: a first fit, then rounds that make the views anew from it and fit again.

`refine_scene` is the whole job for every door: checked and resized views, the input's elevation, the path of
an object that the crop followed, both stages. The second stage follows SV4D 2.0 (2503.16396) as far as its
abstract and slides tell; strength, cameras and weights are ours. Without a model to make views anew, its
rounds only weigh the given views by visibility.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..cameras import Cameras
from ..video.crop import CropPath
from ..video.foreground import near_white_masks
from ..views import ViewGrid
from .config import RefineConfig
from .dynerf.following import ring_cameras
from .dynerf.rays import Perceptual
from .fit import Fit, FitProgress, RoundTargets
from .geometry.elevation import with_elevation
from .geometry.paths import object_path
from .geometry.trust import pixel_trust, visibility_weights
from .losses import checked_normals, resized_normals
from .scene import Scene4D, SceneRendering
from .schedule import Step, schedule
from .store import FitState

log = logging.getLogger(__name__)

# Makes views anew from a scene's pictures: (rendered views, strength) -> views of the same cameras and size.
Resynthesize = Callable[[ViewGrid, float], ViewGrid]
Callback = Callable[[int, int, FitProgress], None]

# Silhouettes of fewer pixels, over all frames and views, hold no shape.
_LEAST_SHARE = 0.001
# Side of a patch for a perceptual distance, and the least: the backbones of LPIPS need room.
_PERCEPTUAL_PATCH, _LEAST_PERCEPTUAL_PATCH = 64, 32
# Steps that are done to see how long one takes.
_WARM_UP, _TIMED = 5, 20


def refine_scene(
    views: ViewGrid,
    config: RefineConfig | None = None,
    *,
    # how the views are taken
    size: int | None = None,
    input_elevation_deg: float | None = None,
    crop: CropPath | None = None,
    # what else they are compared with
    resynthesize: Resynthesize | None = None,
    perceptual: Perceptual | None = None,
    normals: Tensor | None = None,
    # the run
    minutes: float | None = None,
    callback: Callback | None = None,
    device: torch.device | str = "cpu",
    state: FitState | None = None,
) -> Scene4D:
    """Return the scene that shows what the views show, as `sv4d2 refine` and the node SV4D2 Refine 4D do.

    Args:
        views: square pictures of at least two views; without masks the near-white rule makes them.
        config: every number of the procedure; None: the recipe, with the second stage if ``resynthesize`` is
            given. ``rounds`` 0 leaves the second stage out.
        size: fit pictures of this many pixels a side; None: as given.
        input_elevation_deg: absolute elevation of the input camera; None: the cameras' own where it is not 0,
            else estimated from the silhouettes.
        crop: how the input was cut out of its clip; where it followed the object, the scene moves as the
            object did. None: the object stays in the middle.
        resynthesize: denoises the scene's pictures again; None: the rounds keep the given views.
        perceptual: distance of patches, such as LPIPS, in place of SSIM.
        normals: [T, V + 1, h, w, 3] of the views from an estimator, unit, in the camera's OpenGL axes (x
            right, y up, z towards the camera), 0 where not known; None: none.
        minutes: as many steps as this machine does in so many minutes, in place of the settings'.
        callback: called with (steps done, all steps, `FitProgress`) after every step, and while a round
            renders; once where ``state`` had no step left. May raise to cancel.
        device: where the scene is fitted and stays.
        state: continue this interrupted fit.

    Raises:
        ValueError: views that cannot be fitted, or a state of another fit; the text says what to change.
        FloatingPointError: the fit diverged; the text says which setting to lower.
    """
    views = checked_views(views)
    if size is not None:
        views = checked_views(views.resized(size))
    views, said = with_elevation(views, input_elevation_deg)
    notes = [said]
    path = None if crop is None else object_path(crop, views.cameras, views.frame_times())
    if path is not None:
        notes.append("The crop followed the object: the scene moves as the object does.")
    for note in notes:
        log.info(note)
    if config is None:
        config = RefineConfig()
        config = config.with_steps(config.stage_one_steps, 1 if resynthesize is None else 2)
    config = _with_patches(config, views.images.shape[2], perceptual, normals)
    if minutes is not None:
        steps = steps_in(minutes, views, config, device) if state is None else state.total_steps
        log.info("%g minutes are about %d steps here; so many steps give this scene again.", minutes, steps)
        config = config.with_steps(steps, 2 if config.rounds else 1)
    if normals is not None:
        normals = checked_normals(resized_normals(normals, views.images.shape[2]), views)
    fit = Fit(views, config, device, perceptual, normals, tuple(notes))
    if state is not None:
        fit.restore(state)
    if callback is not None and fit.step == config.total_steps:
        callback(fit.step, config.total_steps, fit.progress)
    for step in schedule(fit.config, views, fit.step):
        if step.begins_round:
            fit.aim(_round_targets(fit, step, resynthesize, callback))
        fit.take(step)
        if callback is not None:
            callback(fit.step, config.total_steps, fit.progress)
    fit.scene.path = path
    return fit.scene


def _with_patches(
    config: RefineConfig, size: int, perceptual: Perceptual | None, normals: Tensor | None
) -> RefineConfig:
    """Return settings that draw patches where something is compared on them; the recipe has none."""
    if config.patches_per_step or (perceptual is None and normals is None):
        return config
    if perceptual is None:
        return replace(config, patches_per_step=1)
    if size < _LEAST_PERCEPTUAL_PATCH:
        raise ValueError(
            f"Expected pictures of at least {_LEAST_PERCEPTUAL_PATCH} pixels for a perceptual distance such "
            f"as LPIPS; got {size}. Raise the size, or leave the distance out."
        )
    return replace(config, patches_per_step=1, patch_size=min(_PERCEPTUAL_PATCH, size))


def _round_targets(
    fit: Fit, step: Step, resynthesize: Resynthesize | None, callback: Callback | None
) -> RoundTargets:
    """Return what the round that begins with ``step`` is fitted to."""
    config, targets = fit.config, fit.views

    def progress(*_: object) -> None:
        if callback is not None:
            callback(fit.step, config.total_steps, fit.progress)

    def rendered(cameras: Cameras) -> SceneRendering:
        return fit.scene.render(
            cameras, fit.views.frame_times(), fit.views.images.shape[2], callback=progress
        )

    if resynthesize is None:
        if step.round == 1:
            log.warning("Stage 2 has no model to make views anew with: it only weighs them by visibility.")
        rendering = rendered(targets.cameras) if config.weight_by_visibility else None
    else:
        cameras = ring_cameras(fit.views.cameras, config.ring_elevations_deg)
        rendering = rendered(cameras)
        strength = config.strength * config.strength_falling ** (step.round - 1)
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


def steps_in(
    minutes: float, views: ViewGrid, config: RefineConfig, device: torch.device | str = "cpu"
) -> int:
    """Return about how many steps of a fit to checked views take ``minutes``, by doing a few; at least 4.

    Not counted is what the model of a second stage, a perceptual distance and normals take. Equal steps give
    equal scenes; equal minutes need not.
    """
    probe = replace(config, steps_static=0, steps=_WARM_UP + _TIMED, rounds=0, patch_start=0.0)
    fit, began = Fit(views, probe, device), 0.0
    for step in schedule(fit.config, views):
        if step.number == _WARM_UP:
            began = time.perf_counter()
        fit.take(step)
    return max(int(60 * minutes * _TIMED / (time.perf_counter() - began)), 4)


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
        log.warning("The views have no masks: every pixel that is not near-white counts as the object.")
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


def _check_range(name: str, values: Tensor) -> None:
    bad = int((~values.isfinite()).sum())
    if bad:
        raise ValueError(
            f"Expected finite {name}; got {bad} of {values.numel()} values that are NaN or infinite. The "
            f"views were sampled or decoded wrongly: try float32."
        )
    low, high = float(values.min()), float(values.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(f"Expected {name} in 0..1; got {low:g} to {high:g}. Divide 8-bit values by 255.")


def _check_silhouettes(masks: Tensor) -> None:
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
