"""The command `train`: own renders, given checkpoints, killed and several processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sv4d2_core.__main__ import main
from sv4d2_core.cameras import Cameras
from sv4d2_core.commands import train as command
from sv4d2_core.data.views_folder import write_views
from sv4d2_core.diffusion.checkpoint import load_checkpoint, write_random_checkpoint
from sv4d2_core.files import read_tensors
from sv4d2_core.training.loop import Progress
from sv4d2_core.world import make_creature, render_views

REPOSITORY = Path(__file__).parent.parent
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


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def cli(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(command, "_SAMPLED_OBJECTS", (0,))
    return main(["train", "--device", "cpu", "--workers", "0", *map(str, arguments)])


def test_fine_tuning_on_own_renders(tmp_path, base, renders, monkeypatch):
    options = ("--base", base, "--data", renders, "--motion-steps", 2, "--learning-rate", 0.01)
    assert cli(monkeypatch, "--out", tmp_path, *options, "--view-mixing", "view", "--checkpointing") == 0
    tuned, before = load_checkpoint(tmp_path / "motion.safetensors"), load_checkpoint(base)
    assert tuned.config.trained and tuned.config.unet.view_mixing == "view"
    assert before.config.unet.view_mixing == "joint_3d"
    weights = before.unet.state_dict()
    assert sum(not torch.equal(p, weights[name]) for name, p in tuned.unet.state_dict().items()) > 100
    for part in ("frame_encoder", "decoder", "clip"):
        a, b = (getattr(model, part).state_dict() for model in (tuned, before))
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert {path.name for path in tmp_path.glob("*.png")} == {"motion_loss.png", "motion_000002.png"}
    assert not (tmp_path / "autoencoder.safetensors").exists()
    assert cli(monkeypatch, "--out", tmp_path, *options) == 2  # another view mixing


def test_fine_tuning_a_lora(tmp_path, base, renders, monkeypatch):
    options = ("--base", base, "--data", renders, "--motion-steps", 3, "--lora", 2, "--dtype", "fp32")
    assert cli(monkeypatch, "--out", tmp_path / "pieces", *options, "--minutes", 1e-9) == 0
    assert (tmp_path / "pieces/motion.state").exists()
    for name in ("pieces", "whole"):
        assert cli(monkeypatch, "--out", tmp_path / name, *options) == 0
    assert contents(tmp_path / "pieces") == contents(tmp_path / "whole")
    state = load_file(tmp_path / "whole/motion.lora.safetensors")
    assert any(value.any() for key, value in state.items() if key.endswith("lora_up.weight"))
    merged = load_checkpoint(base).unet.state_dict()
    for key in (key for key in state if key.endswith(".lora_up.weight")):
        name = key.removeprefix("diffusion_model.").removesuffix(".lora_up.weight")
        merged[f"{name}.weight"] += state[key] @ state[key.replace("lora_up", "lora_down")]
    tuned = load_checkpoint(tmp_path / "whole/motion.safetensors").unet.state_dict()
    assert merged.keys() == tuned.keys()
    assert all(torch.equal(merged[name], tuned[name]) for name in merged)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lora", 2), "Expected --lora together with --base"),
        (("--static-steps", 0, "--motion-steps", 0), "Expected steps to train"),
        (("--mask-all", 1.5), "Expected mask_all <= 1; got 1.5"),
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


def program(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    return subprocess.Popen(
        [sys.executable, *launcher, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def waited_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            pytest.fail(f"The program ended or hung:\n{process.communicate()[0][-3000:]}")
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


KILLED = """
import sys
from pathlib import Path
from sv4d2_core.__main__ import main
from sv4d2_core.training import run
from sv4d2_core.training.scenes import ProceduralScenes, SceneStore

if __name__ == "__main__":
    run._SAVE_EVERY_S = run._SAVE_SHARE = 0.0
    store = SceneStore(Path(sys.argv[1]), ProceduralScenes(0, 8, 4, 2), {})
    with store.made_ahead(1_000_000, 1):
        sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the processes of Linux from /proc")
def test_a_killed_training_loses_an_interval_at_most_and_leaves_no_workers(tmp_path, base, monkeypatch):
    options = ["--base", base, "--motion-steps", 40, "--scenes", 1000, "--dtype", "fp32", "--device", "cpu"]
    (tmp_path / "killed.py").write_text(KILLED)
    state = tmp_path / "out/motion.state"
    command_line = (tmp_path / "ahead", "train", "--out", tmp_path / "out", *options)
    process = program(tmp_path / "killed.py", *command_line)

    def done() -> int:
        return len(read_tensors(state, "sv4d2.training")[0]["losses"]) if state.exists() else 0

    waited_for(lambda: done() >= 3, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    before = done()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert before <= done() < 40
    end = time.monotonic() + SECONDS
    while any(alive(int(child)) for child in children):
        assert time.monotonic() < end
        time.sleep(0.05)
    kept, steps = read_tensors(state, "sv4d2.training")[0]["losses"].tolist(), []

    def callback(_watch: object, _stage: str, progress: Progress, _model: object) -> None:
        steps.append(progress.step)
        assert progress.losses[: len(kept)] == kept
        raise KeyboardInterrupt

    monkeypatch.setattr(command._Watch, "__call__", callback)
    assert cli(monkeypatch, "--out", tmp_path / "out", *options) == 130
    assert steps == [len(kept) + 1]


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
        process = program(*arguments, "train", "--out", tmp_path / "two", *options, launcher=launcher)
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
