"""Mutated files of every kind but checkpoints: each is read, or refused in one short message.

Run by hand for longer: ``python tests/fuzz/files.py --cases 3000 --seed 1``.
"""

import argparse
import copy
import io
import json
import random
import shutil
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import av
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from sv4d2_core.cameras import Cameras
from sv4d2_core.commands import Parser, batch, views
from sv4d2_core.data.reader import read_any_views, read_dataset
from sv4d2_core.data.transforms import read_cameras
from sv4d2_core.data.views_folder import (
    entries_of,
    missing_files,
    read_crop,
    read_run,
    read_views,
    write_views,
)
from sv4d2_core.metrics.image import LPIPS
from sv4d2_core.scene.store import FitState, load_scene
from sv4d2_core.stored import json_object
from sv4d2_core.video.crop import CropPath
from sv4d2_core.video.read import load_clip
from sv4d2_core.views import ViewGrid

ROOT = Path(__file__).resolve().parents[2]
LONGEST_MESSAGE, LARGEST_BYTES, LONGEST_S = 500, 2e9, 10
VALUES = (
    *(None, True, 0, -1, 1, 2, 2**31, 2**63, 10**400, 1e308, -0.5, float("nan"), float("inf")),
    *("", "x" * 60_000, "../x", "a\0b", "\ud800", [], {}, [[[[]]]], ["a"], [1e9, 1], [0] * 5000, {"a": 1}),
)
CROP = CropPath(((8.0, 8.0), (8.5, 8.0)), 16.0, 16, 16, 16).to_json()


def changed_json(value: object, rng: random.Random) -> object:
    """Return JSON values in which one somewhere is another, missing, nested or repeated."""
    value, place, key = copy.deepcopy(value), None, None
    inner = value
    while isinstance(inner, (dict, list)) and inner and (place is None or rng.random() < 0.75):
        place, key = inner, rng.choice([*inner]) if isinstance(inner, dict) else rng.randrange(len(inner))
        inner = place[key]
    if place is None:
        return copy.deepcopy(rng.choice(VALUES))
    change = rng.randrange(8)
    if change == 0:
        del place[key]
    elif change == 1:
        place[key] = [inner]
    elif change == 2 and isinstance(place, list):
        place.append(inner)
    elif change == 3 and isinstance(inner, (int, float)):
        place[key] = max(min(inner, 1e300), -1e300) * rng.choice((-1, 0, 1.5, 1e6, 1e13))
    else:
        place[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def changed_bytes(whole: bytes, rng: random.Random) -> bytes:
    """Return bytes of which some are exchanged, cut, repeated or appended."""
    kind, damaged = rng.random(), bytearray(whole)
    if kind < 0.6 and whole:
        reach = len(whole) if rng.random() < 0.5 else min(len(whole), 300)
        for _ in range(rng.choice((1, 3, 30))):
            damaged[rng.randrange(reach)] = rng.choice((0, 255, rng.randrange(256)))
        return bytes(damaged)
    if kind < 0.75:
        return whole[: rng.randrange(len(whole) + 1)]
    if kind < 0.85:
        place = rng.randrange(len(whole) + 1)
        return whole[:place] + whole[place - rng.randrange(place + 1) :]
    return whole + rng.choice((b"\0", b"[" * 100_000, rng.randbytes(1000)))


def changed_text(whole: bytes, rng: random.Random) -> bytes:
    """Return a JSON text with changed values, rarely with changed bytes."""
    if rng.random() < 0.15:
        return changed_bytes(whole, rng)
    value = json.loads(whole)
    for _ in range(rng.choice((1, 1, 1, 3))):
        value = changed_json(value, rng)
    return json.dumps(value).encode()


def changed_tensors(whole: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file with another header, metadata or data, mostly without its checksum."""
    length = int.from_bytes(whole[:8], "little")
    table, body = json.loads(whole[8 : 8 + length]), bytearray(whole[8 + length :])
    kind, metadata = rng.random(), table.get("__metadata__", {})
    if kind < 0.15:
        return changed_bytes(whole, rng)
    for key, text in metadata.items():
        header = json.loads(text)
        if rng.random() < 0.9:
            header.pop("checksum", None)
        header = changed_json(header, rng) if kind < 0.6 else header
        metadata[key] = json.dumps(header)
    if kind >= 0.6:
        rows = [row for name, row in table.items() if name != "__metadata__"]
        row = rng.choice(rows)
        start, end = row["data_offsets"]
        if kind < 0.75 and end - start >= 4:
            body[start : start + 4] = np.float32(rng.choice((np.nan, np.inf, 1e38, -1e30))).tobytes()
        elif kind < 0.9:
            other = rng.choice(rows)
            row["shape"], row["dtype"], row["data_offsets"] = (
                other["shape"],
                other["dtype"],
                other["data_offsets"],
            )
        else:
            row[rng.choice(("shape", "dtype"))] = rng.choice(([], [end - start], "I8", "F64", "BOOL", "F16"))
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + bytes(body)


def changed_list(whole: bytes, rng: random.Random) -> bytes:
    """Return a list of clips with other words in it."""
    words = (
        "--frames",
        "-1",
        "1e400",
        "'",
        '"',
        "\0",
        "x" * 60_000,
        "--fps nan",
        "[",
        "*",
        "--out a",
        "..",
        "é",
    )
    lines = whole.decode().splitlines() + [" ".join(rng.choices(words, k=rng.randint(1, 5)))]
    return changed_bytes(whole, rng) if rng.random() < 0.3 else "\n".join(lines).encode()


def _read_list(file: Path) -> None:
    parser = Parser()
    views.add_arguments(parser)
    common = vars(parser.parse_args(["clip.mp4", "--checkpoint", "tiny", "--out", "out"]))
    for clip in batch._listed(file, common):
        load_clip(clip.input)


def _read_scene(file: Path) -> None:
    scene = load_scene(file)
    rendering = scene.render(scene.cameras, [0.5], 8, views=[1])
    assert bool(rendering.rgb.isfinite().all())


def _score(file: Path) -> None:
    images = torch.rand(2, 64, 64, 3)
    LPIPS(file)(images[:1], images[1:])


def _read_crop(file: Path) -> None:
    crop = CropPath.from_json(json_object(file.read_bytes(), "the crop"))
    crop.source_from_crop(0, (0, 0))


def _read_views(file: Path) -> None:
    read_any_views(file.parent)
    read_crop(file.parent)


def _read_run(file: Path) -> None:
    entries_of(read_run(file.parent))
    missing_files(file.parent)


def _picture(file: Path) -> None:
    read_views(file.parents[2])


Kind = tuple[str, Callable[[Path], object], Callable[[bytes, random.Random], bytes]]


def make_sources(folder: Path) -> list[Kind]:
    """Write one whole file of each kind; return where it is, what reads it and what changes it."""
    grid = ViewGrid(torch.rand(2, 3, 16, 16, 3), Cameras.ring(2), torch.ones(2, 3, 16, 16))
    grid = ViewGrid(grid.images, grid.cameras, grid.masks, latents=torch.rand(2, 2, 4, 2, 2))
    write_views(folder / "views", grid, crop=CROP, save_latents=True)
    shutil.copytree(folder / "views", folder / "data")
    (folder / "data/run.json").unlink()
    (folder / "crop.json").write_text(json.dumps(CROP))
    (folder / "clips.txt").write_text("a.mp4 --frames 3\n'b c.mp4' --every 2\n")
    stored = ROOT / "tests/data/version_0_1"
    for name in ("dynerf", "gaussians"):
        scene = load_scene(stored / f"all_settings/{name}.safetensors")
        scene.save(folder / f"{name}.safetensors")
    FitState(3, "ab", {"scene.x": torch.rand(4)}, grid.cameras, 9).save(folder / "fit.state")
    sizes = [(1, 0, 3, 8, 11), (2, 3, 8, 8, 5), (3, 6, 8, 8, 3), (4, 8, 8, 8, 3), (5, 10, 8, 8, 3)]
    weights = {f"lin{i}.model.1.weight": torch.rand(1, 8, 1, 1) for i in range(5)}
    for stage, index, n_in, n_out, side in sizes:
        weights[f"net.slice{stage}.{index}.weight"] = torch.rand(n_out, n_in, side, side)
        weights[f"net.slice{stage}.{index}.bias"] = torch.rand(n_out)
    save_file(weights, folder / "lpips.safetensors")
    kinds: list[Kind] = [
        *((f"views/{name}.json", _read_views, changed_text) for name in ("run", "cameras")),
        ("views/run.json", _read_run, changed_text),
        ("views/latents/latents.safetensors", lambda file: read_views(file.parents[1]), changed_tensors),
        ("views/frames/view_01/00001.png", _picture, changed_bytes),
        ("data/transforms.json", read_dataset, changed_text),
        ("data/transforms.json", read_cameras, changed_text),
        ("data/cameras.json", read_cameras, changed_text),
        ("crop.json", _read_crop, changed_text),
        ("clips.txt", _read_list, changed_list),
        *((f"{name}.safetensors", _read_scene, changed_tensors) for name in ("dynerf", "gaussians")),
        ("fit.state", FitState.load, changed_tensors),
        ("lpips.safetensors", _score, changed_tensors),
    ]
    frames = [Image.fromarray((image * 255).byte().numpy()) for image in grid.images[:, 0].repeat(3, 1, 1, 1)]
    for kind in "png gif webp jpg tif bmp tga ppm qoi jp2 avif pcx sgi dds".split():
        content = io.BytesIO()
        several = {"save_all": True, "append_images": frames[1:]} if kind in ("png", "gif", "webp") else {}
        if Image.registered_extensions().get(f".{kind}") in Image.SAVE:
            frames[0].save(content, Image.registered_extensions()[f".{kind}"], **several)
            (folder / f"a.{kind}").write_bytes(content.getvalue())
            kinds.append((f"a.{kind}", load_clip, changed_bytes))
    for name, codec in (
        ("a.mp4", "libx264"),
        ("a.mkv", "mpeg4"),
        ("a.webm", "libvpx-vp9"),
        ("a.avi", "mjpeg"),
    ):
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=Fraction(8))
            stream.width, stream.height = 32, 32
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for t in range(6):
                pixels = np.full((32, 32, 3), 40 * t, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
            container.mux(stream.encode())
        kinds.append((name, load_clip, changed_bytes))
    return kinds


def _memory(name: str) -> int:
    """Return a line of this process's status, bytes; 0 where the system has none."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)


def outcome(read: Callable[[Path], object], file: Path) -> str:
    """Return what came of a file; AssertionError where that is not as it should be."""
    resets = Path("/proc/self/clear_refs")
    if resets.exists():
        resets.write_text("5")  # the peak begins anew
    began, before, result = time.monotonic(), _memory("VmRSS"), "read"
    try:
        read(file)
    except (ValueError, OSError) as error:
        assert len(str(error)) <= LONGEST_MESSAGE, f"a message of {len(str(error))}: {str(error)[:300]}"
        result = "refused"
    took, peak = time.monotonic() - began, _memory("VmHWM") - before
    assert took <= LONGEST_S, f"{took:.1f} s"
    assert peak <= LARGEST_BYTES, f"{peak / 1e9:.2f} GB"
    return result


def campaign(cases: int, seed: int, report: Callable[[str], object] = lambda _: None) -> Counter[str]:
    """Return how many mutated files were read and refused; AssertionError with the failures' numbers."""
    counts, failures = Counter[str](), []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        kinds = make_sources(folder)
        for case in range(cases):
            rng = random.Random(f"{seed} {case}")
            name, read, change = kinds[case % len(kinds)]
            file = folder / name
            whole = file.read_bytes()
            file.write_bytes(change(whole, rng))
            try:
                counts[outcome(read, file)] += 1
            except Exception as error:
                failures.append(
                    f"case {case} of seed {seed}, {name}: {type(error).__name__}: {str(error)[:300]}"
                )
                report(failures[-1])
            file.write_bytes(whole)
    assert not failures, "\n".join(failures[:10])
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args: Namespace = parser.parse_args()
    torch.set_num_threads(1)
    sys.stdout.write(f"{campaign(args.cases, args.seed, lambda line: sys.stdout.write(line + chr(10)))}\n")
