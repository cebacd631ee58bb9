"""The model that makes views anew in the refiner's second stage, loaded when it is first needed."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable

import torch
from tqdm import tqdm

from ..diffusion.checkpoint import read_config, read_header
from ..diffusion.inputs import check_cameras, checked_clip
from ..diffusion.memory import load_within, plan_for_free_memory
from ..diffusion.resynthesis import resynthesizer
from ..views import ViewGrid
from .machine import choose_dtype

log = logging.getLogger(__name__)


def lazy_resynthesizer(
    args: argparse.Namespace, views: ViewGrid, device: torch.device, check_interrupt: Callable[[], None]
) -> Callable[[ViewGrid, float], ViewGrid] | None:
    """Return what makes views anew with --checkpoint, or None without one; all but the weights is checked.

    Args:
        args: the options of `sv4d2 refine`.
        views: at the size that the model is to work at.
        device: where the model runs.
        check_interrupt: called at every step of the sampler; may raise.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, or views that do not fit it.
    """
    if args.checkpoint is None:
        return None
    config = read_config(read_header(args.checkpoint), args.variant)
    checked_clip(views.images[:, 0], config)
    check_cameras(views.cameras, config)
    if not config.trained:
        log.warning("UNTRAINED WEIGHTS: what the second stage makes is noise. Give a trained --checkpoint.")
    made: list[Callable[[ViewGrid, float], ViewGrid]] = []

    def resynthesize(rendered: ViewGrid, strength: float) -> ViewGrid:
        if not made:
            dtype = choose_dtype(args.dtype, device)
            plan = plan_for_free_memory(config, dtype, views.images.shape[2], device)
            model = load_within(args.checkpoint, args.variant, dtype, device, plan)
            bar = tqdm(desc="making views anew", unit="step", dynamic_ncols=True)

            def progress(step: int, total: int, _preview: object) -> None:
                bar.total = total
                bar.update(step - bar.n)
                check_interrupt()

            made.append(
                resynthesizer(model, views, steps=args.sampling_steps, seed=args.seed, callback=progress)
            )
        return made[0](rendered, strength)

    return resynthesize
