"""Options, devices, progress and Ctrl-C of all commands."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm

from ..cameras import Cameras
from ..data.transforms import read_cameras
from ..diffusion.config import ModelConfig
from ..diffusion.memory import load_within, plan_for_free_memory, plan_memory
from ..diffusion.model import Model
from ..files import is_out_of_memory
from ..messages import cut
from ..orbits import CUSTOM, orbit, parse_angles
from ..scene.config import Settings
from ..scene.scene import check_times, even_times
from ..shipped import SAMPLE_CLIP, TINY_MODEL, versions
from ..stored import LARGEST_COUNT
from ..views import FPS_RANGE
from . import Parser

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
VARIANTS = ("auto", "sv4d2", "sv4d2_8views")

_SAY_EVERY_S = 5.0  # seconds between two lines about progress where there is no terminal


LARGEST_SIZE, LARGEST_ANGLE = 8192, 720.0  # pixels a side, degrees


@dataclass(frozen=True)
class Within:
    """A parser of numbers from ``least`` (or, with ``above``, above it) to ``most``."""

    least: float
    most: float
    above: bool = False
    whole: bool = False

    def __call__(self, text: str) -> float:
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:
            value = math.nan
        if not (self.least < value if self.above else self.least <= value) or not value <= self.most:
            kind = "whole number" if self.whole else "number"
            raise argparse.ArgumentTypeError(f"expected a {kind} {self}, got {cut(text)}")
        return value

    def __str__(self) -> str:
        least, most = (str(limit) if self.whole else f"{limit:g}" for limit in (self.least, self.most))
        return f"above {least} and up to {most}" if self.above else f"from {least} to {most}"


ANGLE, ELEVATION, INPUT_ELEVATION = (Within(-most, most) for most in (LARGEST_ANGLE, 180.0, 90.0))
FPS, GIGABYTES = Within(*FPS_RANGE), Within(0, 100_000, above=True)
MINUTES = Within(0, 1e6, above=True)
SEED = Within(-(2**63), 2**62 - 1, whole=True)


def at_least(minimum: int, most: int = LARGEST_COUNT) -> Within:
    """Return a parser of whole numbers."""
    return Within(minimum, most, whole=True)


def of_setting(kind: type[Settings], name: str) -> Within:
    """Return a parser of a setting's values, whose limits are those of its one description."""
    one = next(one for one in fields(kind) if one.name == name)
    limits = one.metadata["limits"]
    least = limits.get("above", limits.get("least", -LARGEST_COUNT))
    return Within(least, limits["most"], "above" in limits, whole=one.type == "int")


class Options:
    """Adds options to a parser, or to a group of its help, in few words."""

    def __init__(self, place: argparse._ActionsContainer) -> None:
        self._place = place

    def group(self, title: str) -> Options:
        return Options(self._place.add_argument_group(title))

    def value(
        self,
        name: str,
        kind: Callable[[str], Any],
        help: str,
        default: Any = None,
        metavar: Any = "N",
        nargs: int | str | None = None,
    ) -> None:
        """Add an option that takes a value, or ``nargs`` of them; the help ends with range and default.

        Numbers are `Within` a range.
        """
        shown = [str(kind)] if isinstance(kind, Within) else []
        shown += [] if default is None else [f"default {default:g}"]
        help += f" ({', '.join(shown)})" if shown else ""
        self._place.add_argument(name, type=kind, default=default, metavar=metavar, nargs=nargs, help=help)

    def numbers(self, name: str, kind: Within, help: str, metavar: Any, count: int | None = None) -> None:
        """Add an option that takes numbers, ``count`` of them, parted by blanks or commas."""

        class Numbers(argparse.Action):
            def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
                try:
                    numbers = parse_angles(" ".join(values), "numbers")
                    for number in numbers:
                        kind(f"{number!r}")
                except (ValueError, argparse.ArgumentTypeError) as error:
                    raise argparse.ArgumentError(self, str(error)) from error
                if not numbers or len(numbers) != (count or len(numbers)):
                    raise argparse.ArgumentError(
                        self, f"expected {count or 'some'} numbers, got {len(numbers)}"
                    )
                setattr(namespace, self.dest, numbers)

        self._place.add_argument(name, action=Numbers, metavar=metavar, nargs="+", help=f"{help} ({kind})")

    def flag(self, name: str, help: str) -> None:
        self._place.add_argument(name, action="store_true", help=help)

    def choice(self, name: str, choices: Iterable[str], default: str | None = None, help: str = "") -> None:
        self._place.add_argument(name, default=default, choices=tuple(choices), help=help or None)

    def removed(self, name: str, instead: str) -> None:
        """Refuse an option of earlier versions, and say what to do in its place."""

        class Refusal(argparse.Action):
            def __call__(self, *_: Any) -> None:
                raise argparse.ArgumentError(self, f"this option is gone: {instead}")

        self._place.add_argument(name, nargs=0, action=Refusal, help=argparse.SUPPRESS)

    def output(self, out: str, replaced: str, metavar: str = "DIR") -> None:
        self._place.add_argument("--out", type=user_path, required=True, metavar=metavar, help=out)
        self.flag("--overwrite", f"replace {replaced}")

    def device(self) -> None:
        self._place.add_argument(
            "--device", default="auto", help="auto, cpu, cuda, cuda:1, xpu, mps (default auto)"
        )

    def model(self, *, required: bool) -> None:
        self._place.add_argument(
            "--checkpoint",
            type=checkpoint_file,
            required=required,
            metavar="FILE",
            help="safetensors file, or tiny for the small model that comes with the pack",
        )
        self.choice("--variant", VARIANTS, "auto")

    def cameras(self) -> None:
        text = "one per novel view, relative to the input view"
        self.numbers("--azimuths", ANGLE, text, "DEG")
        self.numbers("--elevations", ELEVATION, "one per novel view; default 0", "DEG")

    def input_view(self) -> None:
        text = "camera of a data set, by time and name, that is the input view (default: as it says, else 0)"
        self.value("--input-view", at_least(0), text)

    def times(self, pictures: str = "") -> None:
        """Add --times, --frames and --fps; ``pictures`` ends the help of --frames."""
        self.numbers("--times", Within(0, 1), "rising", "T")
        self.value("--frames", at_least(1), f"N times evenly from 0 to 1{pictures}")
        self.value("--fps", FPS, "frames per second; default: the scene's own pace")


def user_path(text: str) -> Path:
    """Return a path; ~ is the user's folder, as in a shell, also where there is none (quotes, Windows)."""
    return Path(os.path.expanduser(text))


def checkpoint_file(text: str) -> Path:
    """Return the path of a checkpoint; ``tiny`` is the small model that comes with the pack."""
    return TINY_MODEL if text == "tiny" else user_path(text)


def clip_place(text: str) -> str:
    """Return where a clip is; ``sample`` is the one that comes with the pack unless there is such a file."""
    return str(SAMPLE_CLIP) if text == "sample" and not Path(text).exists() else text


def refuse_overlap(out: Path, *inputs: str | Path | None) -> None:
    """Raise ValueError where an input is or lies in what is written, or what is written lies in an input."""
    target = Path(os.path.realpath(out))
    for given in (one for one in inputs if one is not None):
        place = Path(os.path.realpath(os.path.expanduser(given)))
        if target in (place, *place.parents) or place in target.parents:
            raise ValueError(
                f"Expected an output apart from the input; {cut(given)} and {cut(out)} are the same or lie "
                f"in one another. Choose another place to write to."
            )


def refuse_idle(
    args: argparse.Namespace,
    declare: Callable[[argparse.ArgumentParser], None],  # the command's options
    names: Iterable[str],
    where: str,
) -> None:
    """Raise ValueError for options that differ from their defaults and do nothing there."""
    parser = Parser(add_help=False)
    declare(parser)
    found = [name for name in names if getattr(args, name) != parser.get_default(name)]
    if found:
        listed = ", ".join("--" + name.replace("_", "-") for name in sorted(found))
        raise ValueError(f"{listed} would do nothing {where}. Leave it out.")


def refuse_odd(size: int) -> None:
    """Raise ValueError for a size that videos cannot have."""
    if size % 2:
        raise ValueError(f"Expected an even --size, as videos need; got {size}.")


def given_cameras(args: argparse.Namespace, **more: Any) -> Cameras | None:
    """Return the cameras of --cameras, else `orbit` of --azimuths, --elevations and ``more``, else None."""
    if args.cameras is not None:
        if args.azimuths or args.elevations:
            raise ValueError("Expected --cameras, or --azimuths and --elevations; got both. Leave one out.")
        return read_cameras(args.cameras)
    if args.azimuths is None:
        if args.elevations:
            raise ValueError("Expected --azimuths beside --elevations; got --elevations alone. Give both.")
        return None
    azimuths, elevations = (" ".join(map(str, given or [])) for given in (args.azimuths, args.elevations))
    return orbit(CUSTOM, azimuths=azimuths, elevations=elevations, **more)


def listed_times(args: argparse.Namespace) -> tuple[float, ...] | None:
    """Return the times of --times or --frames; None where neither is given."""
    if args.times is not None and args.frames is not None:
        raise ValueError("Give either --times or --frames, not both.")
    if args.frames is not None:
        return even_times(args.frames)
    if args.times is None:
        return None
    check_times(args.times)
    return tuple(args.times)


def made_with(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return what a result was made with, a command's options and the versions, as JSON values."""
    given = {key: value for key, value in vars(args).items() if not callable(value) and key != "quiet"}
    return {"options": json.loads(json.dumps(given, default=str)), "versions": versions()}


def choose_device(name: str) -> torch.device:
    """Return the device of that name, or the best one for ``auto``; ValueError where it is not there."""
    if name == "auto":
        there = {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.backends.mps}
        best = next((kind for kind, known in there.items() if known.is_available()), "cpu")
        return _with_index(torch.device(best))
    try:
        device = _with_index(torch.device(name))
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"Expected a device of this machine; got {cut(repr(name))} ({cut(reason)}). Try --device auto."
        ) from error
    return device


def _with_index(device: torch.device) -> torch.device:
    """Return a CUDA device with its index, without which PyTorch limits no memory; others as they are."""
    if device.type != "cuda" or device.index is not None:
        return device
    # Of torchrun's processes each has the GPU of its number.
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of that name; ``auto`` is float32 on a CPU, else float16 as in the reference."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return DTYPES[name]


def load_planned(
    args: argparse.Namespace,
    config: ModelConfig,
    dtype: torch.dtype,
    size: int,
    device: torch.device,
    eight_bits: bool = False,
    beside_fit: bool = False,  # what a fit holds counts, the smallest parts are tried where little is left
) -> Model:
    """Return the model of --checkpoint, made to work within --memory-gb, else within what is free now.

    Without a fit beside it --memory-gb also limits what the process may take of a CUDA device.
    """
    if args.memory_gb is None or beside_fit:
        limit = math.inf if args.memory_gb is None else args.memory_gb
        plan = plan_for_free_memory(config, dtype, size, device, eight_bits, limit)
    else:
        plan = plan_memory(config, dtype, size, args.memory_gb, device, eight_bits)
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, args.memory_gb * 2**30 / total), device)
    return load_within(args.checkpoint, args.variant, dtype, device, plan, eight_bits)


class Progress:
    """A job's progress: a bar in a terminal, elsewhere a line every few seconds, nothing with --quiet.

    ``done`` steps are of an earlier run, which the time left does not count.
    """

    def __init__(self, title: str, unit: str = "step", done: int = 0) -> None:
        self._title, self._unit, self._done = title, unit, done
        self._said = time.monotonic()
        in_terminal = sys.stderr.isatty() and log.isEnabledFor(logging.INFO)
        self._bar = tqdm(desc=title, unit=unit, initial=done, dynamic_ncols=True, disable=not in_terminal)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the bar, so that what is said next has a line of its own."""
        self._bar.close()

    def __call__(self, done: int, total: int, _preview: object = None, note: str = "") -> None:
        """Show that ``done`` of ``total`` steps are done, with a note on how the job goes."""
        self._bar.total = total
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)
        now = time.monotonic()
        if self._bar.disable and done != self._done and (now - self._said > _SAY_EVERY_S or done == total):
            log.info("%s: %d of %d %ss%s", self._title, done, total, self._unit, note and f", {note}")
            self._said = now
        self._done = done

    def skip(self, done: int) -> None:
        """Take steps as done by an earlier run."""
        self._bar.initial = self._bar.n = self._done = done


@contextmanager
def interrupts_between_steps() -> Iterator[Callable[[], None]]:
    """Yield a function that raises KeyboardInterrupt if Ctrl-C was pressed since; call it between steps.

    Signals that end a session or a container count as one. A second one does not wait for it, nor does one
    before the first call, when there is nothing to save. Outside the main thread, where no signals arrive,
    nothing changes.
    """
    pressed: list[int] = []
    in_steps = False

    def press(number: int, _frame: FrameType | None) -> None:
        if pressed or not in_steps:
            raise KeyboardInterrupt
        pressed.append(number)

    def check() -> None:
        nonlocal in_steps
        in_steps = True
        if pressed:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = {
        number: signal.signal(number, press)
        for name in ("SIGINT", "SIGTERM", "SIGHUP")
        if (number := getattr(signal, name, None)) and signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
