"""`sv4d2 batch`: a list of clips in, a folder of novel views out for each."""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from ..files import DISK_FULL, write_whole
from . import views_arguments
from .arguments import at_least
from .batch_clips import REPORT_FILE, clips_of
from .batch_ray import on_ray
from .batch_worker import Outcome, Worker
from .common import exclusive, options_of, versions
from .views import check_options

log = logging.getLogger(__name__)

_MADE_BY = "sv4d2 batch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command: those of `sv4d2 views`, and how many clips are shared out."""
    views_arguments.add_arguments(parser)
    parser.add_argument(
        "more",
        nargs="*",
        metavar="INPUT",
        help="further clips; a quoted glob is one clip per match; a text file (.txt) lists clips, one per "
        "line, each with options of its own after it. Every clip gets a folder in DIR, named after it",
    )
    many = parser.add_argument_group("several GPUs")
    many.add_argument("--ray", action="store_true", help="one process per GPU of a Ray cluster (extra: ray)")
    many.add_argument(
        "--actors", type=at_least(1), metavar="N", help="processes on the cluster (default: one per GPU)"
    )


def run(args: Namespace) -> int:
    """Make the views of all clips; return 0, or 1 if some failed.

    Raises:
        ValueError, OSError: bad options or lists, a folder in use or with another's report, a full disk.
    """
    began = time.perf_counter()
    if args.actors is not None and not args.ray:
        raise ValueError("--actors is an option of --ray. Give both or neither.")
    check_options(args)
    clips = clips_of(args)
    place = on_ray(args.device, args.actors, len(clips)) if args.ray else nullcontext(_make_here)
    with exclusive(args.out), place as make:
        report = _Report(args, clips)
        for clip, outcome in make(clips):
            _tell(clip, outcome)
            report.add(clip, outcome)
    failed = report.failed()
    log.info(
        "%d of %d clips are complete, after %.0f s. Look at %s",
        len(clips) - len(failed),
        len(clips),
        time.perf_counter() - began,
        report.file,
    )
    if failed:
        log.error("Failed: %s. The same command tries them again.", ", ".join(failed))
    return 1 if failed else 0


def _make_here(clips: list[Namespace]) -> Iterator[tuple[Namespace, Outcome]]:
    """Yield clips with what became of them, made one after the other in this process."""
    worker = Worker()
    for number, clip in enumerate(clips, 1):
        log.info("Clip %d of %d: %s", number, len(clips), clip.input)
        yield clip, worker.make(clip)


def _tell(clip: Namespace, outcome: Outcome) -> None:
    """Log how a clip went. Raises OSError where no other can go better: the disk is full."""
    if outcome.error is None:
        log.info("%s: complete (%.0f s)", clip.out, outcome.seconds)
        return
    log.error("%s failed: %s", clip.input, outcome.error)
    if outcome.errno is not None and outcome.errno in DISK_FULL:
        raise OSError(outcome.errno, os.strerror(outcome.errno), str(clip.out))


class _Report:
    """``batch.json``: what became of every clip so far, rewritten as a whole after each.

    Args:
        args: the options of the command.
        clips: all of them, in order.

    Raises:
        FileExistsError: the folder holds a file of this name that no batch wrote.
    """

    def __init__(self, args: Namespace, clips: list[Namespace]) -> None:
        self.file: Path = args.out / REPORT_FILE
        self._refuse_foreign()
        options = {**options_of(args), "input": [args.input, *args.more]}
        del options["more"]
        self._head = {"made_by": _MADE_BY, "options": options, "versions": versions()}
        self._clips = {
            clip.out.name: {"input": clip.input, "status": "unfinished", "seconds": None, "error": None}
            for clip in clips
        }
        self._write()

    def add(self, clip: Namespace, outcome: Outcome) -> None:
        """Note what became of a clip."""
        status = "complete" if outcome.error is None else "failed"
        self._clips[clip.out.name].update(status=status, seconds=outcome.seconds, error=outcome.error)
        self._write()

    def failed(self) -> list[str]:
        """Return the names of the clips that failed."""
        return [name for name, clip in self._clips.items() if clip["status"] == "failed"]

    def _write(self) -> None:
        write_whole(self.file, json.dumps({**self._head, "clips": self._clips}, indent=2).encode())

    def _refuse_foreign(self) -> None:
        if not self.file.exists():
            return
        try:
            known = json.loads(self.file.read_text())
        except ValueError:
            known = None
        if not isinstance(known, dict) or known.get("made_by") != _MADE_BY:
            raise FileExistsError(
                f"Expected a free place for the report; {self.file} is not a batch's. Choose another --out."
            )
