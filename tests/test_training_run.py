"""Whole trainings: from data to checkpoints, through interruptions, on given checkpoints and own renders."""

from __future__ import annotations

import json
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
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from sv4d2_core.cameras import Cameras
from sv4d2_core.cli import main
from sv4d2_core.commands import train as command
from sv4d2_core.diffusion.checkpoint import load_checkpoint
from sv4d2_core.diffusion.config import ModelConfig
from sv4d2_core.diffusion.convert import write_random_checkpoint
from sv4d2_core.diffusion.novel_views import sample_views
from sv4d2_core.export.folder import write_views
from sv4d2_core.fourd.scene import read_tensors
from sv4d2_core.training import run as run_module
from sv4d2_core.training.autoencoder import AutoencoderLoss, normalise_latents
from sv4d2_core.training.batches import DrawConfig
from sv4d2_core.training.encoded import EncodedScenes
from sv4d2_core.training.loop import LoopConfig, Progress
from sv4d2_core.training.lora import load_lora_state, merged_state
from sv4d2_core.training.procedural import ProceduralScenes
from sv4d2_core.training.recipe import Phase, Recipe
from sv4d2_core.training.run import OutOfTime, TrainingRun
from sv4d2_core.training.scene_store import SceneStore
from sv4d2_core.world import make_creature, render_views

torch.set_num_threads(1)

REPOSITORY = Path(__file__).parent.parent
CPU = torch.device("cpu")
SOURCE = ProceduralScenes(0, size=8, n_cameras=4, n_frames=2)
STAGES = ("autoencoder", "static", "motion")
SECONDS = 120


class Stopped(Exception):
    """What a callback of these tests raises."""


@pytest.fixture(scope="module")
def recipe(training_config: ModelConfig) -> Recipe:
    return Recipe(
        model=training_config,
        n_scenes=2,
        autoencoder=LoopConfig(3),
        autoencoder_batch=4,
        phases=(
            Phase("static", LoopConfig(2, warm_up=1), DrawConfig(n_frames=1, batch=2)),
            Phase("motion", LoopConfig(3, warm_up=1), DrawConfig(n_frames=2, batch=2)),
        ),
        dtype="fp32",
    )


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
        write_views(root / "whole", grid)
        (root / name).mkdir()
        for part in ("frames", "masks", "transforms.json"):
            shutil.move(root / "whole" / part, root / name / part)
        shutil.rmtree(root / "whole")
    return root


def training(folder: Path, recipe: Recipe, **options) -> TrainingRun:
    store = SceneStore(folder / "scenes", SOURCE, {"procedural": "test"})
    return TrainingRun(folder, recipe, store, CPU, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, recipe) -> Path:
    """Return the folder of a training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    assert training(folder, recipe).run() == folder / "motion.safetensors"
    return folder


def stopping(stage: str, step: int) -> Callable:
    def callback(name: str, progress: Progress, _model: object) -> None:
        if (name, progress.step) == (stage, step):
            raise Stopped

    return callback


def test_every_stage_leaves_a_checkpoint_that_makes_views(finished, training_config):
    for stage in STAGES:
        model = load_checkpoint(finished / f"{stage}.safetensors")
        assert model.config == replace(training_config, trained=stage != "autoencoder")
    with safe_open(finished / "motion.safetensors", "pt") as file:
        note = json.loads(file.metadata()["sv4d2.training"])
    assert note["stage"] == "motion" and note["recipe"]["n_scenes"] == 2
    truth = SOURCE.scene(5)
    made = sample_views(model, truth.images[:, 0], Cameras.default(2), steps=2)
    assert made.trained and bool(made.images.isfinite().all()) and made.images.shape == (2, 3, 8, 8, 3)
    names = {path.name for path in finished.iterdir()}
    assert names == {"recipe.json", "scenes", "encoded", *(f"{stage}.safetensors" for stage in STAGES)}


def test_static_objects_teach_nothing_about_motion(finished):
    stages = [load_file(finished / f"{stage}.safetensors") for stage in STAGES]
    changed = [
        {key for key in a if not torch.equal(a[key], b[key])}
        for a, b in zip(stages, stages[1:], strict=False)
    ]
    unet = "model.diffusion_model."
    assert all(key.startswith(unet) for key in changed[0] | changed[1])
    motion = {
        key for key in stages[0] if "motion" in key and ".norm2." not in key and "attn2.to_q" not in key
    }
    motion = {key for key in motion if "attn2.to_k" not in key}
    assert not motion & changed[0] and motion <= changed[1]
    assert len(changed[0]) > 50


def test_an_interrupted_training_ends_the_same(tmp_path, finished, recipe):
    seen = []
    for stage, step in (("autoencoder", 2), ("autoencoder", 3), ("static", 1), ("motion", 2)):
        with pytest.raises(Stopped):
            training(tmp_path, recipe, callback=stopping(stage, step)).run()
        assert (tmp_path / f"{stage}.state").exists()
    with pytest.raises(OutOfTime, match="motion: 3 of 3 steps"):
        training(tmp_path, recipe, minutes=1e-9).run()
    training(tmp_path, recipe, callback=lambda *step: seen.append(step)).run()
    assert seen == []
    for stage in STAGES:
        name = f"{stage}.safetensors"
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_time_is_up_after_a_step_and_the_next_piece_goes_on(tmp_path, recipe):
    seen = []

    def callback(stage: str, progress: Progress, _model: object) -> None:
        seen.append((stage, progress.step))

    for _ in range(2):
        with pytest.raises(OutOfTime):
            training(tmp_path, recipe, minutes=1e-9, callback=callback).run()
    assert seen == [("autoencoder", 1), ("autoencoder", 2)]


def test_the_state_is_saved_at_every_interval(tmp_path, recipe, monkeypatch):
    steps = []

    def callback(stage: str, progress: Progress, _model: object) -> None:
        file = tmp_path / f"{stage}.state"
        steps.append(len(read_tensors(file, "sv4d2.training")[0]["losses"]) if file.exists() else 0)
        if progress.step == 3:
            raise Stopped

    for interval, expected in ((0.0, [0, 1, 2]), (60.0, [0, 0, 0])):
        shutil.rmtree(tmp_path)
        monkeypatch.setattr(run_module, "_SAVE_EVERY_S", interval)
        with pytest.raises(Stopped):
            training(tmp_path, recipe, callback=callback).run()
        assert steps == expected
        steps.clear()


def test_other_trainings_are_refused(tmp_path, finished, recipe, base):
    with pytest.raises(ValueError, match="another recipe or base"):
        training(finished, replace(recipe, seed=1)).run()
    with pytest.raises(ValueError, match="another recipe or base"):
        training(finished, recipe, base=base).run()
    with pytest.raises(ValueError, match="Expected scenes made with"):
        SceneStore(finished / "scenes", SOURCE, {"procedural": "other"})
    with pytest.raises(ValueError, match=r"Expected a seed in 0\.\.2\*\*32 - 1"):
        replace(recipe, seed=2**32)
    assert training(finished, recipe).run() == finished / "motion.safetensors"


def test_latents_become_normal_and_pictures_stay(training_config, close):
    torch.manual_seed(0)
    network, images = AutoencoderLoss(training_config), torch.rand(40, 3, 16, 16) * 2 - 1
    encoder, decoder = network.encoder, network.decoder
    with torch.no_grad():
        encoder.quant_conv.bias += 1.5
        before = encoder(images)
        first = decoder.conv_in(before)
        normalise_latents(encoder, decoder, images)
        latents = encoder(images)
        close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), 1e-4)
        close(latents.std(dim=(0, 2, 3)), torch.ones(4), 1e-4)
        # At the border the convolution's zeros now stand for the mean.
        close(decoder.conv_in(latents)[..., 1:-1, 1:-1], first[..., 1:-1, 1:-1], 1e-4)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_scenes_made_ahead_are_those_made_here(tmp_path):
    here, ahead = (SceneStore(tmp_path / name, SOURCE, {}) for name in ("here", "ahead"))
    for index in range(3):
        here.read(index)
    with ahead.made_ahead(3, 1):
        images, cameras = ahead.read(2)
        worker = ahead.workers[0]
        assert worker.pid is not None
    assert not worker.is_alive() and ahead.workers == []
    assert (
        contents(tmp_path / "ahead") == contents(tmp_path / "here") and len(contents(tmp_path / "here")) == 3
    )
    assert cameras == SOURCE.scene(2).cameras and images.shape == (2, 4, 8, 8, 3)
    assert (images.float() / 255 - SOURCE.scene(2).images).abs().max() < 0.502 / 255


def test_encoded_scenes_are_read_again(tmp_path, base):
    model, reads = load_checkpoint(base), []

    def read(index: int) -> tuple[Tensor, Cameras]:
        reads.append(index)
        grid = render_views(make_creature(index), Cameras.ring(2), 2, 16)
        return (grid.images * 255).round().to(torch.uint8), grid.cameras

    first = EncodedScenes(model, read, tmp_path)(4)
    second = EncodedScenes(model, read, tmp_path)
    assert torch.equal(second(4).latents, first.latents) and second(4) is second(4) and reads == [4]
    images = read(4)[0].float() / 255
    assert torch.equal(first.latents[1], model.encode(images[1], role="frames").half())
    assert torch.equal(first.tokens[0], model.embed(images[0]).half())
    assert torch.equal(EncodedScenes(model, read, None)(4).tokens, first.tokens)


def cli(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(command, "_SAMPLED_OBJECTS", (0,))
    return main(["train", "--device", "cpu", "--workers", "0", *map(str, arguments)])


def test_fine_tuning_on_own_renders(tmp_path, base, renders, monkeypatch):
    options = ("--base", base, "--data", renders, "--motion-steps", 2, "--learning-rate", 0.01)
    assert cli(monkeypatch, "--out", tmp_path, *options, "--view-mixing", "view", "--checkpointing") == 0
    tuned, before = load_checkpoint(tmp_path / "motion.safetensors"), load_checkpoint(base)
    assert tuned.config.trained and tuned.config.unet.view_mixing == "view"
    assert before.config.unet.view_mixing == "joint_3d"
    changed = {
        n for n, p in tuned.unet.state_dict().items() if not torch.equal(p, before.unet.state_dict()[n])
    }
    assert len(changed) > 100
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
    adapted = load_checkpoint(base)
    load_lora_state(adapted.unet, state)
    merged = merged_state(adapted.unet)
    tuned = load_checkpoint(tmp_path / "whole/motion.safetensors").unet.state_dict()
    assert merged.keys() == tuned.keys()
    assert all(torch.equal(merged[name], tuned[name]) for name in merged)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lora", 2), "Expected --lora together with --base"),
        (("--static-steps", 0, "--motion-steps", 0), "Expected steps to train"),
        (("--mask-all", 1.5), "Expected shares in 0..1"),
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


def program(script: Path | str, *arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    return subprocess.Popen(
        [sys.executable, *launcher, str(script), *map(str, arguments)],
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
from sv4d2_core.cli import main
from sv4d2_core.training import run
if __name__ == "__main__":
    run._SAVE_EVERY_S = 0.0
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the processes of Linux from /proc")
def test_a_killed_training_loses_an_interval_at_most_and_leaves_no_workers(tmp_path, base, monkeypatch):
    options = ["--base", base, "--motion-steps", 40, "--scenes", 1000, "--dtype", "fp32", "--device", "cpu"]
    (tmp_path / "killed.py").write_text(KILLED)
    state = tmp_path / "out/motion.state"
    process = program(tmp_path / "killed.py", "train", "--out", tmp_path / "out", "--workers", 1, *options)

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


SHARED = """
import math, sys
from sv4d2_core.cli import main
from sv4d2_core.training import run
from sv4d2_core.training.distributed import is_first_process

after = run.TrainingRun._after_step

def after_step(self, stage, progress, model):
    if not is_first_process():
        self._began = math.inf  # by its own clock it would never stop
    elif progress.step == 1:
        progress.save(self.folder / "first.state")
    after(self, stage, progress, model)

if __name__ == "__main__":
    run.TrainingRun._after_step = after_step
    sys.exit(main([*sys.argv[1:], "--minutes", "1e-9"]) or main(sys.argv[1:]))
"""


def test_two_processes_do_what_one_does(tmp_path, base, renders, monkeypatch, close):
    options = ["--base", base, "--data", renders, "--motion-steps", 2, "--motion-batch", 4, "--dtype", "fp32"]
    options += ["--device", "cpu", "--workers", 0]
    (tmp_path / "shared.py").write_text(SHARED)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    process = program(tmp_path / "shared.py", "train", "--out", tmp_path / "two", *options, launcher=launcher)
    said = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 0, said[-3000:]
    assert cli(monkeypatch, "--out", tmp_path / "one", *options, "--minutes", 1e-9) == 0
    states = [
        read_tensors(tmp_path / name, "sv4d2.training")[0] for name in ("two/first.state", "one/motion.state")
    ]
    assert states[0].keys() == states[1].keys()
    close(states[0]["losses"], states[1]["losses"], 1e-5)
    gradients = [key for key in states[0] if key.startswith("exp_avg.")]
    largest = max(float(states[1][key].abs().max()) for key in gradients)
    for key in gradients:
        close(states[0][key], states[1][key], 1e-4 * largest)
    assert load_checkpoint(tmp_path / "two/motion.safetensors").config.trained
    assert len(list((tmp_path / "two").glob("*.safetensors"))) == 1
    assert said.count("Trained: ") >= 1 and not list((tmp_path / "two").glob("*.part"))
