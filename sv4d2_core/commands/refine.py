"""`sv4d2 refine`: views in, a 4D scene out that can be seen from anywhere at any time."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ..data.reader import read_any_views, read_normals
from ..data.views_folder import read_crop
from ..export.report import fit_report
from ..metrics.lpips import LPIPS
from ..scene.fit import FitProgress
from ..scene.refine import refine_scene
from ..scene.scene import centred
from ..scene.store import FitState
from .common import choose_device, interrupts_between_steps, lazy_resynthesizer
from .refine_arguments import settings_of

log = logging.getLogger(__name__)

_SUFFIX = ".safetensors"
# Beside the scene: an interrupted fit, and the picture of a finished one.
_STATE, _PICTURE = ".fit", ".fit.png"
_SAVE_EVERY_S = 60.0


@dataclass
class _Watch:
    """Shows a fit's progress and saves its state every minute."""

    bar: tqdm
    state_file: Path
    check_interrupt: Callable[[], None]
    latest: FitProgress | None = None
    saved: float = field(default_factory=time.monotonic)

    def __call__(self, step: int, total: int, progress: FitProgress) -> None:
        self.bar.total = total
        self.bar.update(step - self.bar.n)
        self.bar.set_postfix_str(f"{progress.phase}, loss {progress.loss:.4f}", refresh=False)
        self.latest = progress
        if time.monotonic() - self.saved > _SAVE_EVERY_S:
            self.save()
        self.check_interrupt()

    def save(self) -> None:
        """Write the state, from which the fit goes on."""
        if self.latest is not None:
            self.latest.state().save(self.state_file)
            self.saved = time.monotonic()


def run(args: argparse.Namespace) -> int:
    """Fit the scene and return the exit code.

    Raises:
        ValueError, OSError: bad input, a file that exists, a full or read-only disk.
    """
    began = time.perf_counter()
    _check_place(args.out, args.overwrite, args.resume)
    config = settings_of(args)
    device = choose_device(args.device)
    views = read_any_views(args.views)
    crop = None if args.centred else read_crop(args.views)
    normals = None if args.normals is None else read_normals(args.normals, views)
    perceptual = None if args.lpips is None else LPIPS(args.lpips, device).distance
    state_file = args.out.with_suffix(_STATE)
    state = _state(state_file, args.resume)
    bar = tqdm(desc="fitting", unit="step", dynamic_ncols=True, initial=state.step if state else 0)
    with bar, interrupts_between_steps() as check_interrupt:
        watch = _Watch(bar, state_file, check_interrupt)
        try:
            scene = refine_scene(
                views,
                config,
                size=args.size,
                input_elevation_deg=args.input_elevation,
                crop=crop,
                resynthesize=lazy_resynthesizer(args, views, device, check_interrupt),
                perceptual=perceptual,
                normals=normals,
                minutes=args.minutes,
                callback=watch,
                device=device,
                state=state,
            )
        except KeyboardInterrupt:
            watch.save()
            log.warning("The fit so far is kept in %s; --resume goes on with it.", state_file)
            raise
    scene.save(args.out)
    state_file.unlink(missing_ok=True)
    log.info("Fitted in %.0f s: %s", time.perf_counter() - began, args.out)
    if watch.latest is not None:
        place = args.out.with_suffix(_PICTURE)
        picture, residual = fit_report(centred(scene), watch.latest.views, watch.latest.losses)
        picture.save(place)
        log.info("It leaves %.4f of the views unexplained. Look at %s", residual, place)
    return 0


def _check_place(path: Path, overwrite: bool, resume: bool) -> None:
    if path.suffix.lower() != _SUFFIX:
        raise ValueError(f"Expected --out with a name that ends in {_SUFFIX}; got {path}. Add it.")
    beside = [path.with_suffix(_PICTURE), *([] if resume else [path.with_suffix(_STATE)])]
    found = next((place for place in (path, *beside) if place.exists()), None)
    if found is not None and not overwrite:
        goes_on = ", or go on with it (--resume)" if found.suffix == _STATE else ""
        raise FileExistsError(
            f"{found} exists already. Choose another --out, or replace it (--overwrite){goes_on}."
        )
    path.parent.mkdir(parents=True, exist_ok=True)


def _state(path: Path, resume: bool) -> FitState | None:
    """Return the state to go on from, or None to start anew."""
    if not resume:
        return None
    if not path.is_file():
        raise FileNotFoundError(f"Expected an interrupted fit at {path}; there is none. Leave --resume out.")
    state = FitState.load(path)
    log.info("Continuing after step %d.", state.step)
    return state
