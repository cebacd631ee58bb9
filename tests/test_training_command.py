"""The command `train`: own renders, given checkpoints, killed and several processes."""

import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from random_checkpoint import write_random_checkpoint
from safetensors.torch import load_file

from sv4d2_core.__main__ import build_parser, main
from sv4d2_core.cameras import Cameras
from sv4d2_core.commands import train as command
from sv4d2_core.data.views_folder import write_views
from sv4d2_core.diffusion.checkpoint import load_checkpoint
from sv4d2_core.diffusion.layout import read_config
from sv4d2_core.diffusion.safetensors_stream import read_header
from sv4d2_core.stored import read_tensors
from sv4d2_core.training.loop import Progress
from sv4d2_core.training.recipe import RECIPES
from sv4d2_core.world import make_creature, render_views

SECONDS = 300


@pytest.fixture(scope="module")
def base(tmp_path_factory, training_config) -> Path:
    """Return a checkpoint to be fine-tuned."""
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    return write_random_checkpoint(path, replace(training_config, size=16), seed=3)


@pytest.fixture(scope="module")
def renders(tmp_path_factory) -> Path:
    """Return a folder of two D-NeRF style data sets."""
    root = tmp_path_factory.mktemp("renders")
    grid = render_views(make_creature(2), Cameras((0, 0, 12), (0, 120, 240)), 3, 16)
    for name in ("fox", "owl"):
        write_views(root / name, grid)
        for file in root.glob(f"{name}/*.*"):
            if file.name != "transforms.json":
                file.unlink()
    return root


def cli(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(command, "_SAMPLED_OBJECTS", (0,))
    return main(["train", "--device", "cpu", "--workers", "0", *map(str, arguments)])


def test_fine_tuning_on_own_renders(tmp_path, base, renders, monkeypatch):
    header = read_header(base)
    told = replace(read_config(header), knows="boxes of the procedural world")
    base = write_random_checkpoint(tmp_path.with_suffix(".safetensors"), told, seed=3)
    options = ("--base", base, "--data", renders, "--motion-steps", 2, "--learning-rate", 0.01)
    assert cli(monkeypatch, "--out", tmp_path, *options, "--view-mixing", "view", "--checkpointing") == 0
    tuned, before = load_checkpoint(tmp_path / "motion.safetensors"), load_checkpoint(base)
    assert tuned.config.trained and tuned.config.unet.view_mixing == "view"
    assert before.config.unet.view_mixing == "joint_3d" and before.config.knows and not tuned.config.knows
    weights = before.unet.state_dict()
    assert sum(not torch.equal(p, weights[name]) for name, p in tuned.unet.state_dict().items()) > 100
    for part in ("frame_encoder", "decoder", "clip"):
        a, b = (getattr(model, part).state_dict() for model in (tuned, before))
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert {path.name for path in tmp_path.glob("*.png")} == {"motion_loss.png", "motion_000002.png"}
    assert not (tmp_path / "autoencoder.safetensors").exists()
    assert cli(monkeypatch, "--out", tmp_path, *options) == 2  # another view mixing


def test_fine_tuning_a_lora(tmp_path, base, renders, monkeypatch, contents):
    options = ("--base", base, "--data", renders, "--motion-steps", 3, "--lora", 2, "--dtype", "fp32")
    assert cli(monkeypatch, "--out", tmp_path / "pieces", *options, "--minutes", 1e-9) == 0
    assert (tmp_path / "pieces/motion.state").exists()
    part = next((tmp_path / "pieces/encoded").iterdir()) / ".00000000.safetensors.0123abcd.part"
    part.touch()  # what a killed one leaves half written
    for name in ("pieces", "whole"):
        assert cli(monkeypatch, "--out", tmp_path / name, *options) == 0
    pieces, whole = (contents(tmp_path / name, "*.safetensors") for name in ("pieces", "whole"))
    assert pieces == whole and not part.exists()
    state = load_file(tmp_path / "whole/motion.lora.safetensors")
    assert any(value.any() for key, value in state.items() if key.endswith("lora_up.weight"))
    merged = load_checkpoint(base).unet.state_dict()
    for key in (key for key in state if key.endswith(".lora_up.weight")):
        name = key.removeprefix("diffusion_model.").removesuffix(".lora_up.weight")
        merged[f"{name}.weight"] += state[key] @ state[key.replace("lora_up", "lora_down")]
    tuned = load_checkpoint(tmp_path / "whole/motion.safetensors").unet.state_dict()
    assert merged.keys() == tuned.keys()
    assert all(torch.equal(merged[name], tuned[name]) for name in merged)


def test_an_interrupted_training_of_generated_scenes_goes_on(tmp_path, base, monkeypatch, capsys):
    options = ("--base", base, "--motion-steps", 2, "--scenes", 2, "--dtype", "fp32")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command._Watch, "__call__", interrupt)
        assert cli(monkeypatch, "--out", tmp_path, *options) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert len(read_tensors(tmp_path / "motion.state", "sv4d2.training")[0]["losses"]) == 1
    assert cli(monkeypatch, "--out", tmp_path, *options) == 0
    assert load_checkpoint(tmp_path / "motion.safetensors").config.trained


def test_samples_take_at_most_a_tenth_of_the_time(tmp_path, monkeypatch):
    start = time.monotonic()
    now, drawn = [start], []

    def sheet(*_: object, **__: object) -> Image.Image:
        now[0] += 50  # seconds
        drawn.append(now[0])
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(command, "sample_sheet", sheet)
    monkeypatch.setattr(command.time, "monotonic", lambda: now[0])
    watch = command._Watch(tmp_path, "animals", 60.0, lambda: None)
    model, average = SimpleNamespace(), lambda: nullcontext()
    for step in range(1, 201):
        now[0] += 10
        watch("motion", Progress(step, 1000, [1.0] * step, lambda _: None, average), model)  # pyright: ignore
    watch.close()
    assert len(drawn) > 3 and 50 * (len(drawn) - 1) <= (now[0] - start) / 10


def test_a_recipe_holds_but_for_what_is_given():
    words = ["train", "--out", "x", "--recipe", "animals", "--scenes", "5", "--motion-steps", "7"]
    recipe, animals = command.recipe_of(build_parser().parse_args(words)), RECIPES["animals"]
    static, motion = animals.phases
    motion = replace(motion, loop=replace(motion.loop, steps=7))
    assert recipe == replace(animals, n_scenes=5, phases=(static, motion)) and recipe.n_drawn == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lora", 2), "Expected --lora together with --base"),
        (("--static-steps", 0, "--motion-steps", 0), "Expected steps to train"),
        (("--finish-in", 9, "--static-steps", 5), "--static-steps would do nothing with --finish-in"),
        (("--motion-steps", 0, "--motion-batch", 8), "--motion-batch would do nothing with --motion-steps 0"),
        (("--static-steps", 0, "--static-batch", 8), "--static-batch would do nothing with --static-steps 0"),
        (("--mask-all", 1.5), "--mask-all: expected a number from 0 to 1, got 1.5"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path, capsys, monkeypatch, arguments, message):
    assert cli(monkeypatch, "--out", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_poisoned_renders_stop_before_training(tmp_path, base, renders, capsys, monkeypatch):
    root = Path(shutil.copytree(renders, tmp_path / "renders"))
    next((root / "owl/frames").rglob("*.png")).unlink()
    (root / "fox/transforms.json").write_text("{}")
    assert cli(monkeypatch, "--out", tmp_path / "out", "--base", base, "--data", root) == 2
    said = capsys.readouterr().err
    assert "  fox: " in said and "  owl: " in said and "2 of 2 cannot be used" in said
    assert not (tmp_path / "out").exists()


def program(*arguments: object) -> subprocess.Popen[str]:
    words = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


WITH_A_WORKER = """
import sys, time
from pathlib import Path
from sv4d2_core.training.scenes import ProceduralScenes, SceneStore

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with SceneStore(folder, ProceduralScenes(0, 8, 4, 2), {}).made_ahead(1_000_000, 1) as (worker,):
        while not list(folder.glob("*.safetensors")):
            time.sleep(0.05)
        print(worker.pid, flush=True)
        worker.join()
"""
DRAWING_ON_A_DEVICE = """
import multiprocessing, time
import torch
from sv4d2_core.training import device_scenes
from sv4d2_core.training.scenes import ProceduralScenes

def draw(*_):
    print(multiprocessing.active_children()[0].pid, flush=True)
    time.sleep(1000)

if __name__ == "__main__":
    device_scenes.draw = draw
    source = ProceduralScenes(0, 8, 4, 2)
    device_scenes.DeviceScenes.made(source, 1000, torch.device("cpu"), n_workers=1)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the processes of Linux from /proc")
@pytest.mark.parametrize("script", [WITH_A_WORKER, DRAWING_ON_A_DEVICE])
def test_a_killed_training_leaves_no_workers(tmp_path, script):
    (tmp_path / "killed.py").write_text(script)
    process = program(tmp_path / "killed.py", tmp_path / "ahead")
    worker = int(process.stdout.readline())
    assert alive(worker)
    process.kill()
    process.wait()
    end = time.monotonic() + SECONDS
    while alive(worker):
        assert time.monotonic() < end
        time.sleep(0.05)


OWN_CLOCKS = """
import math, sys
from sv4d2_core.__main__ import main
from sv4d2_core.training import run
from sv4d2_core.training.loop import is_first_process

class Run(run.TrainingRun):
    def _after_step(self, *args):
        if not is_first_process():
            self._began = math.inf  # by this clock it is never late
        super()._after_step(*args)

if __name__ == "__main__":
    from sv4d2_core.commands import train
    train.TrainingRun = Run
    sys.exit(main(sys.argv[1:]))
"""


def test_two_processes_do_what_one_does(tmp_path, base, renders, monkeypatch, close):
    options = ["--base", base, "--data", renders, "--motion-steps", 2, "--motion-batch", 4, "--dtype", "fp32"]
    options += ["--device", "cpu", "--workers", 0]
    (tmp_path / "clocks.py").write_text(OWN_CLOCKS)

    def run_two(*arguments: object) -> None:
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
        process = program(*launcher, *arguments, "train", "--out", tmp_path / "two", *options)
        try:
            said = process.communicate(timeout=SECONDS)[0]
        finally:
            process.terminate()
        assert process.returncode == 0, said[-3000:]

    options += ["--minutes", 1e-9]
    run_two(tmp_path / "clocks.py")
    assert cli(monkeypatch, "--out", tmp_path / "one", *options) == 0
    states = [tmp_path / name / "motion.state" for name in ("two", "one")]
    two, one = (read_tensors(state, "sv4d2.training")[0] for state in states)
    assert two.keys() == one.keys() and len(two["losses"]) == 1
    close(two["losses"], one["losses"], 1e-5)
    # After one step the first moment is a tenth of the gradient.
    gradients = [key for key in one if key.startswith("exp_avg.")]
    largest = max(float(one[key].abs().max()) for key in gradients)
    for key in gradients:
        close(two[key], one[key], 1e-4 * largest)
    del options[-2:]
    run_two("-m", "sv4d2_core")
    assert load_checkpoint(tmp_path / "two/motion.safetensors").config.trained
    made = {"motion.safetensors", "motion_000002.png", "motion_loss.png"}
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"encoded", "recipe.json", "scenes", *made}
