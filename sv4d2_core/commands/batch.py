"""`sv4d2 batch`: a list of clips in, a folder of novel views out for each, on one device or a Ray cluster."""

from __future__ import annotations

import glob
import json
import logging
import os
import shlex
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..diffusion.model import Model
from ..files import DISK_FULL, exclusive, is_out_of_memory, json_in, write_whole
from ..messages import cut, listed, without_number
from ..video.places import matches
from . import Parser, views
from .common import Options, at_least, clip_place, made_with, refuse_overlap

log = logging.getLogger(__name__)

_MADE_BY = "sv4d2 batch"
_REPORT_FILE = "batch.json"
_LIST_SUFFIX = ".txt"
_ONLY_OF_BATCH = ("more", "ray", "actors", "run", "quiet")
# What the clips of a batch share: the model, where it runs, and where the results go.
_SHARED = ("checkpoint", "variant", "device", "dtype", "memory_gb", "fp8_weights", "compile", "out")
_RAY_DEVICES = ("auto", "cpu", "cuda")  # an actor sees its own GPU alone, as the first


def add_arguments(parser: ArgumentParser) -> None:
    options = Options(parser)
    views.add_arguments(parser)
    text = (
        "further clips; a quoted glob is one clip per match; a text file (.txt) lists clips, one per line, "
        "each with options of its own after it. Every clip gets a folder in DIR, named after it"
    )
    options.value("more", clip_place, text, metavar="INPUT", nargs="*")
    many = options.group("several GPUs")
    many.flag("--ray", "one process per GPU of a Ray cluster (extra: ray)")
    many.value("--actors", at_least(1, 10_000), "processes on the cluster (default: one per GPU)")


def run(args: Namespace) -> int:
    """Make the views of all clips; return 0, or 1 if some failed."""
    began = time.perf_counter()
    if args.actors is not None and not args.ray:
        raise ValueError("--actors is an option of --ray. Give both or neither.")
    views.check_options(args)
    clips = clips_of(args)
    place = on_ray(args.device, args.actors, len(clips)) if args.ray else nullcontext(_make_here)
    file: Path = args.out / _REPORT_FILE
    with exclusive(args.out), place as make:
        report = _new_report(args, clips, file)
        for clip, outcome in make(clips):
            _tell(clip, outcome)
            status = "complete" if outcome.error is None else "failed"
            report["clips"][clip.out.name].update(status=status, seconds=outcome.seconds, error=outcome.error)
            write_whole(file, json.dumps(report, indent=2).encode())
    failed = [name for name, clip in report["clips"].items() if clip["status"] == "failed"]
    done, took = len(clips) - len(failed), time.perf_counter() - began
    log.info("%d of %d clips are complete, after %.0f s. Look at %s", done, len(clips), took, file)
    if failed:
        log.error("Failed: %s. The same command tries them again.", listed(failed))
    return 1 if failed else 0


def _tell(clip: Namespace, outcome: Outcome) -> None:
    """Log how a clip went. Raises OSError where no other can go better: the disk is full."""
    if outcome.error is None:
        log.info("%s: complete (%.0f s)", clip.out, outcome.seconds)
        return
    log.error("%s failed: %s", clip.input, outcome.error)
    if outcome.errno is not None and outcome.errno in DISK_FULL:
        raise OSError(outcome.errno, os.strerror(outcome.errno), str(clip.out))


def _new_report(args: Namespace, clips: list[Namespace], file: Path) -> dict[str, Any]:
    """Return and write the first ``batch.json``. Raises FileExistsError where the file is no batch's."""
    known = json_in(file) if file.exists() else {"made_by": _MADE_BY}
    if not isinstance(known, dict) or known.get("made_by") != _MADE_BY:
        raise FileExistsError(
            f"Expected a free place for the report; {file} is not a batch's. Choose another --out."
        )
    made = made_with(args)
    made["options"]["input"] = [args.input, *made["options"].pop("more")]
    nothing = {"status": "unfinished", "seconds": None, "error": None}
    entries = {clip.out.name: {"input": clip.input, **nothing} for clip in clips}
    before = known.get("clips") if known.get("options") == made["options"] else None
    for name, entry in entries.items():
        known = before.get(name) if isinstance(before, dict) else None
        known = known if isinstance(known, dict) else {}
        # What is complete stays so, should this run be interrupted before it comes by.
        if known.get("input") == entry["input"] and known.get("status") == "complete":
            entry.update(known)
    report = {"made_by": _MADE_BY, **made, "clips": entries}
    write_whole(file, json.dumps(report, indent=2).encode())
    return report


def clips_of(args: Namespace) -> list[Namespace]:
    """Return the options of `sv4d2 views` per clip, in order, its folder named after its file."""
    common = {key: value for key, value in vars(args).items() if key not in _ONLY_OF_BATCH}
    common["command"] = "views"
    clips = [clip for place in (args.input, *args.more) for clip in _clips_at(place, common)]
    taken = {_REPORT_FILE}
    for clip in clips:
        clip.out = args.out / _unique(_stem(clip.input), taken)
    refuse_overlap(args.out, *(clip.input for clip in clips))
    return clips


def _clips_at(place: str, common: dict) -> list[Namespace]:
    """Return the clips of a path, a pattern or a list, all still without a folder of their own."""
    if Path(place).suffix.lower() == _LIST_SUFFIX:
        lists = _listed(Path(place).expanduser(), common)
    else:
        lists = [Namespace(**{**common, "input": place})]
    return [Namespace(**{**vars(clip), "input": path}) for clip in lists for path in _matches(clip.input)]


def _matches(place: str) -> list[str]:
    """Return what a pattern matches, in natural order, or the place itself where it is no pattern."""
    if not glob.has_magic(place) or os.path.lexists(os.path.expanduser(place)):
        return [place]
    if not (found := matches(place)):
        raise FileNotFoundError(f"Expected clips at {place}; nothing matches this pattern. Check the path.")
    return [str(path) for path in found]


def _listed(file: Path, common: dict) -> list[Namespace]:
    """Return the clips of a list: one per line, each with what may follow it after ``sv4d2 views``."""
    if not file.is_file():
        raise FileNotFoundError(f"Expected a list of clips; there is no file {file}. Check the path.")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"Expected a list of clips as text (UTF-8); {file} is not: {error}.") from error
    clips = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                clips.append(_parsed(line, common))
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}") from error
    if not clips:
        raise ValueError(f"Expected a list of clips, one per line; {file} has none.")
    return clips


def _parsed(line: str, common: dict) -> Namespace:
    """Return the options of a line; those that it does not name are the batch's."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    lexer.escape = ""  # a backslash separates folders on Windows; quotes do for spaces
    try:
        words = [*lexer]
    except ValueError as error:
        raise ValueError(
            f"Expected quotation marks in pairs, around names with spaces or apostrophes; got one without "
            f"its second in {cut(line)}. Put such a name in double ones."
        ) from error
    parser = Parser("sv4d2 views", add_help=False)
    views.add_arguments(parser)
    required = [f"--checkpoint={common['checkpoint']}", f"--out={common['out']}"]
    clip = parser.parse_args([*required, *words], Namespace(**common))
    for shared in _SHARED:
        if getattr(clip, shared) != common[shared]:
            name = "--" + shared.replace("_", "-")
            raise ValueError(f"{name} is the same for all clips of a batch. Give it on the command line.")
    return clip


def _stem(path: str) -> str:
    """Return the name of a clip without suffix, fit for a folder that can be seen."""
    place = Path(os.path.abspath(os.path.expanduser(path)))
    return (place.name if place.is_dir() else place.stem).strip(". ") or "clip"


def _unique(name: str, taken: set[str]) -> str:
    """Return the name, with _2 and so on where it is taken; case does not count, as on some disks."""
    unique, number = name, 1
    while unique.casefold() in taken:
        number += 1
        unique = f"{name}_{number}"
    taken.add(unique.casefold())
    return unique


@dataclass(frozen=True)
class Outcome:
    """What became of a clip: seconds, and of one that failed the message, and the system's error number."""

    seconds: float
    error: str | None = None
    errno: int | None = None


Make = Callable[[list[Namespace]], Iterator[tuple[Namespace, Outcome]]]  # clips in, their outcomes out


class Worker:
    """Runs `sv4d2 views` for one clip after the other; the model is loaded for the first that needs it.

    A process of a Ray cluster gets the command's working directory and number of threads, on which the
    last bits of results on a CPU depend.
    """

    def __init__(self, folder: str = ".", threads: int | None = None) -> None:
        os.chdir(folder)
        if threads is not None:
            torch.set_num_threads(threads)
        self._model: Model | None = None
        self._size = 0

    def make(self, args: Namespace) -> Outcome:
        """Make the views of a clip, or find them complete; the model's options are the same in all calls."""
        began = time.perf_counter()
        try:
            views.run(args, self._load)
        except Exception as error:
            text = without_number(error) if isinstance(error, OSError) else str(error)
            if not isinstance(error, (ValueError, OSError)):
                # What is left of the model after memory ran out, or a fault, is not known.
                log.exception("%s failed:", args.input)
                self._model = None
                text = f"{type(error).__name__}: {error}"
            return Outcome(round(time.perf_counter() - began, 2), text, getattr(error, "errno", None))
        return Outcome(round(time.perf_counter() - began, 2))

    def _load(self, job: views.Job) -> Model:
        """Return the model; another image size, which may need another memory plan, has it loaded anew."""
        if self._model is None or job.settings["size"] != self._size:
            self._model = None  # two at once may not fit into memory
            self._model, self._size = views.load_model(job), job.settings["size"]
        return self._model


def _make_here(clips: list[Namespace]) -> Iterator[tuple[Namespace, Outcome]]:
    """Yield clips with what became of them, made one after the other in this process."""
    worker = Worker()
    for number, clip in enumerate(clips, 1):
        log.info("Clip %d of %d: %s", number, len(clips), clip.input)
        yield clip, worker.make(clip)


@contextmanager
def on_ray(device: str, actors: int | None, largest: int) -> Iterator[Make]:
    """Yield what makes clips on a Ray cluster, whose processes end with the block.

    The cluster is the one that ``RAY_ADDRESS`` names or that runs on this machine, else one on this machine
    for the time of the block. It has ``actors`` processes, at most ``largest``, or one per GPU.
    """
    if device not in _RAY_DEVICES:
        raise ValueError(f"Expected --device {', '.join(_RAY_DEVICES)} with --ray; got {device!r}.")
    ray, began = _connected_ray()
    workers: list[Any] = []
    try:
        resources = ray.cluster_resources()
        quiet = {"env_vars": {"TQDM_DISABLE": "1"}}  # a bar per actor would drown what they say
        needs = needs_of_actor(resources, device, actors)
        remote = ray.remote(Worker).options(**needs, runtime_env=quiet)
        count = min(largest, actors or int(resources["GPU"]))

        def start() -> Any:
            workers.append(remote.remote(os.getcwd(), torch.get_num_threads()))
            return workers[-1]

        yield partial(_share, ray, start, count)
    except KeyboardInterrupt:
        log.warning("Finished clips and windows are kept; the same command continues.")
        raise
    finally:
        for worker in workers:
            ray.kill(worker)
        if began:
            ray.shutdown()


def _share(
    ray: Any, start: Callable[[], Any], count: int, clips: list[Namespace]
) -> Iterator[tuple[Namespace, Outcome]]:
    """Yield clips in the order in which they end; who has finished one is given the next."""
    idle, waiting = [start() for _ in range(count)], list(reversed(clips))
    busy: dict[Any, tuple[Any, Namespace]] = {}
    while waiting or busy:
        while waiting and idle:
            worker, clip = idle.pop(), waiting.pop()
            log.info("Clip %d of %d: %s", len(clips) - len(waiting), len(clips), clip.input)
            busy[worker.make.remote(clip)] = worker, clip
        [ended], _ = ray.wait(list(busy), num_returns=1)
        worker, clip = busy.pop(ended)
        try:
            outcome = ray.get(ended)
        except ray.exceptions.RayError as error:
            # The process died, for example because the machine ran out of memory. Ray's own restart would
            # refuse the next clips until it is there again.
            outcome = Outcome(0.0, f"The worker failed ({type(error).__name__}): {error}")
            ray.kill(worker)
            worker = start()
        idle.append(worker)
        yield clip, outcome


def needs_of_actor(resources: dict[str, float], device: str, actors: int | None) -> dict[str, int]:
    """Return what an actor takes: a GPU where there are some, else a core. Raises ValueError for too many."""
    cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    on_gpus = gpus > 0 and device != "cpu"
    if not on_gpus and (actors is None or device == "cuda"):
        raise ValueError(
            f"Expected a Ray cluster with GPUs for --device {device}; got {cores} CPU cores only. Give "
            f"--actors N and --device cpu to use N of them, or leave --ray out."
        )
    kind, there = ("GPU", gpus) if on_gpus else ("CPU", cores)
    if actors is not None and actors > there:
        raise ValueError(
            f"Expected at most {there} --actors, one per {kind} of the Ray cluster; got {actors}."
        )
    return {"num_gpus": int(on_gpus), "num_cpus": 1}


def _connected_ray() -> tuple[Any, bool]:
    """Return Ray and whether this process connected it: to a cluster that is there, or to one of its own."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            "Expected the package ray for --ray; it is not installed. Install the extra ray "
            '(pip install ".[ray]" or pip install ray), or leave --ray out.'
        ) from error
    if ray.is_initialized():
        return ray, False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # reports nothing unless the user says so
    try:
        ray.init(include_dashboard=False, logging_level=logging.WARNING)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"Expected a Ray cluster; Ray could neither reach nor start one ({error}). Try again, set "
            f"RAY_ADDRESS, or leave --ray out."
        ) from error
    return ray, True
