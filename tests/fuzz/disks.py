"""Full and read-only disks: one readable message, nothing half written, and the whole result with room again.

Run by hand for longer: ``python tests/fuzz/disks.py --cases 200 --seed 1``, with ``--first`` to go on with a
later case. The disks are in memory, in a private mount namespace. Where the system allows none, a limit on
the size of files stands for a full disk. Linux only.
"""

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sv4d2_core.commands import refine
from sv4d2_core.files import remove
from sv4d2_core.scene.store import FitState
from sv4d2_core.training import run as training
from tests.fuzz import pairs
from tests.fuzz.pairs import OVER, SEED, difference, inputs, prepared, run, tree

DISK = Path("disk")
ROOM = "size=256m,nr_inodes=100000"
# A job, and what was there before. The quick ones go first.
JOBS: tuple[tuple[str, ...], ...] = (
    (pairs.CONVERT,),
    (pairs.SET,),
    (pairs.SPLATS,),
    (pairs.GIF,),
    (pairs.GIF.replace("a.gif", "a.mp4"),),
    (pairs.METRICS,),
    (pairs.CURATE,),
    (pairs.RENDER + " --azimuths 0,90 --maps",),
    (pairs.VIEWS,),
    (pairs.FIT,),
    (pairs.SET.replace("dataset", "colmap"),),
    (pairs.GIF.replace("/a.gif", ""),),
    ("export ball.safetensors --format splat --times 0 --out out/a.splat",),
    ("export ball.safetensors --format npz --out out/a.npz",),
    (pairs.GLB,),
    (pairs.OBJ,),
    (pairs.CONVERT + " --dtype bf16" + OVER, pairs.CONVERT),
    (pairs.SPLATS + " --sh-degree 0" + OVER, pairs.SPLATS),
    (pairs.METRICS + " --size 16" + OVER, pairs.METRICS),
    (pairs.BATCH,),
    (pairs.VIEWS + SEED + OVER, pairs.VIEWS),
    (pairs.FIT + SEED + OVER, pairs.FIT),
    (pairs.TRAIN,),
    (pairs.TRAIN + " --lora 2",),
    (pairs.SCENES,),
    (pairs.DEMO,),
)


class Whole(NamedTuple):
    """What a job leaves on a disk with room: what was there before, and its result; bytes; its seconds."""

    earlier: dict[str, object]
    result: dict[str, object]
    earlier_bytes: int
    used_bytes: int
    cpu_s: float


def mount(options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(DISK)], check=True)


def remount(options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(DISK)], check=True)


def on_disk(line: str) -> str:
    return line.replace(" out", f" {DISK}/out")


def used() -> int:
    disk = os.statvfs(DISK)
    return (disk.f_blocks - disk.f_bfree) * disk.f_bsize


def make(lines: tuple[str, ...]) -> Whole:
    """Run a job on a disk with room."""
    begun = used()
    for line in lines[1:]:
        assert not run(on_disk(line))[0].code
    earlier, earlier_bytes = tree(DISK), used() - begun
    (end,) = run(on_disk(lines[0]))
    assert not end.code, end
    return Whole(earlier, tree(DISK), earlier_bytes, used() - begun, end.cpu_s)


def half_written(found: dict[str, object], whole: Whole) -> list[str]:
    """Return the names of what is neither of before nor of the result, nor kept to go on from."""
    wrong = []
    for name, content in found.items():
        path = Path(name)
        if path.suffix == ".fit":
            FitState.load(DISK / path)
        elif not (path.suffix == ".state" or ".windows" in path.parts or path.name == "batch.json"):
            wrong += [name] if content not in (whole.earlier.get(name, 0), whole.result.get(name, 0)) else []
    return wrong + [name for name in whole.earlier if name not in found and name not in whole.result]


def full(
    lines: tuple[str, ...], whole: Whole, before: Callable[[], object], room: Callable[[], object]
) -> str:
    """Run a job on a disk that is too small, then with room; return what is wrong, or how it ended."""
    line = on_disk(lines[0])
    (end,) = run(line, before=before)
    found = tree(DISK)
    if wrong := end.problem() or ", ".join(half_written(found, whole)):
        return f"{wrong}; {end.said[:500]}"
    if end.code == 0:
        left_out = difference(found, whole.result)
        assert all(name not in found for name in left_out), (left_out, end)
        return (
            ("fits." if not left_out else "goes on.")
            if not left_out or "not kept" in end.said
            else str(left_out)
        )
    if end.code != 2 or "Free some" not in end.said or str(DISK) not in end.said:
        return f"{end}"
    room()
    states = list(DISK.rglob("*.fit")) if line.startswith("refine") else []
    (again,) = run(line + " --resume" * bool(states))
    left = difference(tree(DISK), whole.result)
    return f"with room again: {again}, {left[:5]}" if again.code or left else "full."


def read_only(lines: tuple[str, ...], whole: Whole) -> str:
    """Run a job on a disk that is read-only; return what is wrong, or how it ended."""
    before = tree(DISK)
    (end,) = run(on_disk(lines[0]))
    if wrong := end.problem() or ", ".join(difference(tree(DISK), before)):
        return wrong
    if end.code != 2 or "the system refuses" not in end.said or str(DISK) not in end.said:
        return f"{end}"
    late = end.cpu_s > pairs.REFUSED_SHARE * whole.cpu_s + pairs.REFUSED_S
    return f"refused after {end.cpu_s:.1f} s of {whole.cpu_s:.1f}" if late else "read-only."


def mounted_case(lines: tuple[str, ...], whole: Whole, rng: random.Random) -> tuple[str, str]:
    """Run a job on a disk of its own; return what disk, and how it ended."""
    kind, page = rng.choice(("size", "size", "size", "names", "read-only")), os.sysconf("SC_PAGESIZE")
    mount(ROOM)
    try:
        for line in lines[1:]:
            assert not run(on_disk(line))[0].code
        if kind == "read-only":
            remount("ro")
            return kind, read_only(lines, whole)
        more = rng.random() * (1.1 * whole.used_bytes - (whole.earlier_bytes if lines[1:] else 0))
        disk = f"size={whole.earlier_bytes + page + int(max(0, more)) // page * page}"
        if kind == "names":
            there = len([*DISK.rglob("*")])
            disk = f"nr_inodes={there + 2 + rng.randrange(len(whole.result) + 4)}"
        remount(disk)
        return disk, full(lines, whole, int, partial(remount, ROOM))
    finally:
        subprocess.run(["umount", str(DISK)], check=True)


def limited_case(lines: tuple[str, ...], whole: Whole, rng: random.Random) -> tuple[str, str]:
    """Run a job whose files may not become larger than a limit; return which, and how it ended."""
    sizes = [len(content) for content in whole.result.values() if isinstance(content, bytes)]
    limit = rng.randrange(max(sizes))
    for line in lines[1:]:
        assert not run(on_disk(line))[0].code
    set_limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    ended = full(lines, whole, set_limit, int)
    remove(*DISK.iterdir())
    return f"limit={limit}", ended


def campaign(
    cases: int, seed: int, first: int = 0, mounts: bool = False, report: Callable[[str], object] = str
) -> Counter[str]:
    """Return how many jobs ended in which way; AssertionError with all that should not have."""
    counts, wrong, wholes, home = Counter[str](), [], dict[tuple[str, ...], Whole](), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            inputs(Path())
            DISK.mkdir()
            for case in range(first, cases):
                rng, lines = random.Random(f"{seed} {case}"), JOBS[case % len(JOBS)]
                if lines not in wholes:
                    if mounts:
                        mount(ROOM)
                    wholes[lines] = make(lines)
                    if mounts:
                        subprocess.run(["umount", str(DISK)], check=True)
                    remove(*DISK.iterdir())
                disk, ended = (mounted_case if mounts else limited_case)(lines, wholes[lines], rng)
                counts[ended if ended.endswith(".") else "wrong"] += 1
                report(line := f"case {case}, {disk}, {' after '.join(lines)}: {ended}")
                wrong += [] if ended.endswith(".") else [line]
        finally:
            os.chdir(home)
    assert not wrong, "\n".join([f"{len(wrong)} of {cases - first} of seed {seed}", *wrong])
    return counts


def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        line = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", folder]
        return subprocess.run(line, capture_output=True).returncode == 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--mounts", action="store_true", help="in a mount namespace of its own already")
    args = parser.parse_args()
    if not args.mounts and can_mount():
        os.execvp("unshare", ["unshare", "-rm", sys.executable, *sys.argv, "--mounts"])
    if not args.mounts:
        sys.stdout.write(
            "No disks can be mounted here: none is read-only, full is a limit of files' sizes.\n"
        )
    prepared()
    refine._SAVE_EVERY_S = training._SAVE_EVERY_S = training._SAVE_SHARE = 0.0
    counted = campaign(args.cases, args.seed, args.first, args.mounts, pairs.say)
    sys.stdout.write(f"{dict(counted)}\n")
