"""`sv4d2 refine`: views in, a 4D scene out that can be seen from anywhere at any time."""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from tqdm import tqdm

from ..export.fit_picture import fit_picture
from ..export.pictures import pick_frames
from ..export.views_reader import read_any_views
from ..fourd.config import RefineConfig
from ..fourd.dynerf import DyNeRF
from ..fourd.elevation import estimate_elevation
from ..fourd.fit import FitProgress, fit_scene
from ..fourd.state import FitState
from ..fourd.validate import checked_views
from ..metrics.residuals import fit_residuals
from ..views import ViewGrid
from .arguments import at_least
from .machine import choose_device

log = logging.getLogger(__name__)

_SUFFIX = ".safetensors"
_SAVE_EVERY_S = 60.0
# Pairs of pictures in fit.png.
_SHOWN = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "views", metavar="VIEWS", help="a folder of `sv4d2 views`, or a D-NeRF style data set"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="SCENE.safetensors to write")
    parser.add_argument(
        "--size", type=at_least(16), metavar="N", help="fit at N x N pixels (default: as given)"
    )
    parser.add_argument("--steps", type=at_least(2), default=2500, metavar="N", help="steps (default 2500)")
    parser.add_argument(
        "--exact-views",
        action="store_true",
        help="trust all views alike, as recorded or rendered ones deserve; else views far from the input "
        "and rims of silhouettes count less",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the fit (default 0)")
    parser.add_argument(
        "--input-elevation",
        type=float,
        metavar="DEG",
        help="absolute elevation of the input camera (default: the views', else estimated from silhouettes)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    parser.add_argument(
        "--resume", action="store_true", help="continue an interrupted fit of the same settings"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")


@dataclass
class _Watch:
    """Shows a fit's progress, keeps its losses and saves its state every minute."""

    bar: tqdm
    state_file: Path
    losses: list[tuple[int, float]] = field(default_factory=list)
    latest: FitProgress | None = None
    saved: float = field(default_factory=time.monotonic)

    def __call__(self, step: int, total: int, progress: FitProgress) -> None:
        self.bar.total = total
        self.bar.update(step - self.bar.n)
        self.bar.set_postfix_str(f"{progress.phase}, loss {progress.loss:.4f}", refresh=False)
        self.losses.append((step, progress.loss))
        self.latest = progress
        if time.monotonic() - self.saved > _SAVE_EVERY_S:
            self.save()

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
    _check_place(args.out, args.overwrite)
    device = choose_device(args.device)
    views = _views(args)
    config = _config(args)
    state_file = args.out.with_suffix(".fit")
    state = _state(state_file, args.resume)
    with tqdm(desc="fitting", unit="step", dynamic_ncols=True, initial=state.step if state else 0) as bar:
        watch = _Watch(bar, state_file)
        try:
            scene = fit_scene(views, config, callback=watch, device=device, state=state)
        except KeyboardInterrupt:
            watch.save()
            log.warning("The fit so far is kept in %s; --resume goes on with it.", state_file)
            raise
    scene.save(args.out)
    state_file.unlink(missing_ok=True)
    log.info("Fitted in %.0f s: %s", time.perf_counter() - began, args.out)
    if watch.losses:
        picture = args.out.with_suffix(".fit.png")
        residual = _picture(scene, views, watch.losses, picture)
        log.info("It leaves %.4f of the views unexplained. Look at %s", residual, picture)
    return 0


def _check_place(path: Path, overwrite: bool) -> None:
    if path.suffix.lower() != _SUFFIX:
        raise ValueError(f"Expected --out with a name that ends in {_SUFFIX}; got {path}. Add it.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already. Choose another --out, or replace it (--overwrite).")
    path.parent.mkdir(parents=True, exist_ok=True)


def _views(args: argparse.Namespace) -> ViewGrid:
    """Return the checked views at their size, with the input's absolute elevation."""
    views = checked_views(read_any_views(args.views))
    if args.size is not None:
        views = views.resized(args.size)
    elevation = args.input_elevation
    if elevation is None and views.cameras.input_elevation_deg == 0 and views.masks is not None:
        found = estimate_elevation(views.masks, views.cameras)
        elevation = found.elevation_deg if found.certain else 0.0
        log.info(
            "Elevation of the input camera: %.1f degrees %s. --input-elevation sets another.",
            elevation,
            "by the silhouettes" if found.certain else "taken for granted, as the silhouettes do not tell",
        )
    if elevation is None:
        return views
    return replace(views, cameras=replace(views.cameras, input_elevation_deg=elevation))


def _config(args: argparse.Namespace) -> RefineConfig:
    config = RefineConfig(seed=args.seed, weight_by_trust=not args.exact_views)
    static = args.steps * config.steps_static // config.total_steps
    return replace(config, steps_static=static, steps=args.steps - static)


def _state(path: Path, resume: bool) -> FitState | None:
    """Return the state to go on from, or None to start anew."""
    if not resume:
        return None
    if not path.is_file():
        raise FileNotFoundError(f"Expected an interrupted fit at {path}; there is none. Leave --resume out.")
    state = FitState.load(path)
    log.info("Continuing after step %d.", state.step)
    return state


def _picture(scene: DyNeRF, views: ViewGrid, losses: list[tuple[int, float]], path: Path) -> float:
    """Write the plot of a fit and return the mean residual over the novel views."""
    rendered = scene.render(views.cameras, views.frame_times(), views.images.shape[2])
    shown = replace(views, images=rendered.rgb, masks=rendered.alpha)
    residuals = fit_residuals(shown, views)
    with_input = torch.cat([torch.full_like(residuals[:, :1], torch.nan), residuals], dim=1)
    frames = pick_frames(views.n_frames, _SHOWN)
    places = [(t, i % (views.n_views + 1)) for i, t in enumerate(frames)]
    pairs = [torch.stack([grid.images[t, v] for t, v in places]) for grid in (shown, views)]
    fit_picture(losses, with_input, views.cameras, rendered=pairs[0], views=pairs[1]).save(path)
    return float(residuals.nanmean())
