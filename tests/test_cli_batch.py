"""`sv4d2 batch`: many clips in one run give what single runs give, and none stops another."""

import json
import shutil
import subprocess
import sys
from argparse import Namespace

import pytest

from sv4d2_core.__main__ import main
from sv4d2_core.commands import views
from sv4d2_core.commands.batch import clips_of, needs_of_actor
from sv4d2_core.diffusion.window_store import WindowFolder


@pytest.fixture(scope="module")
def clips(tmp_path_factory, disc_clip):
    """Return a folder of three clips of 4 frames, each a disc that moves, and of one that is no clip."""
    folder = tmp_path_factory.mktemp("clips")
    for number, name in enumerate(("walk", "run", "jump")):
        disc_clip(folder / name, 4, 80 * number)
    (folder / "broken.mp4").write_bytes(b"not a video")
    return folder


def _maker(name, checkpoint):
    """Return a maker of the arguments of a command for places and an output folder, with few steps."""
    fixed = ["--checkpoint", checkpoint, "--variant", "sv4d2", "--size", 16, "--steps", 2, "--save-latents"]
    return lambda places, out, *more: [str(word) for word in (name, *places, "--out", out, *fixed, *more)]


@pytest.fixture
def batch(micro_checkpoint):
    return _maker("batch", micro_checkpoint)


@pytest.fixture
def single(micro_checkpoint):
    views_of = _maker("views", micro_checkpoint)
    return lambda place, out, *more: views_of([place], out, *more)


def report(out):
    return json.loads((out / "batch.json").read_text())


def statuses(out):
    return {name: clip["status"] for name, clip in report(out)["clips"].items()}


@pytest.fixture
def loads(monkeypatch):
    """Return a list that gets an entry whenever a model is loaded."""
    loaded, load = [], views.load_model

    def counting(job):
        loaded.append(job.args.input)
        return load(job)

    monkeypatch.setattr(views, "load_model", counting)
    return loaded


def test_a_batch_gives_the_bits_of_single_runs_with_one_load(clips, batch, single, tmp_path, loads, contents):
    out = tmp_path / "out"
    assert main(batch([clips / "walk", clips / "jump"], out)) == 0
    assert loads == [str(clips / "walk")]
    assert statuses(out) == {"walk": "complete", "jump": "complete"}
    for name in ("walk", "jump"):
        alone = tmp_path / f"alone_{name}"
        assert main(single(clips / name, alone)) == 0
        files = contents(alone)
        assert files == contents(out / name) and "latents/latents.safetensors" in files
        runs = [json.loads((folder / "run.json").read_text()) for folder in (alone, out / name)]
        assert runs[0]["settings"] == runs[1]["settings"] and runs[0]["output"] == runs[1]["output"]
        assert runs[0]["options"] == {**runs[1]["options"], "out": str(alone)}


def test_a_failing_clip_is_reported_and_the_others_go_on(clips, batch, tmp_path, capsys, loads):
    out = tmp_path / "out"
    places = [clips / "broken.mp4", clips / "walk", clips / "nowhere.gif", clips / "run"]
    assert main(batch(places, out)) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error and "Failed: broken, nowhere." in error
    assert "2 of 4 clips are complete" in error
    found = report(out)["clips"]
    assert statuses(out) == dict(broken="failed", walk="complete", nowhere="failed", run="complete")
    assert "broken.mp4" in found["broken"]["error"] and "nowhere.gif" in found["nowhere"]["error"]
    assert found["walk"]["error"] is None and found["walk"]["seconds"] > 0
    assert sorted(path.name for path in out.iterdir()) == ["batch.json", "run", "walk"]
    assert loads == [str(clips / "walk")]


def test_the_same_command_continues_with_what_is_missing(clips, batch, tmp_path, capsys, loads, contents):
    out = tmp_path / "out"
    command = batch([clips / "walk", clips / "run"], out)
    assert main(command) == 0
    before = {name: contents(out / name) for name in ("walk", "run")}
    (out / "run/view_01.mp4").unlink()
    loads.clear()
    assert main(command) == 0
    assert loads == [str(clips / "run")], "only what is missing needs the model"
    loads.clear()
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().err.count("already complete") == 2 and not loads
    assert {name: contents(out / name) for name in ("walk", "run")} == before
    assert main([*command, "--seed", "1"]) == 1
    assert "--overwrite" in report(out)["clips"]["walk"]["error"]
    assert {name: contents(out / name) for name in ("walk", "run")} == before


def test_after_a_fault_in_one_clip_the_model_is_loaded_anew(
    clips, batch, tmp_path, capsys, loads, monkeypatch
):
    sample = views.sample_views

    def failing(model, clip, *args, **kwargs):
        if len(loads) == 1:
            raise RuntimeError("CUDA error: an illegal memory access")
        return sample(model, clip, *args, **kwargs)

    monkeypatch.setattr(views, "sample_views", failing)
    out = tmp_path / "out"
    assert main(batch([clips / "walk", clips / "run"], out)) == 1
    assert report(out)["clips"]["walk"]["error"] == "RuntimeError: CUDA error: an illegal memory access"
    assert statuses(out)["run"] == "complete" and len(loads) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_ends_the_batch(clips, batch, tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(views, "write_views", full)
    out = tmp_path / "out"
    assert main(batch([clips / "walk", clips / "run"], out)) == 2
    assert "The disk is full" in capsys.readouterr().err
    assert statuses(out) == {"walk": "unfinished", "run": "unfinished"}


def test_a_list_gives_each_clip_its_own_options(clips, batch, single, tmp_path, contents):
    spaced = tmp_path / "two words"
    shutil.copytree(clips / "walk", spaced)
    walk, listed = clips / "walk", tmp_path / "list.txt"
    listed.write_text(f'# a comment\n\n"{spaced}" --seed 7 --frames 3\n{walk}\n{walk} --seed 8\n')
    out, alone = tmp_path / "out", tmp_path / "alone"
    assert main(batch([clips / "walk", listed], out, "--seed", 5)) == 0
    assert list(statuses(out)) == ["walk", "two words", "walk_2", "walk_3"]
    runs = [json.loads((out / name / "run.json").read_text())["settings"] for name in statuses(out)]
    assert [(run["seed"], run["frames"]) for run in runs] == [(5, 4), (7, 3), (5, 4), (8, 4)]
    assert main(single(spaced, alone, "--seed", 7, "--frames", 3)) == 0
    assert contents(alone) == contents(out / "two words")


def test_other_memory_plans_give_the_bits_of_single_runs(clips, batch, single, tmp_path, loads, contents):
    listed, out, alone = tmp_path / "list.txt", tmp_path / "out", tmp_path / "alone"
    listed.write_text(f"{clips / 'walk'} --size 24\n{clips / 'walk'}\n")
    assert main(batch([listed], out, "--frames", 2, "--memory-gb", 4)) == 0
    assert len(loads) == 2
    assert main(single(clips / "walk", alone, "--frames", 2, "--memory-gb", 4)) == 0
    assert contents(alone) == contents(out / "walk_2")


def test_a_pattern_is_one_clip_per_match_in_natural_order(clips, batch, tmp_path):
    for name in ("clip_10", "clip_9"):
        shutil.copytree(clips / "walk", tmp_path / "many" / name)
    # Results may lie beside the clips, as their names are others.
    assert main(batch([tmp_path / "many/clip_*"], tmp_path / "out", "--frames", 2)) == 0
    assert list(statuses(tmp_path / "out")) == ["clip_9", "clip_10"]


def test_names_are_unique_whatever_the_disk_thinks_of_capitals(clips, tmp_path):
    more = ["b/walk.mov", "c/WALK.gif", "walk_2.mp4", ".hidden.mp4", "batch.json.mp4", "v1.2.mp4"]
    args = Namespace(input="a/walk.mp4", more=more, out=tmp_path, ray=False, actors=None)
    names = [clip.out.relative_to(tmp_path).as_posix() for clip in clips_of(args)]
    assert names == ["walk", "walk_2", "WALK_3", "walk_2_2", "hidden", "batch.json_2", "v1.2"]


COUNTS, WHOLE = ("--frames", "--steps", "--every"), "expected a whole number from 1 to 1000000, got 0"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("walk\nwalk --stps 3", "list.txt, line 2: unrecognized arguments: --stps 3"),
        *((f"walk {option} 0", f"list.txt, line 1: argument {option}: {WHOLE}") for option in COUNTS),
        ("walk --dtype bf16", "line 1: --dtype is the same for all clips"),
        ("walk --compile", "line 1: --compile is the same for all clips"),
        ("walk --fp8-weights", "line 1: --fp8-weights is the same for all clips"),
        ("walk --out elsewhere", "line 1: --out is the same for all clips"),
        ("nurse's walk.mp4", "line 1: Expected quotation marks in pairs"),
        ("--seed 3", "line 1: the following arguments are required: INPUT"),
        ("# nothing", "list.txt has none"),
        ("nothing/*.mp4", "nothing matches this pattern"),
        (("--size", 34), "divisible by 4; got 34"),
        (("--checkpoint", "nowhere.safetensors"), "nowhere.safetensors"),
        (("--actors", 2), "--actors is an option of --ray"),
    ],
)
def test_bad_lists_and_options_leave_nothing_behind(clips, batch, tmp_path, capsys, line, message):
    listed, out = tmp_path / "list.txt", tmp_path / "out"
    more = line if isinstance(line, tuple) else ()
    listed.write_text(f"'{clips / 'walk'}'" if more else line)
    assert main(batch([listed], out, *more)) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not out.exists()


def test_users_files_are_never_replaced(clips, batch, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "batch.json").write_text('{"jobs": 3}')
    assert main(batch([clips / "walk"], out)) == 2
    assert "is not a batch's" in capsys.readouterr().err
    assert (out / "batch.json").read_text() == '{"jobs": 3}' and len(list(out.iterdir())) == 1
    assert main(batch([clips / "walk", clips / "run"], clips)) == 2
    assert "apart from the input" in capsys.readouterr().err
    assert sorted(path.name for path in clips.iterdir()) == ["broken.mp4", "jump", "run", "walk"]


def test_interrupted_and_continued(clips, batch, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    save = WindowFolder.save

    def pressing(self, index, latents):
        save(self, index, latents)
        if self.folder.parent.name == "run":
            raise KeyboardInterrupt

    command = batch([clips / "walk", clips / "run", clips / "jump"], out)
    with monkeypatch.context() as ctrl_c:
        ctrl_c.setattr(WindowFolder, "save", pressing)
        assert main(command) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert statuses(out) == {"walk": "complete", "run": "unfinished", "jump": "unfinished"}
    assert not (out / "run/run.json").exists() and not (out / "jump").exists()
    assert main(command) == 0
    assert json.loads((out / "run/run.json").read_text())["resumed_windows"] == 1
    assert set(statuses(out).values()) == {"complete"}
    shutil.rmtree(out / "run")
    with monkeypatch.context() as ctrl_c:
        ctrl_c.setattr(WindowFolder, "save", pressing)
        assert main(command) == 130
    assert statuses(out)["jump"] == "complete", "it was not touched"


def test_without_ray_the_message_names_the_extra(clips, batch, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    out = tmp_path / "out"
    assert main(batch([clips / "walk"], out, "--ray")) == 2
    assert 'pip install ".[ray]"' in capsys.readouterr().err
    assert not out.exists()


def test_ray_gives_the_bits_of_single_runs(clips, batch, single, tmp_path, contents):
    pytest.importorskip("ray", reason="the optional extra ray is not installed")
    out, alone = tmp_path / "out", tmp_path / "alone"
    command = [sys.executable, "-m", "sv4d2_core"]
    places = [clips / "walk", clips / "broken.mp4", clips / "run"]
    on_ray = [*command, *batch(places, out, "--device", "cpu", "--ray", "--actors", 2)]
    done = subprocess.run(on_ray, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert statuses(out) == {"walk": "complete", "broken": "failed", "run": "complete"}
    assert "broken.mp4" in report(out)["clips"]["broken"]["error"]
    subprocess.run([*command, *single(clips / "run", alone)], check=True)
    assert contents(alone) == contents(out / "run")


@pytest.mark.parametrize(
    "resources,device,actors,expected",
    [
        ({"CPU": 8, "GPU": 4}, "auto", None, {"num_gpus": 1, "num_cpus": 1}),
        ({"CPU": 8, "GPU": 4}, "cuda", 4, {"num_gpus": 1, "num_cpus": 1}),
        ({"CPU": 8, "GPU": 4}, "cpu", 8, {"num_gpus": 0, "num_cpus": 1}),
        ({"CPU": 2}, "auto", 2, {"num_gpus": 0, "num_cpus": 1}),
        ({"CPU": 8, "GPU": 4}, "auto", 5, "at most 4 --actors, one per GPU .*; got 5"),
        ({"CPU": 2}, "auto", 3, "at most 2 --actors, one per CPU .*; got 3"),
        ({"CPU": 2}, "auto", None, "GPUs for --device auto; got 2 CPU cores only. Give --actors N and"),
        ({"CPU": 2}, "cuda", 2, "GPUs for --device cuda"),
    ],
)
def test_what_an_actor_takes_of_the_cluster(resources, device, actors, expected):
    if isinstance(expected, dict):
        assert needs_of_actor(resources, device, actors) == expected
        return
    with pytest.raises(ValueError, match=expected):
        needs_of_actor(resources, device, actors)
