"""Views in, a 4D scene out: a first fit, then rounds that make the views anew from it and fit again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ..video.crop import CropPath
from ..views import ViewGrid
from .config import RefineConfig
from .dynerf.planes import tiny_scene
from .dynerf.rays import Perceptual
from .fit import Fit, FitProgress
from .geometry.placement import object_path, with_elevation
from .kernels import scene_device
from .scene import Scene4D
from .schedule import schedule
from .store import FitState
from .targets import Resynthesize, checked_normals, checked_views, round_targets

log = logging.getLogger(__name__)

Callback = Callable[[int, int, FitProgress], None]

_WARM_UP, _TIMED = 5, 20  # steps that are done to see how long one takes


def refine_scene(
    views: ViewGrid,  # square pictures of at least two views; the near-white rule makes missing masks
    config: RefineConfig | None = None,  # None: the recipe, with stage 2 if there is ``resynthesize``
    *,
    size: int | None = None,  # fit pictures of this many pixels a side; None: as given
    input_elevation_deg: float | None = None,
    crop: CropPath | None = None,
    resynthesize: Resynthesize | None = None,  # denoises the scene's pictures; None: rounds keep the views
    perceptual: Perceptual | None = None,  # distance of patches, such as LPIPS, in place of SSIM
    normals: Tensor | None = None,
    minutes: float | None = None,  # as many steps as this machine does in it, in place of the settings'
    callback: Callback | None = None,
    device: torch.device | str = "cpu",  # where the scene is fitted and stays, see `scene_device`
    state: FitState | None = None,  # of an interrupted fit, to go on with
    identity: dict[str, Any] | None = None,  # of the models, JSON values: a state of others is refused
) -> Scene4D:
    """Return the scene that shows what the views show, as `sv4d2 refine` and the node SV4D2 Refine 4D do.

    Args:
        input_elevation_deg: absolute elevation of the input camera; None: the cameras' own where it is not 0
            or a data set states it, else estimated from the silhouettes.
        crop: how the input was cut out of its clip; where it followed the object, the scene moves as the
            object did. None: the object stays in the middle.
        normals: [T, V + 1, h, w, 3] of the views from an estimator, unit, in the camera's OpenGL axes (x
            right, y up, z towards the camera), 0 where not known; None: none.
        callback: called with (steps done, all steps, `FitProgress`) after every step, and while a round
            renders; once where ``state`` had no step left. May raise to cancel.

    Raises:
        ValueError: views that cannot be fitted, or a state of another fit; the text says what to change.
        FloatingPointError: the fit diverged; the text says which setting to lower.
    """
    device = scene_device(torch.device(device), tiny_scene)
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
    if normals is not None:
        normals = checked_normals(normals, views)
    if config is None:
        config = RefineConfig()
        config = config.with_steps(config.stage_one_steps, 1 if resynthesize is None else 2)
    if minutes is not None:
        if state is None:
            probe = replace(config, steps_static=0, steps=_WARM_UP + _TIMED, rounds=0)
            steps = steps_in(minutes, Fit(views, probe, device, perceptual, normals))
        else:
            steps = state.total_steps
        log.info("%g minutes are about %d steps here; so many steps give this scene again.", minutes, steps)
        config = config.with_steps(steps, 2 if config.rounds else 1)
    fit = Fit(views, config, device, perceptual, normals, tuple(notes), identity)
    if state is not None:
        fit.restore(state)

    def report() -> None:
        if callback is not None:
            callback(fit.step, config.total_steps, fit.progress)

    if fit.step == config.total_steps:
        report()
    for step in schedule(fit.config, views, fit.step):
        if step.begins_round:
            fit.aim(round_targets(fit.scene, views, fit.config, step.round, resynthesize, report))
        fit.take(step)
        report()
    fit.scene.path, fit.scene.fit = path, asdict(config)
    return fit.scene


def steps_in(minutes: float, probe: Fit) -> int:
    """Return how many steps, at least 4, take ``minutes``, by timing a few; without stage 2's model.

    The median counts: so short a fit changes the size of its pictures as often as a long one.
    """
    seconds = []
    for step in schedule(probe.config, probe.views):
        began = time.perf_counter()
        probe.take(step)
        seconds.append(time.perf_counter() - began)
    return max(int(60 * minutes / median(seconds[_WARM_UP:])), 4)
