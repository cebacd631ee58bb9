"""Jobs that are killed at random moments: what stands under a final name is whole, the rerun gives the same.

Run by hand for longer: ``python tests/fuzz/kills.py --cases 100 --seed 1``. Each job runs in a fork of this
process, which has everything imported and has computed nothing, in a folder and with temporary files of its
own. Linux only.
"""

import argparse
import json
import os
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from sv4d2_core.__main__ import main
from sv4d2_core.commands import train
from tests.fuzz import pairs

# What jobs import, partly late, for seconds.
_COMMANDS = ("batch", "export", "refine", "train", "views")
_LATE = ("cv2", "filelock", "kornia", "scipy.spatial", "skimage.measure", "torch._dynamo", "trimesh")

LONGEST_S, SAVING_S = 120, 2.0
SIGNALS = {signal.SIGKILL: 6, signal.SIGTERM: 2, signal.SIGHUP: 1, signal.SIGINT: 1}  # and how often
_CLIP = "--checkpoint {}/micro.safetensors --variant sv4d2 --steps 2 --save-latents --out out"
_VIEWS = "views {}/clip " + _CLIP
_FIT = "refine {}/views --input-elevation 0 --size 16 --out out/a.safetensors --steps "
_SPLATS = "export {}/ball.safetensors --format splat-ply --out out/splats"
_MOVIE = "export {}/ball.safetensors --format turntable --size 16 --frames 4 --out out/a.mp4"
_CONVERT = "convert {}/micro.safetensors out/a.safetensors --variant sv4d2"
_TRAIN = (
    "train --base {}/micro.safetensors --data {}/data --dtype fp32 --device cpu --out out --motion-steps "
)
# The command that is killed, and in jobs that replace a result the one that made it. {} is `inputs`' folder.
JOBS: dict[str, tuple[str, ...]] = {
    "views": (_VIEWS,),
    "views over": (_VIEWS + " --fps 12 --overwrite", _VIEWS),
    "refine": (_FIT + "8",),
    "refine gaussians": (_FIT + "6 --backend gaussians",),
    "refine 2 stages": (_FIT + "6 --checkpoint {}/micro.safetensors --variant sv4d2 --sampling-steps 4",),
    "train": (_TRAIN + "3",),
    "train lora": (_TRAIN + "2 --lora 2",),
    "export": (_SPLATS,),
    "export over": (_SPLATS + " --sh-degree 0 --overwrite", _SPLATS),
    "export file": (_MOVIE,),
    "export mesh": ("export {}/ball.safetensors --format glb --resolution 24 --faces 600 --out out/a.glb",),
    "batch": ("batch {}/clip {}/walk " + _CLIP,),
    "convert": (_CONVERT,),
    "convert over": (_CONVERT + " --dtype bf16 --overwrite", _CONVERT),
}


def inputs(folder: Path) -> None:
    """Write what pairs of jobs are given, and data to train on."""
    pairs.inputs(folder)
    for number in range(2):
        shutil.copytree(folder / "views", folder / f"data/{number}")


@dataclass(frozen=True)
class Shot:
    """A signal, sent after some seconds or, where ``write`` is given, that long after that write."""

    number: int
    seconds: float
    write: int | None = None


class Writes:
    """Counts where a job makes, renames and removes files; fires before one of them."""

    EVENTS = {"open", "os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}

    def __init__(self, place: Path, shot: Shot | None) -> None:
        self.folders, self.shot, self.count = (f"{place}/work", f"{place}/tmp"), shot, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in self.EVENTS or not isinstance(arguments[0], (str, os.PathLike)):
            return
        reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if reads or not os.path.abspath(arguments[0]).startswith(self.folders):
            return
        if self.shot and self.shot.write == self.count:
            this = os.pidfd_open(os.getpid())
            if not self.shot.seconds:
                signal.pidfd_send_signal(this, self.shot.number)
            elif not os.fork():
                time.sleep(self.shot.seconds)
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(this, self.shot.number)
                os._exit(0)
        self.count += 1


@dataclass(frozen=True)
class End:
    """How a process ended: exit code, what it said, seconds, writes, seconds from the signal to its end."""

    code: int
    said: str
    seconds: float
    writes: int = 0
    saving: float = 0.0


def run(job: Callable[[], int | None], place: Path, shot: Shot | None = None) -> End:
    """Run a job in a fork that works in ``place``/work, with a signal where one is given."""
    for name in ("work", "tmp"):
        (place / name).mkdir(parents=True, exist_ok=True)
    began, log = time.monotonic(), place / "said"
    process = os.fork()
    if not process:
        code = 99
        try:
            os.setsid()
            os.chdir(place / "work")
            said = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(said, 1)
            os.dup2(said, 2)
            tempfile.tempdir = os.environ["TMPDIR"] = str(place / "tmp")
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.addaudithook(writes := Writes(place, shot))
            code = job() or 0
            for number in SIGNALS.keys() - {signal.SIGKILL}:
                signal.signal(number, signal.SIG_IGN)  # the job has ended
            (place / "writes").write_text(str(writes.count))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    descriptor, fired = os.pidfd_open(process), began
    try:
        if shot and shot.write is None and not select.select([descriptor], [], [], shot.seconds)[0]:
            fired = time.monotonic()
            os.kill(process, shot.number)
        if not select.select([descriptor], [], [], LONGEST_S)[0]:
            os.kill(process, signal.SIGKILL)
    finally:
        os.close(descriptor)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    ended, counted = time.monotonic(), place / "writes"
    count = int(counted.read_text()) if counted.exists() else 0
    return End(code, log.read_text(errors="replace"), ended - began, count, ended - fired if shot else 0.0)


def content(file: Path) -> object:
    """Return a file's bytes; of the records of runs, which hold times and options, the JSON without these."""
    if file.name not in ("run.json", "batch.json"):
        return file.read_bytes()
    record = json.loads(file.read_bytes())
    for clip in record.get("clips", {}).values():
        for key in ("seconds", "status"):
            del clip[key]
    for key in ("seconds", "resumed_windows", "options"):
        record.pop(key, None)
    return record


def tree(folder: Path, hidden: bool) -> dict[str, object]:
    """Return all that is in a folder; without ``hidden`` what has its final name, as states never have."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    if hidden:
        return {name: content(path) if path.is_file() else "folder" for name, path in found.items()}
    kept = (name for name in found if not re.search(r"(^|/)\.|\.fit$|\.state$", name))
    return {name: content(found[name]) for name in kept if found[name].is_file()}


def temporary(place: Path) -> list[str]:
    """Return what a job has left among its temporary files; PyTorch makes its cache there itself."""
    left = (path.relative_to(place).as_posix() for path in (place / "tmp").iterdir())
    return [name for name in left if "torchinductor" not in name]


@dataclass
class Whole:
    """An undisturbed run: the words, what was there before and after, seconds and number of writes."""

    words: list[str]
    start: Path
    before: dict[str, object]
    after: dict[str, object]
    seconds: float
    writes: int


def undisturbed(name: str, sources: Path, place: Path) -> Whole:
    """Run a job's commands to their end, and return what the killed ones are compared with."""
    last, *first = (line.replace("{}", str(sources)).split() for line in JOBS[name])
    shutil.rmtree(place, ignore_errors=True)
    (place / "work/out").mkdir(parents=True)
    for words in first:
        done = run(partial(main, words), place)
        assert done.code == 0, done.said
    start = place.with_name(place.name + " start")
    shutil.copytree(place, start)
    before = tree(start / "work", hidden=True)
    done = run(partial(main, last), place)
    assert done.code == 0 and not temporary(place), f"{done.said} {temporary(place)}"
    return Whole(last, start, before, tree(place / "work", hidden=True), done.seconds, done.writes)


def draw_shot(whole: Whole, rng: random.Random) -> Shot:
    """Return a signal and its moment: any, near the end, or at one of the job's writes."""
    number = rng.choices([*SIGNALS], [*SIGNALS.values()])[0]
    kind, moment = rng.random(), rng.random()
    if kind < 0.3:
        return Shot(number, moment * whole.seconds)
    if kind < 0.4:
        return Shot(number, (1 - 0.3 * moment**2) * whole.seconds)
    return Shot(number, rng.choice((0, 0, 0.002 * moment)), rng.randrange(whole.writes))


def again(words: list[str], place: Path, shot: Shot | None = None) -> End:
    """Run a command as a user does after a kill: with --resume or --overwrite once it asks for them."""
    done = run(partial(main, words), place, shot)
    for option in ("--resume", "--overwrite"):
        if done.code == 2 and f"({option})" in done.said and option not in words:
            words = [*words, option]
            done = run(partial(main, words), place, shot)
    return done


def problem(whole: Whole, place: Path, shots: list[Shot], ends: Counter[str], savings: list[float]) -> str:
    """Return what is wrong after kills and a rerun, nothing where all is right.

    Counts in ``ends`` the signals that ended a run, in ``savings`` the seconds that took.
    """
    work = place / "work"
    shutil.copytree(whole.start, place)
    for turn, shot in enumerate(shots):
        ended = again(whole.words, place, shot) if turn else run(partial(main, whole.words), place, shot)
        if ended.code not in (0, 130, -shot.number) or "Traceback" in ended.said:
            return f"ends with {ended.code}: {ended.said[-600:]}"
        ends[signal.Signals(shot.number).name if ended.code else "too late"] += 1
        if shot.write is None and ended.code == 130:
            savings.append(ended.saving)
        for name, found in tree(work, hidden=False).items():
            if found not in (whole.before.get(name), whole.after.get(name)):
                return f"half-written: {name}"
    done = again(whole.words, place)
    if done.code != 0:
        return f"the rerun ends with {done.code}: {done.said[-600:]}"
    found = tree(work, hidden=True)
    names = sorted(name for name in found.keys() | whole.after if found.get(name) != whole.after.get(name))
    left = [*names, *temporary(place)]
    return f"not as without a kill: {left[:5]}" if left else ""


def campaign(
    first: int, cases: int, seed: int, report: Callable[[str], Any], names: list[str] | None = None
) -> None:
    """Kill jobs in turn; AssertionError with all cases that are not as they should be."""
    names, wrong, savings = names or [*JOBS], [], []
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    with tempfile.TemporaryDirectory() as folder:
        root, wholes = Path(folder), dict[str, Whole]()
        sources = root / "in/work"
        made = run(lambda: inputs(sources), root / "in")
        assert made.code == 0, made.said
        for case in range(first, first + cases):
            rng, name = random.Random(f"{seed} {case}"), names[case % len(names)]
            if name not in wholes:
                wholes[name] = undisturbed(name, sources, root / "whole" / name)
                report(f"{name}: {wholes[name].seconds:.2f} s, {wholes[name].writes} writes")
            shots = [draw_shot(wholes[name], rng) for _ in range(rng.choice((1, 1, 1, 2)))]
            found = problem(wholes[name], root / "case", shots, counts[name], savings)
            shutil.rmtree(root / "case")
            report(f"case {case} of seed {seed}, {name}, {shots}: {found or 'right'}")
            wrong += [case] if found else []
    for name, count in counts.items():
        report(f"{name}: {dict(sorted(count.items()))}")
    report(f"saved within {max(savings, default=0):.2f} s, {len(savings)} times")
    assert max(savings, default=0) <= SAVING_S
    assert not wrong, f"cases {wrong} of {cases}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, default=0, help="case to go on from")
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="*", choices=tuple(JOBS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for module in (*(f"sv4d2_core.commands.{one}" for one in _COMMANDS), *_LATE):
        import_module(module)
    train._SAMPLED_OBJECTS = (0,)
    campaign(args.first, args.cases, args.seed, lambda line: sys.stderr.write(line + "\n"), args.jobs)
