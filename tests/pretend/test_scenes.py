"""Scenes fitted, drawn, exported and scored on a pretend or a real device are the CPU's."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_metrics_networks import SMALL, lpips_weights

from sv4d2_core.__main__ import main
from sv4d2_core.cameras import Cameras
from sv4d2_core.commands import refine
from sv4d2_core.data.views_folder import write_views
from sv4d2_core.metrics import i3d
from sv4d2_core.scene import targets
from sv4d2_core.scene.store import load_scene
from sv4d2_core.stored import write_tensors
from sv4d2_core.world import make_creature, render_views

CAMERAS = Cameras((0, 0, 0), (0, 120, 240))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder of views, normals, a network of LPIPS and one of I3D, and the CPU's scenes."""
    folder = tmp_path_factory.mktemp("files")
    write_views(folder / "views", render_views(make_creature(5), CAMERAS, 3, 32))
    for view in range(3):
        (folder / f"normals/view_{view:02d}").mkdir(parents=True)
        for t in range(3):
            Image.new("RGB", (32, 32), (128, 160, 240)).save(folder / f"normals/view_{view:02d}/{t:05d}.png")
    save_file(lpips_weights()[0], folder / "lpips.safetensors")
    return folder


@pytest.fixture(autouse=True)
def one_ring(monkeypatch):
    monkeypatch.setattr(targets, "RING_ELEVATIONS_DEG", (15.0,))


def run(*words):
    assert main([str(word) for word in words]) == 0


SHARED = ("--input-elevation", 0)
FITS = {
    "planes": "--steps 6 --lpips {files}/lpips.safetensors --normals {files}/normals",
    "canonical": "--field canonical --steps 6",
    "gaussians": "--backend gaussians --steps 6",
    "two stages": "--steps 12 --size 16 --dtype fp32 --checkpoint {model} --sampling-steps 2",
    "gaussians again": "--backend gaussians --steps 12 --size 16 --dtype fp32 --stages 2",
}


@pytest.fixture(scope="module")
def fitted(files, micro_checkpoint):
    """Return a runner of a fit, which is kept."""

    def fit(name, device):
        out = files / f"{name} {device}.safetensors"
        words = FITS[name].format(files=files, model=micro_checkpoint).split()
        if not out.exists():
            run("refine", files / "views", *SHARED, *words, "--device", device, "--out", out)
        return out

    return fit


@pytest.mark.parametrize("name", FITS)
def test_a_fit_is_the_cpus(cuda, alike, fitted, name):
    files = [fitted(name, device) for device in ("cuda", "cpu")]
    there, here = map(load_file, files)
    assert there.keys() == here.keys() and torch.cuda.max_memory_allocated() > 2**20
    if cuda is None:  # the sign of a small gradient, and so Adam's first steps, are a matter of rounding
        alike(*(load_scene(file, "cpu").render(CAMERAS, [0.5], 32).rgb for file in files), 0, 0.05)
        return
    for key, expected in here.items():
        assert torch.allclose(there[key], expected, atol=1e-3, rtol=1e-3), key


def test_an_interrupted_fit_goes_on(cuda, files, fitted, tmp_path, monkeypatch):
    expected, out = fitted("canonical", "cuda"), tmp_path / "scene.safetensors"

    class Interrupting(refine._Watch):
        def __call__(self, step, total, progress):
            super().__call__(step, total, progress)
            if step == 3:
                raise KeyboardInterrupt

    words = ["refine", files / "views", *SHARED, *FITS["canonical"].split(), "--out", out]
    words = [str(word) for word in words]
    with monkeypatch.context() as patch:
        patch.setattr(refine, "_Watch", Interrupting)
        assert main(words) == 130
    assert main([*words, "--resume"]) == 0
    assert cuda is None or out.read_bytes() == expected.read_bytes()


JOBS = {
    "views": "render --size 24 --maps --frames 2",
    "turn": "render --size 16 --turntable --frames 3",
    "glb": "export --format glb --resolution 20 --faces 300",
    "obj": "export --format obj --resolution 20 --faces 300 --times 0.5",
    "splats": "export --format splat-ply",
    "splat-glb": "export --format splat-glb",
    "trajectories": "export --format npz",
    "dataset": "export --format dataset --size 16",
    "colmap": "export --format colmap --size 16",
}


@pytest.mark.parametrize("name", ["planes", "gaussians"])
@pytest.mark.parametrize("job", JOBS)
def test_what_is_drawn_and_exported_is_the_cpus(cuda, alike, fitted, tmp_path, contents, name, job):
    if (name == "planes") == (job in ("splats", "splat-glb", "trajectories")):
        return
    suffix = {"glb": ".glb", "splats": ".ply", "splat-glb": ".glb", "trajectories": ".npz"}.get(job, "")
    made = []
    for device in ("cpu", "cuda"):
        out = tmp_path / device / f"made{suffix}"
        out.parent.mkdir()
        command, *words = JOBS[job].split()
        run(command, fitted(name, "cpu"), *words, "--device", device, "--out", out)
        made.append(contents(out.parent))
    assert made[0].keys() == made[1].keys()
    for place, content in made[0].items():
        if place.endswith(".png"):
            pictures = [Image.open(tmp_path / d / place) for d in ("cpu", "cuda")]
            pictures = [torch.from_numpy(np.asarray(picture).astype(int)) for picture in pictures]
            alike(*pictures, *((1, 10) if pictures[0].max() < 256 else (64, 3000)))
        elif suffix and cuda is None:
            assert len(made[1][place]) == pytest.approx(len(content), rel=0.1)
        elif suffix:
            assert made[1][place] == content
    assert torch.cuda.max_memory_allocated() > 2**14


def test_metrics_with_networks_are_the_cpus(cuda, files, micro_checkpoint, tmp_path, monkeypatch):
    for name, value in zip(("_STEM", "_BLOCKS", "_CLASSES"), SMALL, strict=True):
        monkeypatch.setattr(i3d, name, value)
    generator = torch.Generator().manual_seed(0)
    weights = {k: 0.3 * torch.randn(x, generator=generator) for k, x in i3d._expected_tensors().items()}
    write_tensors(tmp_path / "i3d.safetensors", "sv4d2.i3d", weights, {"fixed_padding": True})
    for seed in (5, 6):
        write_views(tmp_path / f"{seed}", render_views(make_creature(seed), CAMERAS, 10, 32))
    networks = ("--lpips", files / "lpips.safetensors", "--clip", micro_checkpoint)
    reports = []
    for device in ("cpu", "cuda"):
        words = (tmp_path / "5", tmp_path / "6", *networks, "--i3d", tmp_path / "i3d.safetensors")
        run("metrics", *words, "--device", device, "--out", tmp_path / device)
        reports.append(json.loads((tmp_path / device / "report.json").read_text()))
    numbers = [list(leaves(report)) for report in reports]
    assert len(numbers[0]) > 20 and numbers[1] == pytest.approx(
        numbers[0], rel=1e-4 if cuda else 1e-2, abs=1e-6 if cuda else 1e-3, nan_ok=True
    )
    assert torch.cuda.max_memory_allocated() > 2**20


def leaves(value):
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value) if key not in ("options", "made_with", "seconds")]
    if isinstance(value, list):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, (int, float)):
        yield value
