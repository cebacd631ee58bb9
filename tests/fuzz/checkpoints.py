"""Mutated checkpoints: each loads, or is refused in one short message by `describe_checkpoint`, too.

Run by hand for longer: ``python tests/fuzz/checkpoints.py FILE --cases 10000 --seed 1``.
"""

import argparse
import copy
import json
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sv4d2_core.diffusion.checkpoint import describe_checkpoint, load_checkpoint
from sv4d2_core.diffusion.safetensors_stream import CheckpointError

LONGEST_MESSAGE = 500
NUMBERS = (None, True, 0, -1, 1, 2**31, 2**63, 2**64, 1e400, -0.5, float("nan"))
VALUES = (
    *NUMBERS,
    "",
    "x" * 70_000,
    [],
    {},
    [[[[]]]],
    ["a"],
    [1e9, 1],
    [2**63, 2],
    [-3, 4],
    "F32",
    "F8_E4M3",
)
TEXTS = ("9" * 5000, "nan", "inf", "1e300", "-1", "0", "111111111", "7,7,7", "0,0,0")
TYPES = ("F64", "F16", "I8", "U8", "BOOL", "F8_E4M3", "F4", "C64", "f32")


def _field(table: dict, key: str, rng: random.Random) -> None:
    table[key][rng.choice(("dtype", "shape", "data_offsets"))] = copy.deepcopy(rng.choice(VALUES))


def _row(table: dict, key: str, rng: random.Random) -> None:
    table[key] = copy.deepcopy(rng.choice(VALUES))


def _metadata(table: dict, key: str, rng: random.Random) -> None:
    stored = table.setdefault("__metadata__", {"sv4d2.variant": "sv4d2"})
    stored[rng.choice(sorted(stored) or ["sv4d2.size"])] = copy.deepcopy(rng.choice((*VALUES, *TEXTS)))
    if rng.random() < 0.2:
        table["__metadata__"] = copy.deepcopy(rng.choice(VALUES))


def _rename(table: dict, key: str, rng: random.Random) -> None:
    table[key + rng.choice(("x", "." * 60_000, "\0", "é"))] = table.pop(key)


def _renumber(table: dict, key: str, rng: random.Random) -> None:
    table[re.sub(r"\.\d+\.", f".{rng.choice((2**63, 10**9, 99, 3, 0))}.", key, count=1)] = table.pop(key)


def _shape(table: dict, key: str, rng: random.Random) -> None:
    shape = table[key]["shape"]
    rng.shuffle(shape)
    if shape:
        shape[rng.randrange(len(shape))] *= rng.choice((0, 1, 2, -1, 2**40))


def _offsets(table: dict, key: str, rng: random.Random) -> None:
    begin, end = table[key]["data_offsets"]
    table[key]["data_offsets"] = [rng.choice((0, -1, 2**62, begin + 1)), rng.choice((0, 2**63, end - 1))]


def _type(table: dict, key: str, rng: random.Random) -> None:
    table[key]["dtype"] = rng.choice(TYPES)


def _drop(table: dict, key: str, rng: random.Random) -> None:
    del table[key]


CHANGES: tuple[Callable[[dict, str, random.Random], None], ...] = (
    *(_field, _row, _metadata, _rename, _renumber, _shape, _offsets, _type, _drop),
)


def with_header(header: bytes, body: bytes) -> bytes:
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + body


def mutated(whole: bytes, rng: random.Random) -> bytes:
    """Return the bytes of a checkpoint with fields of its header, or bytes, exchanged, cut or added."""
    length = int.from_bytes(whole[:8], "little")
    table, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    kind = rng.random()
    if kind < 0.75:
        for change in rng.choices(CHANGES, k=rng.choice((1, 1, 1, 2, 3))):
            keys = [key for key, row in table.items() if isinstance(row, dict) and "shape" in row]
            if isinstance(table.get("__metadata__", {}), dict):
                change(table, rng.choice(keys), rng)
        return with_header(json.dumps(table).encode(), body)
    if kind < 0.85:
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 3, 20))):
            damaged[rng.randrange(8 + length if rng.random() < 0.9 else len(whole))] = rng.randrange(256)
        return bytes(damaged)
    if kind < 0.9:
        return whole[: rng.randrange(len(whole))]
    if kind < 0.97:
        return with_header(rng.choice((b"{[", b'{"a":')) + b"[" * rng.choice((100, 5000, 200_000)), body)
    return whole + b"\0" * rng.choice((1, 8, 1000))


def outcome(file: Path) -> str:
    """Return what came of a file; AssertionError where that is not as it should be."""
    refusals = []
    for read in (lambda: describe_checkpoint(file).problem, lambda: load_checkpoint(file) and ""):
        try:
            refusals.append(read())
        except CheckpointError as error:
            refusals.append(str(error))
    assert max(map(len, refusals)) <= LONGEST_MESSAGE, refusals
    assert bool(refusals[0]) == bool(refusals[1]), "info and loading disagree"
    return "refused" if refusals[1] else "loaded"


def campaign(source: Path, cases: int, seed: int) -> Counter[str]:
    """Return how many mutated files loaded and were refused; raises with the case's number otherwise."""
    whole, counts = source.read_bytes(), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sv4d2.safetensors"
        for case in range(cases):
            file.write_bytes(mutated(whole, random.Random(f"{seed} {case}")))
            try:
                counts[outcome(file)] += 1
            except Exception as error:
                raise AssertionError(f"case {case} of seed {seed}") from error
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sys.stdout.write(f"{campaign(args.file, args.cases, args.seed)}\n")
