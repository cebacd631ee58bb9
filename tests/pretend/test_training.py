"""Every stage of a training runs on a pretend or a real device, and the CPU does the same."""

from dataclasses import replace

import pytest
import torch
from pretend.cuda import ALL
from random_checkpoint import write_random_checkpoint
from safetensors.torch import load_file

from sv4d2_core.__main__ import main
from sv4d2_core.cameras import Cameras
from sv4d2_core.commands import train as command
from sv4d2_core.data.views_folder import write_views
from sv4d2_core.diffusion.checkpoint import load_checkpoint
from sv4d2_core.training.device_scenes import DeviceLatents, DeviceScenes
from sv4d2_core.training.recipe import RECIPES
from sv4d2_core.training.run import TrainingRun
from sv4d2_core.training.scenes import ProceduralScenes, SceneStore
from sv4d2_core.world import make_creature, render_views


@pytest.fixture(scope="module")
def files(tmp_path_factory, training_config):
    """Return a folder with a checkpoint and two data sets."""
    folder = tmp_path_factory.mktemp("training")
    write_random_checkpoint(folder / "base.safetensors", replace(training_config, size=16), seed=3)
    grid = render_views(make_creature(2), Cameras((0, 0, 12), (0, 120, 240)), 3, 16)
    for name in ("fox", "owl"):
        write_views(folder / "data" / name, grid)
    return folder


OWN = "--base {files}/base.safetensors --data {files}/data"
SHARED = "--motion-steps 1 --learning-rate 0.001 --workers 0"
TRAININGS = {"LoRA": f"{OWN} --lora 2 --dtype bf16 --checkpointing"}
if ALL:
    TRAININGS |= {
        "phases": f"{OWN} --static-steps 1 --dtype fp32",
        "bf16": f"{OWN} --dtype bf16",
        "from scratch": "--scenes 1 --autoencoder-steps 1 --decoder-steps 1 --static-steps 1 --dtype fp32 "
        "--static-batch 1 --motion-batch 1",
    }


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_is_the_cpus(cuda, files, tmp_path, monkeypatch, name):
    monkeypatch.setattr(command, "_SAMPLED_OBJECTS", (0,))
    for device in ("cpu", "cuda"):
        words = f"train {SHARED} {TRAININGS[name]} --device {device}".format(files=files).split()
        # Interrupted after the first step, and gone on with.
        for more in (["--minutes", "1e-9"], []) if name == "phases" else ([],):
            assert main([*words, *more, "--out", str(tmp_path / device)]) == 0
    tolerance = 1e-4 if cuda else 2e-2
    for path in (tmp_path / "cpu").glob("*.safetensors"):
        expected, made = load_file(path), load_file(tmp_path / "cuda" / path.name)
        assert expected.keys() == made.keys()
        for key, value in expected.items():
            # On a real device rounding decides the sign of Adam's first steps.
            torch.testing.assert_close(made[key], value, atol=tolerance, rtol=tolerance)
    assert torch.cuda.max_memory_allocated() > 2**18


def test_a_training_whose_scenes_the_device_draws(cuda, tmp_path, training_config, monkeypatch):
    source, recipe = ProceduralScenes(0, 8, 4, 2), RECIPES["animals-gpu"]
    devices = torch.device("cpu"), torch.device("cuda")
    here, there = (DeviceScenes.made(source, 3, device, mirrored=True) for device in devices)
    assert there.images.is_cuda and torch.equal(there.angles_deg.cpu(), here.angles_deg)
    difference = (there.images.cpu().int() - here.images.int()).abs()
    assert float((difference > 0).float().mean()) <= (0 if cuda else 1e-3) and int(difference.max()) < 64
    draws = DeviceLatents.draw

    def without_a_wait(*arguments):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return draws(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(DeviceLatents, "draw", without_a_wait)
    short = {name: replace(getattr(recipe, name), steps=1) for name in ("autoencoder", "decoder")}
    static, motion = (replace(p, loop=short["decoder"], draw=replace(p.draw, batch=2)) for p in recipe.phases)
    motion = replace(motion, draw=replace(motion.draw, n_frames=2))
    small = replace(recipe, model=training_config, autoencoder_batch=4, phases=(static, motion), **short)
    small = replace(small, dtype="fp32")  # in bf16 the pretend device's gradients of a pair are wrong
    store = SceneStore(tmp_path / "scenes", source, {}, keeps=False)
    run = TrainingRun(tmp_path, small, store, devices[1], on_device=lambda seconds: there)
    assert load_checkpoint(run.run()).config.trained
