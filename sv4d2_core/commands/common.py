"""Ctrl-C between two steps: what is kept of the work is then whole."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import IO

import torch
from torch import Tensor
from tqdm import tqdm

from .. import __version__
from ..data.views_folder import entries_of, missing_files, read_run, refuse_foreign_entries
from ..diffusion.checkpoint import load_clip_vision, read_config, read_header
from ..diffusion.memory import load_within, plan_for_free_memory
from ..diffusion.novel_views import check_cameras, checked_clip, resynthesizer
from ..diffusion.window_store import SettingsDiffer, changed_settings
from ..files import recover
from ..metrics.evaluate import Networks
from ..metrics.frechet import I3D
from ..metrics.lpips import LPIPS
from ..video.read import load_clip
from ..views import ViewGrid, resize_images


@contextmanager
def interrupts_between_steps() -> Iterator[Callable[[], None]]:
    """Yield a function that raises KeyboardInterrupt if Ctrl-C was pressed since; call it between steps.

    A second Ctrl-C does not wait for it. Outside the main thread, where no signals arrive, nothing changes.
    """
    pressed: list[int] = []

    def press(number: int, _frame: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


_LOCK = ".lock"


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold an output folder for this process alone, made if missing; traces of a failed job go with it.

    Raises:
        ValueError: the folder cannot be written, or another process holds it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = folder / _LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"Expected a writable output folder; {folder} is not ({reason}). Choose another --out."
        ) from error
    with file:
        if not _lock(file):
            raise ValueError(
                f"Another process is writing to {folder}. Wait for it to end or choose another --out."
            )
        try:
            recover(folder)
            yield
        finally:
            lock.unlink(missing_ok=True)
            for path in (folder / ".windows", *made):
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()


def _lock(file: IO[str]) -> bool:
    """Return whether this process got the lock; the system releases it when the process ends."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_complete(folder: Path, settings: dict, output: dict, overwrite: bool) -> bool:
    """Return whether a folder holds all results of exactly these settings.

    Args:
        folder: the output folder.
        settings: what determines the sampled latents.
        output: what else determines the files.
        overwrite: whether results of other settings may be replaced.

    Raises:
        SettingsDiffer: it holds results of other settings and ``overwrite`` is off.
        FileExistsError: it holds entries of our names that are not ours.
    """
    refuse_foreign_entries(folder)
    run = read_run(folder)
    if not entries_of(run):
        return False
    known = {**_dict(run.get("settings")), **_dict(run.get("output"))}
    changed = changed_settings(known, {**settings, **output})
    if not changed:
        return not missing_files(folder)
    if not overwrite:
        resampled = "" if set(changed) - output.keys() else " Nothing would be sampled again."
        raise SettingsDiffer(
            f"{folder} holds results with other settings ({', '.join(changed)}). Choose another folder, or "
            f"replace them (--overwrite).{resampled}"
        )
    return False


def refuse_inputs_inside(folder: Path, inputs: Iterable[Path]) -> None:
    """Raise ValueError when writing to ``folder`` would mix with, or replace, what the job reads."""
    folder = Path(os.path.abspath(folder))
    ours = {folder / name for name in entries_of(read_run(folder))}
    for path in inputs:
        resolved = Path(os.path.abspath(path))
        if resolved == folder or ours & {resolved, *resolved.parents}:
            raise ValueError(
                f"Expected an output folder apart from the input; {path} lies in what would be written to "
                f"{folder}. Choose another --out."
            )


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_device(name: str) -> torch.device:
    """Return the device of that name, or the best one for ``auto``.

    Raises:
        ValueError: a device that this machine or this torch does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"Expected a device of this machine; got {name!r} ({reason}). Try --device auto."
        ) from error
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of that name; ``auto`` is float32 on a CPU, else float16 as in the reference."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return _DTYPES[name]


def versions() -> dict[str, str]:
    """Return the versions of this project, of Python and of the packages that influence results."""
    found = {"sv4d2": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "pillow", "av"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def options_of(args: argparse.Namespace) -> dict[str, object]:
    """Return the options of a command as JSON values."""
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(args).items()
        if not callable(value)
    }


def load_reference_views(folder: Path, n_views: int, size: int) -> Tensor:
    """Return reference views [V, size, size, 3] in 0..1 on white.

    Args:
        folder: one square image per novel camera, in the cameras' order by name; transparent parts become
            white; other sizes are resized.
        n_views: V.
        size: image size, pixels.

    Raises:
        ValueError: another number of images, or images that are not square.
    """
    pictures = torch.from_numpy(load_clip(folder, frames=None).frames).float() / 255
    count, height, width, channels = pictures.shape
    if count != n_views or height != width:
        raise ValueError(
            f"Expected {n_views} square reference views in {folder}, one per novel camera (the input view is "
            f"not among them); got {count} of {width} x {height}."
        )
    if channels == 4:
        alpha = pictures[..., 3:]
        pictures = pictures[..., :3] * alpha + (1 - alpha)
    return resize_images(pictures[..., :3].contiguous(), size, size)


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


# Images that the CLIP tower takes at once.
_CLIP_BATCH = 8


def load_networks(lpips: Path | None, clip: Path | None, i3d: Path | None, device: str = "auto") -> Networks:
    """Return the networks in local files, ready to run on a device.

    Raises:
        FileNotFoundError, ValueError: a file that is not there or holds something else.
    """
    place = choose_device(device)
    return Networks(
        lpips=None if lpips is None else LPIPS(lpips, place),
        clip=None if clip is None else _embedder(clip, place),
        i3d=None if i3d is None else I3D(i3d, place),
    )


def _embedder(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    tower = load_clip_vision(path, torch.float32, device)

    @torch.no_grad()
    def embed(images: Tensor) -> Tensor:
        """Return embeddings [N, D] of images [N, H, W, 3] in 0..1."""
        batches = images.movedim(-1, 1).split(_CLIP_BATCH)
        return torch.cat([tower(batch.to(device) * 2 - 1).float().cpu() for batch in batches])

    return embed
