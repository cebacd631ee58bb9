"""Which clips a batch makes views of: for each the options of `sv4d2 views`, with a folder of its own."""

from __future__ import annotations

import argparse
import glob
import os
import shlex
from argparse import Namespace
from pathlib import Path
from typing import NoReturn

from ..video.read import natural_key
from . import views_arguments

REPORT_FILE = "batch.json"
LIST_SUFFIX = ".txt"
_ONLY_OF_BATCH = ("more", "ray", "actors", "run")
# What the clips of a batch share: the model, where it runs, and where the results go.
_SHARED = ("checkpoint", "variant", "device", "dtype", "memory_gb", "fp8_weights", "compile", "out")


def clips_of(args: Namespace) -> list[Namespace]:
    """Return the options of `sv4d2 views` for each clip, in the order given.

    The folder of a clip is named after its file without suffix; the second of equal names gets ``_2``, and so
    on in the order given (capitals do not count, as on some disks).

    Args:
        args: options of `sv4d2 batch`: of `sv4d2 views`, with further clips in ``more``.

    Raises:
        ValueError: a list with options that are not there or not of one clip, a clip among the results.
        OSError: a list that cannot be read, a pattern without matches.
    """
    common = {key: value for key, value in vars(args).items() if key not in _ONLY_OF_BATCH}
    common["command"] = "views"
    clips = [clip for place in (args.input, *args.more) for clip in _clips_at(place, common)]
    taken = {REPORT_FILE}
    for clip in clips:
        clip.out = args.out / _unique(_stem(clip.input), taken)
    _refuse_results(clips, args.out)
    return clips


def _clips_at(place: str, common: dict) -> list[Namespace]:
    """Return the clips of a path, a pattern or a list, all still without a folder of their own."""
    if Path(place).suffix.lower() == LIST_SUFFIX:
        lists = _listed(Path(place).expanduser(), common)
    else:
        lists = [Namespace(**{**common, "input": place})]
    return [Namespace(**{**vars(clip), "input": path}) for clip in lists for path in _matches(clip.input)]


def _matches(place: str) -> list[str]:
    """Return what a pattern matches, in natural order, or the place itself where it is no pattern."""
    if not glob.has_magic(place) or os.path.lexists(os.path.expanduser(place)):
        return [place]
    found = [Path(path) for path in glob.glob(os.path.expanduser(place), recursive=True)]
    if not found:
        raise FileNotFoundError(f"Expected clips at {place}; nothing matches this pattern. Check the path.")
    return [str(path) for path in sorted(found, key=natural_key)]


def _listed(file: Path, common: dict) -> list[Namespace]:
    """Return the clips of a list: one per line, each with what may follow it after ``sv4d2 views``."""
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


class _LineParser(argparse.ArgumentParser):
    """Parses a line as the shell's command is parsed, but leaves the program running on errors."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parsed(line: str, common: dict) -> Namespace:
    """Return the options of a line; those that it does not name are the batch's."""
    words = shlex.shlex(line, posix=True, punctuation_chars=False)
    words.whitespace_split, words.commenters = True, ""
    # A backslash separates folders on Windows; quotes do for spaces.
    words.escape = ""
    parser = _LineParser(add_help=False)
    views_arguments.add_arguments(parser)
    required = [f"--checkpoint={common['checkpoint']}", f"--out={common['out']}"]
    clip = parser.parse_args([*required, *words], Namespace(**common))
    for option in _SHARED:
        if getattr(clip, option) != common[option]:
            name = "--" + option.replace("_", "-")
            raise ValueError(f"{name} is the same for all clips of a batch. Give it on the command line.")
    return clip


def _stem(path: str) -> str:
    """Return the name of a clip without suffix, fit for a folder that can be seen."""
    place = Path(os.path.abspath(os.path.expanduser(path)))
    return (place.name if place.is_dir() else place.stem).strip(". ") or "clip"


def _unique(name: str, taken: set[str]) -> str:
    """Return the name, numbered where it is taken, and take it."""
    unique, number = name, 1
    while unique.casefold() in taken:
        number += 1
        unique = f"{name}_{number}"
    taken.add(unique.casefold())
    return unique


def _refuse_results(clips: list[Namespace], out: Path) -> None:
    """Raise ValueError when a clip lies where the results of one will be."""
    root = Path(os.path.abspath(out))
    names = {clip.out.name for clip in clips}
    for clip in clips:
        place = Path(os.path.abspath(os.path.expanduser(clip.input)))
        if place == root or (root in place.parents and place.relative_to(root).parts[0] in names):
            raise ValueError(
                f"Expected clips apart from the results; {clip.input} lies in what would be written to "
                f"{out}. Choose another --out."
            )
