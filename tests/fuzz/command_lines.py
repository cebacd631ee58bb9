"""Bad command lines, made of the parsers' own options: exit code 2, one short message, nothing left behind.

Run by hand for longer: ``python tests/fuzz/command_lines.py --cases 400 --seed 1``.
"""

import argparse
import contextlib
import io
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from sv4d2_core.__main__ import COMMANDS, build_parser, main
from sv4d2_core.cameras import Cameras
from sv4d2_core.commands.common import Within
from sv4d2_core.data.views_folder import write_views
from sv4d2_core.files import remove
from sv4d2_core.scene.config import RefineConfig
from sv4d2_core.scene.dynerf.dynerf import DyNeRF
from sv4d2_core.scene.geometry.hull import Occupancy
from sv4d2_core.video.pictures import write_frames
from sv4d2_core.world import make_creature, render_views

LONGEST_MESSAGE = 500
# A line of each command that is right as it stands, but for its --out, in a folder that `inputs` fills.
GOOD = {
    "views": "clip --checkpoint tiny",
    "batch": "clip --checkpoint tiny",
    "refine": "views --steps 4",
    "render": "scene.safetensors",
    "export": "scene.safetensors --format dataset",
    "metrics": "views",
    "convert-i3d": "--trust-code scene.safetensors",
    "scenes": "--only owl --size 16",
    "curate": "views",
    "train": "--data views --base tiny",
    "convert": "tiny",
    "demo": "",
}
WORDS = ("", "x", "one,two", "0x10", "1e", "nan", "inf", "-inf", "1e999", "9" * 5000, "½", "--", "x" * 70_000)
PLACES = ("missing", "clip/0.png/below", "x" * 300, "missing/" * 900, "views/run.json")


def inputs(folder: Path) -> None:
    """Write a clip, a folder of views and a scene."""
    views = render_views(make_creature(1), Cameras.official("sv4d2"), 3, 16)
    write_views(folder / "views", views, run={"settings": {}})
    write_frames(folder / "clip", views.images[:, 0])
    cells = torch.zeros(3, 16, 16, 16, dtype=torch.bool)
    cells[:, 4:12, 4:12, 4:12] = True
    box = torch.tensor([[-0.4] * 3, [0.4] * 3])
    config = RefineConfig(features=2, plane_sizes=(4, 8), hidden=8, hull_size=16)
    scene = DyNeRF(Occupancy(cells, box), Cameras.official("sv4d2"), 4.0, [0.0, 0.5, 1.0], config)
    scene.save(folder / "scene.safetensors")


def options_of(command: str) -> list[argparse.Action]:
    (choice,) = (one for one in build_parser([command])._actions if isinstance(one.choices, dict))
    return choice.choices[command]._actions  # pyright: ignore[reportOptionalSubscript]


def bad_value(option: Any, rng: random.Random) -> str:
    """Return a value that an option cannot take."""
    if isinstance(kind := option.type, Within):
        beyond = (kind.least - 1, kind.most + 1, kind.most * 1e9 + 1e9, -(10**30), 10**30)
        return rng.choice((*WORDS, *map(str, beyond), *(["0.5"] if kind.whole else [])))
    return rng.choice(PLACES if option.type is not None and not option.choices else WORDS)


def bad_line(command: str, rng: random.Random) -> list[str]:
    """Return the words of a command that must be refused."""
    good = [command, *GOOD[command].split(), *(["out"] if command == "convert" else ["--out", "out"])]
    options = [one for one in options_of(command) if one.option_strings and one.dest != "help"]
    given = [word for word in good if word in ("clip", "views", "scene.safetensors")]
    kinds: dict[str, list[Any]] = {
        "number": [one for one in options if isinstance(one.type, Within)],
        "list": [one for one in options if type(one).__name__ == "Numbers"],
        "choice": [one for one in options if one.choices],
        "place": [one for one in options if one.type is Path and one.dest != "out"],
        "nested": given,
        "words": [None],
    }
    kind = rng.choice([*(kind for kind, some in kinds.items() if some), *["number"] * bool(kinds["number"])])
    one = rng.choice(kinds[kind])
    if kind == "words":  # not what the parser knows, or too little
        kept = good[: rng.randrange(1, len(good))]
        return rng.choice([[*good, "--" + rng.choice(("outt", "x" * 70_000, "no-such=1"))], [*kept, "--out"]])
    if kind == "nested":  # the result in an input, or an input in the result
        out = "." if "/" in one else rng.choice([".", one, f"{one}/.", f"{one}/new", f"clip/../{one}"])
        return [*good[:-1], out]
    if kind == "list":
        value = rng.choice((*WORDS[1:-2], "1e308", "-1e9,2"))
        return [*good, f"{one.option_strings[0]}={value}"]
    value = bad_value(one, rng)
    if kind == "place" and "--trust-code" in good:
        return [command, "--trust-code", value, "--out", "out"]
    return [*good, f"{one.option_strings[0]}={value}"]


def tree(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns if path.is_file() else 0 for path in folder.rglob("*")}


def problem(words: list[str], folder: Path) -> str:
    """Return what is wrong with how a bad line ends, nothing where it is as it should be."""
    before, said = tree(folder), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            code = main(["-q", *words])
        except (Exception, SystemExit) as error:
            return f"{type(error).__name__}: {error!s:.300}"
    text = said.getvalue()
    left = sorted(str(place) for place, stamp in tree(folder).items() if before.get(place) != stamp)
    remove(*(place for place in tree(folder) if place not in before))
    if code != 2 or left:
        return f"exit code {code}, left {left[:3]}: {text[:200]}"
    fits = text.startswith("sv4d2: ") and text.count("sv4d2: ") == 1 and len(text) <= LONGEST_MESSAGE
    return "" if fits and "Traceback" not in text else f"{len(text)} characters: {text[:600]}"


def campaign(cases: int, seed: int) -> Counter[str]:
    """Return how many lines of each command were refused; AssertionError with all that were not."""
    counts, wrong, home = Counter[str](), [], Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        inputs(Path(folder))
        os.chdir(folder)
        try:
            for case in range(cases):
                rng = random.Random(f"{seed} {case}")
                words = bad_line(rng.choice(sorted(GOOD)), rng)
                counts[words[0]] += 1
                if found := problem(words, Path(folder)):
                    wrong.append(f"case {case}: {' '.join(words)[:200]}\n  {found}")
        finally:
            os.chdir(home)
    assert not wrong, "\n".join([f"{len(wrong)} of {cases} of seed {seed}", *wrong])
    return counts


if __name__ == "__main__":
    assert {*GOOD, "info"} == {*COMMANDS}
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sys.stdout.write(f"{campaign(args.cases, args.seed)}\n")
