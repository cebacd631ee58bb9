"""The commands `refine` and `render` as a user runs them."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sv4d2_core.__main__ import main
from sv4d2_core.cameras import Cameras
from sv4d2_core.commands import refine
from sv4d2_core.data.reader import crop_of, read_dataset
from sv4d2_core.data.views_folder import read_views, write_views
from sv4d2_core.diffusion import memory
from sv4d2_core.scene.config import RefineConfig
from sv4d2_core.scene.fit import FitProgress
from sv4d2_core.scene.refine import refine_scene
from sv4d2_core.scene.store import FitState, load_scene
from sv4d2_core.video.crop import CropPath
from sv4d2_core.world import make_creature, render_views

ROOT = Path(__file__).parents[1]
STEPS = "24"


@pytest.fixture(scope="module")
def views(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("views") / "views"
    write_views(folder, render_views(make_creature(5), Cameras.official("sv4d2"), 3, 32))
    return folder


@pytest.fixture(scope="module")
def scene(views, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.safetensors"
    assert main(fit(views, path, "--steps", STEPS)) == 0
    return path


def fails(capsys, *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


@pytest.fixture
def interrupted(monkeypatch):
    """Return a runner of a command that is interrupted at the first step for which a condition holds."""

    def run(words: list[str], when: Callable[[int, int, FitProgress], bool]) -> int:
        class Interrupting(refine._Watch):
            def __call__(self, step, total, progress):
                super().__call__(step, total, progress)
                if when(step, total, progress):
                    raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(refine, "_Watch", Interrupting)
            return main(words)

    return run


def fit(views: Path, out: Path, *more: object) -> list[str]:
    return [str(word) for word in ("refine", views, "--out", out, "--input-elevation", 0, *more)]


# Not "until there is a state": a slow machine writes one before step 10.
@pytest.mark.parametrize("when", [lambda step, *_: step == 10, lambda step, total, _: step == total])
def test_an_interrupted_fit_goes_on_to_the_same_scene(views, scene, tmp_path, interrupted, capsys, when):
    path = tmp_path / "scene.safetensors"
    command = fit(views, path, "--steps", STEPS)
    assert interrupted(command, when) == 130
    assert [entry.name for entry in tmp_path.iterdir()] == ["scene.fit"]
    assert "--resume goes on" in capsys.readouterr().err
    for name in ("scene.fit", "scene.fit.png"):  # what a killed one leaves half written
        (tmp_path / f".{name}.0123abcd.part").touch()
    assert main([*command, "--resume"]) == 0
    assert path.read_bytes() == scene.read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["scene.fit.png", "scene.safetensors"]


def test_a_signal_waits_for_the_end_of_the_step(views, tmp_path, monkeypatch):
    from sv4d2_core.scene.dynerf.dynerf_fit import DyNeRFFit

    accumulate, steps = DyNeRFFit.accumulate, []

    def signalled(self, step, frames):
        steps.append(step.number)
        if step.number == 9:
            signal.raise_signal(signal.SIGINT)
        return accumulate(self, step, frames)

    monkeypatch.setattr(DyNeRFFit, "accumulate", signalled)
    monkeypatch.setattr(signal, "getsignal", lambda _number: signal.SIG_DFL)  # who tests may ignore Ctrl-C
    assert main(fit(views, tmp_path / "scene.safetensors", "--steps", STEPS)) == 130
    assert steps[-1] == 9 and (tmp_path / "scene.fit").is_file()


def test_a_second_signal_within_a_step_leaves_what_was_saved_before(views, scene, tmp_path, monkeypatch):
    from sv4d2_core.scene.dynerf.dynerf_fit import DyNeRFFit

    accumulate, path = DyNeRFFit.accumulate, tmp_path / "scene.safetensors"

    def signalled(self, step, frames):
        loss = accumulate(self, step, frames)
        if step.number == 9:
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(DyNeRFFit, "accumulate", signalled)
        patch.setattr(signal, "getsignal", lambda _number: signal.SIG_DFL)
        patch.setattr(refine, "_SAVE_EVERY_S", 0.0)
        assert main(fit(views, path, "--steps", STEPS)) == 130
    assert FitState.load(tmp_path / "scene.fit").step == 9
    assert main(fit(views, path, "--steps", STEPS, "--resume")) == 0
    assert path.read_bytes() == scene.read_bytes()


def test_a_signal_before_the_first_step_ends_the_job_at_once(views, tmp_path, monkeypatch, capsys):
    def begun(*_args, **_settings):
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("goes on after the signal")

    monkeypatch.setattr(refine, "refine_scene", begun)
    assert main(fit(views, tmp_path / "scene.safetensors")) == 130
    assert not list(tmp_path.iterdir()) and "--resume" not in capsys.readouterr().err


def test_render_makes_a_data_set_with_transparency(scene, tmp_path):
    out = tmp_path / "out"
    cameras = ("--azimuths", "45", "200", "--elevations", "10", "-5")
    assert main(["render", str(scene), "--out", str(out), "--size", "24", "--frames", "2", *cameras]) == 0
    names = {"cameras.json", "frames", "render.json", "transforms.json"}
    assert {path.name for path in out.iterdir()} == names | {f"view_0{v}.mp4" for v in range(3)}
    picture = np.asarray(Image.open(out / "frames/view_01/00001.png"))
    assert picture.shape == (24, 24, 4) and picture[0, 0, 3] == 0 and picture[..., 3].max() > 128
    grid = read_dataset(out)
    assert grid.cameras.azimuths_deg == (0, 45, 200) and grid.cameras.elevations_deg == (0, 10, -5)
    frames = json.loads((out / "transforms.json").read_text())["frames"]
    assert {frame["time"] for frame in frames} == {0.0, 1.0}
    assert all((out / frame["file_path"]).is_file() for frame in frames), "as nerfstudio opens them"


def test_depth_and_normals_are_pictures_that_refine_can_read(scene, views, tmp_path):
    out = tmp_path / "out"
    assert main(["render", str(scene), "--out", str(out), "--size", "32", "--maps"]) == 0
    depth = np.asarray(Image.open(out / "depth/view_02/00001.png")) / 10_000
    alpha = np.asarray(Image.open(out / "frames/view_02/00001.png"))[..., 3]
    assert ((depth > 0) == (alpha >= 128)).mean() > 0.99 and depth[0, 0] == 0
    assert 1.3 < np.median(depth[depth > 0]) < 2.3
    normals = np.asarray(Image.open(out / "normals/view_02/00001.png")) / 127.5 - 1
    inside = normals[alpha > 200]
    assert np.linalg.norm(inside, axis=-1) == pytest.approx(1, abs=0.05)
    assert (inside[:, 2] > 0).mean() > 0.9
    again = tmp_path / "again.safetensors"
    assert main(fit(views, again, "--normals", out / "normals", "--steps", 4)) == 0


def test_cameras_of_a_file_and_listed_times(scene, views, tmp_path):
    out = tmp_path / "out"
    file = str(views / "transforms.json")
    times = ("--times", "0.25", "0.3", "1")
    assert main(["render", str(scene), "--out", str(out), "--size", "16", "--cameras", file, *times]) == 0
    assert len(list((out / "frames").iterdir())) == 5
    frames = json.loads((out / "transforms.json").read_text())["frames"]
    assert sorted({frame["time"] for frame in frames}) == [0.25, 0.3, 1]


def test_fewer_and_more_times_take_as_long_as_the_scene(scene, tmp_path):
    seconds = 2 / load_scene(scene).fps
    for count in (2, 5):
        out = tmp_path / str(count)
        assert main(["render", str(scene), "--out", str(out), "--size", "16", "--frames", str(count)]) == 0
        assert (count - 1) / read_dataset(out).fps == pytest.approx(seconds)
    out = tmp_path / "slow"
    assert main(["render", str(scene), "--out", str(out), "--size", "16", "--slow", "3"]) == 0
    assert read_dataset(out).fps == load_scene(scene).fps


def test_a_turntable_turns_while_time_runs(scene, tmp_path):
    out = tmp_path / "out"
    command = ["render", str(scene), "--out", str(out), "--size", "24", "--turntable", "--frames", "6"]
    assert main(command) == 0
    assert sorted(path.name for path in out.iterdir()) == ["render.json", "turntable", "turntable.mp4"]
    pictures = [np.asarray(Image.open(file)).astype(int) for file in sorted((out / "turntable").iterdir())]
    assert len(pictures) == 6
    assert all(np.abs(a - b).max() > 20 for a, b in zip(pictures, pictures[1:], strict=False))


def test_an_interrupted_fit_is_not_lost_by_starting_anew(views, tmp_path, capsys):
    (tmp_path / "scene.fit").write_text("an hour of work")
    command = ["refine", str(views), "--out", str(tmp_path / "scene.safetensors"), "--steps", "4"]
    error = fails(capsys, *command)
    assert "scene.fit exists already" in error and "--resume" in error
    assert "cannot be read" in fails(capsys, *command, "--resume")
    assert (tmp_path / "scene.fit").read_text() == "an hour of work"


def test_what_is_there_is_replaced_only_when_asked(scene, views, tmp_path, capsys):
    before = scene.read_bytes()
    assert "exists already" in fails(capsys, "refine", views, "--out", scene, "--steps", STEPS)
    assert scene.read_bytes() == before
    out = tmp_path / "out"
    command = ["render", str(scene), "--out", str(out), "--size", "16", "--times", "0"]
    assert main(command) == 0
    assert "exists already" in fails(capsys, *command)
    assert main([*command, "--overwrite"]) == 0
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/cameras.json").write_text("mine")
    error = fails(capsys, "render", scene, "--out", tmp_path / "foreign", "--size", "16")
    assert "no export of this kind wrote" in error
    assert (tmp_path / "foreign/cameras.json").read_text() == "mine"


OUT, TO = ("--out", "{tmp}/x.safetensors"), ("--out", "{tmp}/r")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["refine", "nothing", *OUT], "Three kinds are understood"),
        (["refine", "{views}", "--out", "{tmp}/x.bin"], "ends in .safetensors"),
        (["refine", "{views}", *OUT, "--stages", "1", "--checkpoint", "{scene}"], "Leave one of them out"),
        (["refine", "{views}", *OUT, "--checkpoint", "{tmp}/c"], "c"),
        (["refine", "{views}", *OUT, "--checkpoint", "{scene}"], "is a 4D scene"),
        (["refine", "{views}", *OUT, "--lpips", "{scene}"], "LPIPS"),
        (["refine", "{views}", *OUT, "--resume"], "Leave --resume out"),
        (["render", "{tmp}/none.safetensors", *TO], "no file"),
        (["render", "{views}/run.json", *TO], "cannot be read"),
        (["render", "{scene}", *TO, "--size", "15"], "even --size"),
        (["render", "{scene}", *TO, "--times", "2"], "a number from 0 to 1"),
        (["render", "{scene}", *TO, "--times", "0.5", "0.5"], "times that rise within 0..1; got 0.5, 0.5"),
        (["render", "{scene}", *TO, "--turntable", "--maps"], "Give cameras, too"),
        (["render", "none", *TO, "--azimuths", "30", "--turntable", "--frames", "1"], "at least 2 pictures"),
        (["render", "{scene}", *TO, "--frames", "9999"], "Give the rate that it should play at"),
        (
            ["refine", "{views}", *OUT, "--backend", "gaussians", "--field", "canonical"],
            "for --backend dynerf",
        ),
        (["render", "{scene}", *TO, "--times", "0", "--frames", "2"], "not both"),
        (["render", "{scene}", *TO, "--azimuths", "9", "--elevations", "1", "2", "3"], "elevations"),
    ],
)
def test_bad_input_is_one_message(scene, views, tmp_path, capsys, arguments, message):
    filled = [text.format(scene=scene, views=views, tmp=tmp_path) for text in arguments]
    assert message in fails(capsys, *filled)
    assert not list(tmp_path.iterdir())


def test_two_stages_with_a_checkpoint_go_on_after_an_interrupt(
    micro_checkpoint, tmp_path, interrupted, capsys, monkeypatch
):
    folder, path, other = tmp_path / "views", tmp_path / "scene.safetensors", tmp_path / "other.safetensors"
    write_views(folder, render_views(make_creature(5), Cameras((0, 0, 0), (0, 120, 240)), 3, 32))
    more = ["--checkpoint", micro_checkpoint, "--steps", 12, "--size", 16, "--sampling-steps", 2]
    more += ["--strength", 0.7, "--memory-gb", 4]
    plans, apply = [], memory.apply_plan
    monkeypatch.setattr(memory, "apply_plan", lambda *on: (plans.append(on[1]), apply(*on)))
    assert main(fit(folder, path, *more)) == 0
    assert "UNTRAINED WEIGHTS" in capsys.readouterr().err
    assert [plan.estimated_bytes < 4 * 2**30 for plan in plans] == [True] * 2, (
        "each round keeps to --memory-gb"
    )
    assert interrupted(fit(folder, other, *more), lambda *now: now[2].phase == "refine 1") == 130
    trained = tmp_path / "trained.safetensors"
    trained.write_bytes(micro_checkpoint.read_bytes()[:-1] + b"\1")
    changes = ["--checkpoint", trained], ["--sampling-steps", 3], ["--dtype", "bf16"]
    without = ["--stages", 2, *more[2:6], "--memory-gb", 4]
    for words in (*([*more, *change] for change in changes), without):
        error = fails(capsys, *fit(folder, other, *words, "--resume"))
        assert "these settings and models; got one of another fit" in error
    assert main(fit(folder, other, *more, "--resume")) == 0
    assert other.read_bytes() == path.read_bytes()
    assert main(fit(folder, tmp_path / "third.safetensors", *more[:-1], 0.001)) == 2
    assert "at least" in capsys.readouterr().err


def test_the_python_example_of_the_readme_runs(tmp_path):
    """As it is written, but for fewer frames and steps."""
    example = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    for written, smaller in (
        ("load_clip(SAMPLE_CLIP)", "load_clip(SAMPLE_CLIP, frames=3)"),
        ("steps=5", "steps=1"),
        ("with_steps(300", "with_steps(8"),
    ):
        assert written in example
        example = example.replace(written, smaller)
    (tmp_path / "example.py").write_text(example)
    subprocess.run([sys.executable, "example.py"], cwd=tmp_path, check=True, capture_output=True)
    assert read_views(tmp_path / "views").n_frames == load_scene(tmp_path / "scene.safetensors").n_frames == 3


@pytest.mark.parametrize("elevation", [None, 10.0])
def test_refine_scene_without_settings_is_the_command_without_options(views, tmp_path, elevation):
    """Of the recipe's steps only eight, or it would take minutes."""
    grid, crop = read_views(views), CropPath(((20.0, 32.0),) * 2 + ((44.0, 32.0),), 32.0, 32, 64, 64, "x")
    folder, made = tmp_path / "views", tmp_path / "command.safetensors"
    write_views(folder, grid, crop=crop.to_json())
    heard = []
    scene = refine_scene(
        grid,
        RefineConfig().with_steps(8, 1),
        crop=crop,
        input_elevation_deg=elevation,
        size=24,
        callback=lambda *args: heard.append(args),
    )
    scene.save(tmp_path / "python.safetensors")
    command = ["refine", str(folder), "--out", str(made), "--steps", "8", "--size", "24"]
    assert main([*command, *([] if elevation is None else ["--input-elevation", str(elevation)])]) == 0
    assert made.read_bytes() == (tmp_path / "python.safetensors").read_bytes()
    assert scene.path is not None and heard[-1][2].views.images.shape[2] == 24
    said, followed = heard[-1][2].notes
    assert said.startswith("Elevation of the input camera: ") and "followed the object" in followed


def test_minutes_are_counted_in_steps_that_can_be_repeated(views, tmp_path, capsys):
    path = tmp_path / "scene.safetensors"
    command = fit(views, path)
    assert main([*command, "--minutes", "0.01"]) == 0
    steps = int(capsys.readouterr().err.split("are about ")[1].split()[0])
    made = path.read_bytes()
    assert main([*command, "--steps", str(steps), "--overwrite"]) == 0
    assert path.read_bytes() == made


@pytest.mark.parametrize("more", [["--backend", "gaussians"], ["--stages", "2", "--memory-gb", "1"]])
def test_other_ways_to_fit_can_be_rendered(views, tmp_path, more):
    path, out = tmp_path / "scene.safetensors", tmp_path / "out"
    assert main(fit(views, path, "--steps", 12, *more)) == 0
    assert main(["render", str(path), "--out", str(out), "--size", "24", "--times", "0.4"]) == 0
    picture = np.asarray(Image.open(out / "frames/view_01/00000.png"))
    assert picture[..., 3].max() > 100


def test_a_followed_object_moves_again_unless_it_is_told_not_to(tmp_path, capsys, monkeypatch):
    crop = CropPath(((20.0, 32.0), (32.0, 32.0), (44.0, 32.0)), 32.0, 32, 64, 64, "per_frame").to_json()
    folder, scene = tmp_path / "views", tmp_path / "scene.safetensors"
    write_views(folder, render_views(make_creature(5), Cameras.official("sv4d2"), 3, 32), crop=crop)
    command = fit(folder, scene, "--steps", 12)
    for home in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(home, str(tmp_path))
    # As quotes and Windows' prompt leave it.
    assert main(fit(Path("~/views"), Path("~/scene.safetensors"), "--steps", 12)) == 0
    assert load_scene(scene).path is not None

    def travel(name, *more):
        out = tmp_path / name
        assert main(["render", str(scene), "--out", str(out), "--size", "32", *more]) == 0
        files = sorted((out / "frames/view_00").iterdir())
        opacity = [np.asarray(Image.open(file))[..., 3].sum(0).astype(float) for file in files]
        middles = [(row * np.arange(32)).sum() / row.sum() for row in opacity]
        return middles[-1] - middles[0]

    # The views show the object in their middle, and so must what the fit is compared with.
    residual = float(capsys.readouterr().err.split("It leaves ")[1].split()[0])
    assert residual < 0.25
    assert travel("moving") > 10 > 3 > abs(travel("centred", "--centred"))
    assert main([*command, "--centred", "--overwrite"]) == 0
    assert load_scene(scene).path is None


def test_the_crop_of_one_view_is_not_laid_across_another(tmp_path, capsys):
    crop = CropPath(((20.0, 32.0), (32.0, 32.0), (44.0, 32.0)), 32.0, 32, 64, 64, "per_frame")
    folder, data = tmp_path / "views", tmp_path / "data"
    write_views(folder, render_views(make_creature(5), Cameras((0, 0), (0, 90)), 3, 16), crop=crop.to_json())
    assert main(["export", str(folder), "--format", "dataset", "--out", str(data)]) == 0
    assert crop_of(folder, 1) == crop_of(data) == crop_of(data, 0) == crop
    assert main(["export", str(data), "--format", "dataset", "--out", str(tmp_path / "0")]) == 0
    assert "the object stays" not in capsys.readouterr().err and crop_of(tmp_path / "0") == crop
    turned = ["export", str(data), "--format", "dataset", "--input-view", "1", "--out", str(tmp_path / "1")]
    assert main(turned) == 0
    assert "not view 1: the object stays in the middle" in capsys.readouterr().err
    assert crop_of(tmp_path / "1") is None
    # What other programs call so is none of ours.
    for foreign in ("[]", '{"crop": 5}', "{"):
        (data / "cameras.json").write_text(foreign)
        assert crop_of(data) is None
