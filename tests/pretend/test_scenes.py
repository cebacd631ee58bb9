"""Scenes fitted, drawn, exported and scored on a pretend or a real device are the CPU's."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pretend.cuda import ALL
from safetensors.torch import load_file, save_file
from test_cli_export import ball_scene, block_scene
from test_metrics_networks import SMALL, lpips_weights

from sv4d2_core.__main__ import main
from sv4d2_core.cameras import Cameras
from sv4d2_core.commands import refine
from sv4d2_core.data.views_folder import write_views
from sv4d2_core.metrics import i3d
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


def run(*words):
    assert main([str(word) for word in words]) == 0


SHARED = ("--input-elevation", 0)
NETWORKS = "--checkpoint {model} --lpips {files}/lpips.safetensors --normals {files}/normals"
FITS = {
    "two stages": f"--steps 8 --dtype fp32 --sampling-steps 2 --strength 0.5 {NETWORKS}",
    "gaussians": "--backend gaussians --steps 6 --size 16",
}
if ALL:
    FITS["canonical"] = "--field canonical --steps 6"
    FITS["gaussians again"] = "--backend gaussians --steps 12 --size 16 --stages 2"


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
    expected, out = fitted("gaussians", "cuda"), tmp_path / "scene.safetensors"

    class Interrupting(refine._Watch):
        def __call__(self, step, total, progress):
            super().__call__(step, total, progress)
            if step == 3:
                raise KeyboardInterrupt

    words = ["refine", files / "views", *SHARED, *FITS["gaussians"].split(), "--out", out]
    words = [str(word) for word in words]
    with monkeypatch.context() as patch:
        patch.setattr(refine, "_Watch", Interrupting)
        assert main(words) == 130
    assert main([*words, "--resume"]) == 0
    assert cuda is None or out.read_bytes() == expected.read_bytes()


JOBS = {
    "views": ("block", "", "render --size 24 --maps --frames 2"),
    "turn": ("block", "", "render --size 16 --turntable --frames 3"),
    "glb": ("block", ".glb", "export --format glb --resolution 20 --faces 300 --frames 2"),
    "dataset": ("block", "", "export --format dataset --size 16"),
    "between frames": ("block", "", "render --size 16 --times 0.25"),
    "pictures of Gaussians": ("ball", "", "render --size 16 --frames 2"),
    "Gaussians between frames": ("ball", "", "render --size 16 --times 0.25"),
    "splats": ("ball", ".ply", "export --format splat-ply --times 0.5"),
    "splats as glTF": ("ball", ".glb", "export --format splat-glb --times 0.5"),
    "trajectories": ("ball", ".npz", "export --format npz"),
}
if ALL:
    JOBS["obj"] = ("block", "", "export --format obj --resolution 20 --faces 300 --times 0.5")
    JOBS["colmap"] = ("block", "", "export --format colmap --size 16")


@pytest.mark.parametrize("name", JOBS)
def test_what_is_drawn_and_exported_is_the_cpus(cuda, alike, tmp_path, contents, name):
    scene, suffix, words = JOBS[name]
    path, made = tmp_path / "scene.safetensors", []
    (block_scene if scene == "block" else ball_scene)().save(path)
    command, *options = words.split()
    for device in ("cpu", "cuda"):
        out = tmp_path / device / f"made{suffix}"
        out.parent.mkdir()
        run(command, path, *options, "--device", device, "--out", out)
        made.append(contents(out.parent))
        made[-1].pop("made/render.json", None)  # which holds times
    assert made[0].keys() == made[1].keys() and torch.cuda.max_memory_allocated() > 2**14
    assert cuda is None or made[0] == made[1]
    for place in made[0]:
        if place.endswith(".png"):
            pictures = [Image.open(tmp_path / device / place) for device in ("cuda", "cpu")]
            pictures = [torch.from_numpy(np.asarray(picture).astype(int)) for picture in pictures]
            alike(*pictures, 0, 10 if pictures[1].max() < 256 else 3000)


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
