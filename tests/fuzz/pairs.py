"""Two jobs at once on one place: one is refused at once and readably, the other is whole.

Run by hand for longer: ``python tests/fuzz/pairs.py --cases 50 --seed 1``, with ``--first`` to go on with a
later case. Each job is a fork of this process, which has everything imported and has computed nothing.
Linux only.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from sv4d2_core.__main__ import COMMANDS, build_parser, main
from sv4d2_core.cameras import Cameras
from sv4d2_core.commands import demo, train
from sv4d2_core.data.views_folder import write_views
from sv4d2_core.files import remove
from sv4d2_core.scene.config import GaussiansConfig
from sv4d2_core.scene.gaussians.gaussians import CanonicalGaussians, Gaussians
from sv4d2_core.video.pictures import write_frames
from sv4d2_core.world import make_creature, render_views
from tests.host import media

LONGEST_MESSAGE, LONGEST_S = 500, 120
# Of two at once the refused one has done little of the work; seconds of the processor.
REFUSED_SHARE, REFUSED_S = 0.5, 0.5

_MODEL = " --checkpoint micro.safetensors --variant sv4d2 --steps 2 --save-latents"
VIEWS, BATCH = "views clip --out out" + _MODEL, "batch clip walk --out out" + _MODEL
FIT = "refine views --steps 4 --size 16 --input-elevation 0 --out out/s.safetensors"
SET, SPLATS = (
    "export ball.safetensors --format dataset --size 16 --out out",
    "export ball.safetensors --format splat-ply --out out",
)
GIF = "export ball.safetensors --format turntable --size 16 --frames 4 --out out/a.gif"
GLB = "export ball.safetensors --format glb --resolution 16 --faces 200 --out out/a.glb"
OBJ = "export ball.safetensors --format obj --resolution 16 --faces 200 --out out"
CONVERT = "convert micro.safetensors out/c.safetensors --variant sv4d2"
METRICS = "metrics views --out out"
RENDER = "render ball.safetensors --size 16 --turntable --frames 3 --out out"
SCENES, CURATE = "scenes --only owl --size 16 --out out", "curate views --out out"
TRAIN = "train --base micro.safetensors --data views --motion-steps 2 --workers 0 --device cpu --out out"
DEMO = "demo --out out"
OVER, SEED = " --overwrite", " --seed 1"
# Two jobs, and what was there before. The quick ones go first.
PAIRS: tuple[tuple[str, ...], ...] = (
    (CONVERT, CONVERT),
    (CONVERT, CONVERT + " --dtype bf16" + OVER),
    (SET, SET),
    (SPLATS, SET),
    (GIF, GIF + OVER),
    (METRICS, METRICS),
    (RENDER, SET),
    (CURATE, CURATE + OVER),
    (VIEWS, VIEWS + SEED),
    (FIT, FIT + SEED),
    (VIEWS, VIEWS),
    (VIEWS, VIEWS + SEED + OVER),
    (VIEWS, FIT),
    (VIEWS + SEED + OVER, FIT, VIEWS),
    (FIT, FIT + SEED + OVER),
    (FIT, "export out/s.safetensors --format dataset --size 16 --out out/set"),
    (FIT + SEED + OVER, "render out/s.safetensors --size 16 --out out/set", FIT),
    (CONVERT + OVER, CONVERT + " --dtype bf16" + OVER, CONVERT),
    (SPLATS + OVER, SPLATS + " --sh-degree 0" + OVER, SPLATS),
    (GLB, GLB + OVER),
    (OBJ, OBJ),
    (OBJ, SPLATS),
    (METRICS + OVER, METRICS + " --size 16" + OVER, METRICS),
    (RENDER, RENDER + OVER),
    (BATCH, BATCH),
    (BATCH, VIEWS.replace("out out", "out out/clip")),
    (BATCH, VIEWS),
    (VIEWS, METRICS),
    (TRAIN, TRAIN),
    (TRAIN, TRAIN + SEED),
    (SCENES, SCENES),
    (DEMO, DEMO),
    (DEMO, VIEWS.replace("out out", "out out/views")),
)


def inputs(folder: Path) -> None:
    """Write clips, views that can be learnt from, a scene of Gaussians and a checkpoint."""
    media.write_micro_checkpoint(folder / "micro.safetensors")
    grid = render_views(make_creature(5), Cameras((0, 0, 10), (0, 120, 240)), 3, 32)
    write_views(folder / "views", grid)
    for number, name in enumerate(("clip", "walk")):
        write_frames(folder / name, grid.images.roll(number, 0)[:, 0])
    means = torch.nn.functional.normalize(torch.randn(120, 3), dim=-1)
    ball = CanonicalGaussians(0.25 * means, 0.04, 0.9, torch.rand(120, 3))
    box, config = (
        torch.tensor([[-0.4] * 3, [0.4] * 3]),
        GaussiansConfig(count=120, plane_sizes=(8,), hidden=8),
    )
    scene = Gaussians(ball, box, (1e-3, 0.1), grid.cameras, 4.0, [0.0, 0.5, 1.0], config)
    scene.save(folder / "ball.safetensors")


@dataclass(frozen=True)
class End:
    """How a job ended: exit code, what it said, seconds of the processor."""

    code: int
    said: str
    cpu_s: float

    def problem(self) -> str:
        """Return what is wrong with a message, nothing where it is as it should be."""
        if self.code not in (0, 1, 2) or "Traceback" in self.said or "[Errno" in self.said:
            return f"exit code {self.code}: {self.said[-1000:]}"
        lines = [line for line in self.said.splitlines() if line.startswith("sv4d2: ")]
        fits = max(map(len, self.said.splitlines()), default=0) <= LONGEST_MESSAGE or self.code == 0
        return "" if len(lines) == (self.code == 2) and fits else f"{self.code}: {self.said[:1000]}"


def run(*lines: str, waits: Sequence[float] = (0, 0), before: Callable[[], object] = int) -> list[End]:
    """Run jobs at once, each after so many seconds, ``before`` first in each, and return how they ended."""
    gate, opened = os.pipe()
    jobs = []
    for line, wait in zip(lines, waits, strict=False):
        heard, said = os.pipe()
        process = os.fork()
        if not process:
            code = 70
            try:
                os.dup2(said, 1)
                os.dup2(said, 2)
                signal.alarm(LONGEST_S)
                os.close(opened)
                os.read(gate, 1)
                time.sleep(wait)
                before()
                code = main(["-q", *line.split()])
                sys.stdout.flush()
            except (Exception, SystemExit):
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(said)
        jobs.append((process, heard))
    os.close(gate)
    os.close(opened)
    ends = []
    for process, heard in jobs:
        with open(heard, "rb") as said:
            text = said.read().decode()
        _, status, usage = os.wait4(process, 0)
        ends.append(End(os.waitstatus_to_exitcode(status), text, usage.ru_utime + usage.ru_stime))
    return ends


_OF_THE_RUN = {"seconds", "options", "versions", "run", "resumed_windows"}


def _of_the_result(value: object) -> object:
    """Return JSON values without those that differ from run to run."""
    if isinstance(value, list):
        return [_of_the_result(one) for one in value]
    if isinstance(value, dict):
        return {key: _of_the_result(one) for key, one in value.items() if key not in _OF_THE_RUN}
    return value


def tree(place: Path) -> dict[str, object]:
    """Return what is at a place, hidden files and empty folders included, by name."""
    found: dict[str, object] = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if path.is_dir():
            found.update({} if any(path.iterdir()) else {name: None})
        elif path.suffix == ".json":
            found[name] = _of_the_result(json.loads(path.read_bytes()))
        else:
            # A report's page and text tell the time; x264 may write other bytes in each run.
            free = path.name.startswith("report.") or path.suffix == ".mp4"
            found[name] = path.name if free else path.read_bytes()
    return found


def difference(found: dict[str, object], wanted: dict[str, object]) -> list[str]:
    """Return the names of what is missing, too much or another."""
    names = found.keys() | wanted.keys()
    return sorted(
        name for name in names if name not in found or name not in wanted or found[name] != wanted[name]
    )


@dataclass(frozen=True)
class InTurn:
    """What comes of two jobs one after the other: how they end, what is there after each."""

    ends: tuple[End, End]
    trees: tuple[dict[str, object], dict[str, object]]

    @classmethod
    def of(cls, first: str, second: str, earlier: Sequence[str]) -> "InTurn":
        start(earlier)
        (one,), seen = run(first), tree(OUT)
        (other,) = run(second)
        return cls((one, other), (seen, tree(OUT)))


OUT = Path("out")


def start(earlier: Sequence[str]) -> None:
    """Make the place as it is before a pair."""
    remove(OUT)
    for line in earlier:
        (end,) = run(line)
        assert not end.code, end


def problem(pair: Sequence[str], in_turn: Sequence[InTurn], ends: Sequence[End]) -> str:
    """Return what is wrong with how two jobs ended; runs the refused one again."""
    if wrong := next(filter(None, (end.problem() for end in ends)), ""):
        return wrong
    refused = [i for i, end in enumerate(ends) if end.code]
    found = tree(OUT)
    if len(refused) == 2:
        return f"none is whole: {[end.said[:300] for end in ends]}"
    if not refused:
        wholes = [turn.trees[1] for turn in in_turn if all(end.code == 0 for end in turn.ends)]
        differences = [difference(found, whole) for whole in wholes]
        return "" if [] in differences else f"both say done: {[names[:5] for names in differences]}"
    (i,) = refused
    turn, alone = in_turn[1 - i], in_turn[i].ends[0]
    # A batch goes on with its other clips.
    if ends[i].code == 2:
        if left := difference(found, turn.trees[0]):
            return f"not as the other alone leaves it: {left[:5]}; {ends[i].said[:300]}"
        if ends[i].cpu_s > REFUSED_SHARE * alone.cpu_s + REFUSED_S:
            return f"refused after {ends[i].cpu_s:.1f} s of {alone.cpu_s:.1f}: {ends[i].said[:300]}"
    (again,) = run(pair[i])
    left = difference(tree(OUT), turn.trees[1])
    same = again.code == turn.ends[1].code and not left
    return "" if same else f"another end of the same again: {again}, {left[:5]}"


def campaign(cases: int, seed: int, first: int = 0, report: Callable[[str], object] = str) -> Counter[str]:
    """Return how many pairs ended in which way; AssertionError with all that should not have."""
    counts, wrong, home = Counter[str](), [], Path.cwd()
    references: dict[tuple[str, ...], list[InTurn]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            inputs(Path())
            for case in range(first, cases):
                rng = random.Random(f"{seed} {case}")
                pair = PAIRS[case % len(PAIRS)]
                one, other, *earlier = pair
                if pair not in references:
                    turns = ((one, other), (other, one))
                    references[pair] = [InTurn.of(*lines, earlier) for lines in turns]
                in_turn = references[pair]
                start(earlier)
                lead = rng.choice((0, 0, rng.uniform(-1.1, 1.1)))
                longest = in_turn[lead < 0].ends[0].cpu_s
                ends = run(one, other, waits=(max(0, -lead) * longest, max(0, lead) * longest))
                found = problem(pair, in_turn, ends)
                held = any("Another process" in end.said for end in ends)
                codes = sorted(end.code for end in ends)
                outcome = "one refused" if held else "both done" if codes == [0, 0] else "there already"
                counts["wrong" if found else outcome] += 1
                line = f"case {case}, {lead:+.2f}, {' + '.join(pair)}: {found or outcome}"
                report(line)
                wrong += [line] if found else []
        finally:
            os.chdir(home)
    assert not wrong, "\n".join([f"{len(wrong)} of {cases - first} of seed {seed}", *wrong])
    return counts


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def prepared() -> None:
    """Import what the jobs use, once for all, and make the longest of them shorter."""
    build_parser([*COMMANDS])
    torch.set_num_threads(1)
    demo._SMALL_FIT, train._SAMPLED_OBJECTS = ("--steps", "4"), (0,)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    args = parser.parse_args()
    prepared()
    counted = campaign(args.cases, args.seed, args.first, say)
    sys.stdout.write(f"{dict(counted)}\n")
