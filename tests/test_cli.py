"""The command line as a user runs it: results, exit codes, messages, resume."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pretend.cuda import PretendCuda

from sv4d2_core import Cameras, __version__, read_views
from sv4d2_core.__main__ import build_parser, main
from sv4d2_core.commands import common, demo
from sv4d2_core.shipped import SAMPLE_CLIP, TINY_MODEL

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory, disc_clip):
    return disc_clip(tmp_path_factory.mktemp("clip"), 7)


@pytest.fixture
def command(clip_folder, micro_checkpoint):
    """Return a maker of the arguments of `sv4d2 views` with few steps."""

    def words(out, *more, clip=clip_folder, checkpoint=micro_checkpoint):
        fixed = ["--checkpoint", checkpoint, "--out", out, "--variant", "sv4d2", "--steps", 2]
        return [str(word) for word in ("views", clip, *fixed, *more)]

    return words


@pytest.fixture
def refused(command, capsys):
    """Return a runner of a command that must fail with one message, which it returns."""

    def run(out, *more, **places):
        assert main(command(out, *more, **places)) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error

    return run


def run_of(folder):
    return json.loads((folder / "run.json").read_text())


def program(script, *arguments):
    line = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True)


def test_views_writes_the_whole_folder(command, tmp_path):
    out = tmp_path / "out"
    assert main(command(out, "--save-latents", "--memory-gb", 4)) == 0
    names = {"contact_sheet.png", "cameras.json", "transforms.json", "transforms_train.json", "run.json"}
    names |= {"view_00.mp4", "view_01.mp4", "view_02.mp4", "latents"}
    assert names <= {path.name for path in out.iterdir() if path.stat().st_size > 0}
    assert len(list((out / "frames").rglob("*.png"))) == len(list((out / "masks").rglob("*.png"))) == 3 * 7
    run = run_of(out)
    assert (run["seed"], run["steps"], run["trained"]) == (23, 2, False) and "UNTRAINED" in run["warning"]
    assert run["seconds"]["sample"] > 0 and run["versions"]["torch"] == torch.__version__
    grid = read_views(out)
    assert grid.images.shape == (7, 3, 32, 32, 3)
    assert grid.latents is not None and grid.latents.shape == (7, 2, 4, 16, 16)
    crop = json.loads((out / "cameras.json").read_text())["crop"]
    assert crop["source_width"] == 48 and len(crop["centers"]) == 7


# Sends its own process a signal at the second forward pass after the first window was kept. Ctrl-C counts
# even where these tests were started in the background of a shell, which has it ignored.
STOPPED_IN_THE_SECOND_WINDOW = """
import os, pathlib, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and the program leaves it so
from sv4d2_core.diffusion.unet import UNet
number, folder, forward, passes = int(sys.argv.pop(1)), pathlib.Path(sys.argv.pop(1)), UNet.forward, []
def stopping(*args, **kwargs):
    passes.extend(folder.glob("window_*.safetensors"))
    if len(passes) == 2:
        os.kill(os.getpid(), number)
    return forward(*args, **kwargs)
UNet.forward = stopping
runpy.run_module("sv4d2_core", run_name="__main__")
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_killed_or_interrupted_and_continued_gives_the_same_bits(command, tmp_path, number, contents):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(command(whole, "--steps", 3)) == 0
    arguments = command(out, "--steps", 3)
    done = program(STOPPED_IN_THE_SECOND_WINDOW, int(number), out / ".windows", *arguments)
    killed = number == signal.SIGKILL
    assert done.returncode == (-number if killed else 130), done.stderr
    assert ("Interrupted" in done.stderr) != killed and "Traceback" not in done.stderr
    assert {path.name for path in out.iterdir()} == ({".windows", ".sv4d2.lock"} if killed else {".windows"})
    assert len(list((out / ".windows").glob("window_*.safetensors"))) == 1
    assert main(arguments) == 0
    assert run_of(out)["resumed_windows"] == 1 and contents(whole) == contents(out)


@pytest.mark.parametrize(
    "more,message",
    [
        (("--size", 34), r"divisible by 4; got 34. The nearest sizes are 32 and 36"),
        (("--azimuths", 5, 90, 180), r"must be elevation 0, azimuth 0.*got \(0, 5\)"),
        (("--elevations", 10), "one value for all views"),
        (("--elevations", 1, 2, "--ring-elevation", 3), "not both"),
        (("--rig", "4d", "--elevations", 1, 2), "--elevations.*with --rig 4d"),
        (("--memory-gb", 0.001), "at least .* GiB"),
        (("--device", "warp"), "a device of this machine; got 'warp'"),
        (("--mask", "nowhere.png"), "nowhere.png"),
        (("--reference-views", ROOT / "sv4d2_core"), "sv4d2_core"),
        (("--start", 99), "at least 100 frames.*got 7"),
    ],
)
def test_bad_options_leave_nothing_behind(refused, tmp_path, more, message):
    error = refused(tmp_path / "out", *more)
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


def test_bad_files_leave_nothing_behind(refused, tmp_path):
    out, broken, blocked = tmp_path / "out", tmp_path / "broken.mp4", tmp_path / "file"
    broken.write_bytes(b"not a video")
    assert "broken.mp4" in refused(out, clip=broken)
    assert "nowhere" in refused(out, clip=tmp_path / "nowhere")
    assert "broken.mp4" in refused(out, checkpoint=broken)
    assert not out.exists()
    blocked.write_text("")
    assert "a file stands at" in refused(blocked / "out")


WITHOUT_DISK = """
import resource, sys
from sv4d2_core.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
sys.exit(main(sys.argv[1:]))
"""


def test_other_masks_of_the_same_pictures_are_other_results(command, refused, tmp_path):
    picture, mask = np.full((32, 32, 3), 255, np.uint8), np.zeros((32, 32), np.uint8)
    picture[8:24, 8:24], mask[8:24, 8:24] = (200, 0, 0), 255
    picture[14:18, 14:18] = 255
    for name, array in (("clip", picture), ("masks", mask)):
        (tmp_path / name).mkdir()
        for t in range(3):
            Image.fromarray(array).save(tmp_path / name / f"{t:04d}.png")
    clip, out, masked = tmp_path / "clip", tmp_path / "out", ("--mask", tmp_path / "masks")
    plain = ("--centering", "none", "--size", 32)
    assert main(command(out, *plain, clip=clip)) == 0
    assert "(masks)" in refused(out, *plain, *masked, clip=clip)
    assert main(command(out, *plain, *masked, "--overwrite", clip=clip)) == 0
    assert run_of(out)["resumed_windows"] > 0 and (read_views(out).masks[:, 0, 14:18, 14:18] == 1).all()
    assert "(masks)" in refused(out, *plain, clip=clip)


def test_full_disk_is_one_message_and_continues_later(command, tmp_path):
    out = tmp_path / "out"
    done = program(WITHOUT_DISK, *command(out))
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert not [path for path in out.rglob("*") if path.is_file()]
    assert main(command(out)) == 0


def test_a_users_own_files_are_never_replaced(command, refused, clip_folder, tmp_path, contents):
    project, out = tmp_path / "project", tmp_path / "out"
    shutil.copytree(clip_folder, project / "frames")
    before = contents(project)
    for more in ((), ("--overwrite",)):
        assert "apart from the input" in refused(project, *more, clip=project / "frames")
        assert "never replaces" in refused(project, *more)
    assert contents(project) == before
    for place in (clip_folder, clip_folder / "out"):
        assert "apart from the input" in refused(place)
    assert main(command(out)) == 0
    assert "apart from the input" in refused(out, "--overwrite", clip=out / "frames" / "view_00")


def test_kept_windows_are_used_again_but_no_damaged_or_foreign_ones(command, refused, tmp_path, contents):
    out, other, damaged = tmp_path / "out", tmp_path / "other", tmp_path / "damaged"
    assert main(command(out)) == 0
    before = contents(out)
    (out / "frames/view_01/00003.png").unlink()
    (out / "view_02.mp4").unlink()
    assert main(command(out)) == 0
    assert contents(out) == before and run_of(out)["resumed_windows"] == 3
    for more in (("--cfg-max", "nan"), ("--seed", 10**20), ("--cfg-min", 5)):
        refused(out, *more, "--overwrite")
        assert contents(out) == before
    shutil.copytree(out / ".windows", other / ".windows")
    (other / ".windows/settings.json").unlink()
    assert main(command(other, "--seed", 99)) == 0
    assert run_of(other)["resumed_windows"] == 0
    shutil.copytree(out / ".windows", damaged / ".windows")
    (other / ".windows/notes.txt").write_text("of the user")
    (other / ".windows/settings.json").unlink()
    assert main(command(other, "--seed", 98, "--overwrite")) == 0
    assert (other / ".windows/notes.txt").read_text() == "of the user"
    (damaged / ".windows/window_001.safetensors").write_bytes(b"nothing")
    assert main(command(damaged)) == 0
    assert run_of(damaged)["resumed_windows"] == 2 and contents(damaged) == before
    message = refused(out, "--fps", 12)
    assert "(fps)" in message and "Nothing would be sampled again" in message
    assert main(command(out, "--fps", 12, "--overwrite")) == 0
    assert run_of(out)["resumed_windows"] == 3 and run_of(out)["fps"] == 12


def test_another_checkpoint_of_the_same_size_is_another_run(command, refused, micro_checkpoint, tmp_path):
    out, copy = tmp_path / "out", tmp_path / "copy.safetensors"
    assert main(command(out)) == 0
    content = bytearray(micro_checkpoint.read_bytes())
    content[-2000:-1000] = bytes(1000)
    copy.write_bytes(content)
    assert "(checkpoint)" in refused(out, checkpoint=copy)


DYING_WHEN_FILES_MOVE = """
import os, pathlib, sys
from sv4d2_core.__main__ import main
rename, left = pathlib.Path.rename, [int(sys.argv.pop(1))]
def dying(self, target):
    left[0] -= 1
    return os._exit(9) if left[0] < 0 else rename(self, target)
pathlib.Path.rename = dying
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("moves", [1, 6, 9, 14])
def test_killed_while_results_are_exchanged(command, tmp_path, moves, contents):
    """The process dies at some point of moving old results out and new ones in."""
    out = tmp_path / "out"
    assert main(command(out)) == 0
    before = contents(out)
    again = command(out, "--fps", "12", "--overwrite")
    assert program(DYING_WHEN_FILES_MOVE, moves, *again).returncode == 9 and (out / ".partial").exists()
    assert main(command(out)) == 0, "the old results are complete again"
    assert contents(out) == before
    assert main(again) == 0 and run_of(out)["fps"] == 12


def test_the_rig_for_scenes_takes_several_passes(command, tmp_path):
    assert main(command(tmp_path / "out", "--rig", "4d", "--input-elevation", 5, "--frames", 2)) == 0
    expected = replace(Cameras.for_scenes(), input_elevation_deg=5)
    assert read_views(tmp_path / "out").cameras == expected


def test_half_precision_cameras_and_reference_views(command, tmp_path):
    out, references = tmp_path / "out", tmp_path / "references"
    more = ["--azimuths", 0, 90, 180, 270, "--ring-elevation", 20, "--input-elevation", 5, "--frames", 2]
    assert main(command(out, *more, "--dtype", "bf16")) == 0
    assert run_of(out)["settings"]["dtype"] == "bfloat16"
    cameras = read_views(out).cameras
    assert cameras.azimuths_deg == (0, 0, 90, 180, 270) and cameras.elevations_deg == (0, 20, 20, 20, 20)
    assert cameras.input_elevation_deg == 5
    references.mkdir()
    for view in range(2):
        Image.new("RGB", (64, 64), (255, 100 * view, 0)).save(references / f"{view}.png")
    plain, referenced = tmp_path / "plain", tmp_path / "referenced"
    assert main(command(plain)) == main(command(referenced, "--reference-views", references)) == 0
    assert not torch.equal(read_views(plain).images[:, 1:], read_views(referenced).images[:, 1:])


def test_convert_and_info(micro_checkpoint, tmp_path, capsys):
    small = tmp_path / "small.safetensors"
    convert = ["convert", str(micro_checkpoint), str(small), "--variant", "sv4d2"]
    assert main(convert) == 0
    assert small.stat().st_size < 0.6 * micro_checkpoint.stat().st_size
    assert main(convert) == 2 and "FileExists" not in capsys.readouterr().err
    assert main(["info", str(small)]) == main(["info", "tiny"]) == 0
    assert "SV4D 2.0" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "nothing.safetensors")]) == 2


def test_help_and_version_need_no_torch():
    def said(*words):
        line = [sys.executable, "-X", "importtime", "-m", "sv4d2_core", *words]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
        assert "torch" not in done.stderr and "numpy" not in done.stderr
        return done.stdout

    for name in ("views", "convert", "info", "demo"):
        assert name in said("--help")
    assert said("--version") == f"sv4d2 {__version__}\n"


def test_tiny_and_sample_name_what_comes_with_the_pack(tmp_path, monkeypatch):
    for words in (["views", "sample"], ["refine", "folder"]):
        parsed = build_parser().parse_args([*words, "--out", "x", "--checkpoint", "tiny"])
        assert parsed.checkpoint == TINY_MODEL
        assert words[0] == "refine" or parsed.input == str(SAMPLE_CLIP)
    monkeypatch.chdir(tmp_path)
    Path("sample").mkdir()
    assert common.clip_place("sample") == "sample", "a clip of that name comes first"


def test_a_demo_replaces_what_demos_wrote_and_nothing_else(tmp_path, monkeypatch, capsys):
    jobs = demo.views, demo.refine, demo.render, demo.export
    for job in jobs:
        monkeypatch.setattr(job, "run", lambda options: options.out.touch())
    out = tmp_path / "out"
    for _ in range(2):
        assert main(["demo", "--out", str(out)]) == 0
    with monkeypatch.context() as patch:
        seen, sheet = [], demo.contact_sheet
        patch.setattr(demo, "contact_sheet", lambda truth: seen.append(truth) or sheet(truth))
        assert main(["demo", "--out", str(out), "--options=--rig 4d --size 32"]) == 0
    assert seen[0].cameras.azimuths_deg == Cameras.for_scenes().azimuths_deg and seen[0].images.shape[2] == 32
    entries = json.loads((out / "demo.json").read_text())["entries"]
    older = tmp_path / "older"
    (older / "views").mkdir(parents=True)
    (older / "scene.glb").write_text("of a version that left no mark")
    run = {"options": {"input": "older/sample_clip", "out": "older/views"}}
    (older / "views/run.json").write_text(json.dumps(run))
    monkeypatch.setattr(demo.views, "run", lambda options: None)
    assert main(["demo", "--out", str(older)]) == 0 and (older / "demo.json").exists()
    assert {path.name for path in out.iterdir()} == set(entries) - {"scene.fit", "scene.fit.png"}
    for name in entries:
        mine = tmp_path / f"with {name}" / name
        mine.parent.mkdir()
        mine.write_text("mine")
        assert main(["demo", "--out", str(mine.parent)]) == 2
        error = capsys.readouterr().err
        assert f"holds {name}, which" in error and "Choose another folder or move them away" in error
        assert [path.name for path in mine.parent.iterdir()] == [name] and mine.read_text() == "mine"


@pytest.mark.parametrize("place", ["before", "after"])
def test_quiet_says_only_what_went_wrong(command, tmp_path, capsys, place):
    words = command(tmp_path / "out")
    assert main(["-q", *words] if place == "before" else [*words, "--quiet"]) == 0
    said = capsys.readouterr().err
    assert "UNTRAINED" in said and "Done in" not in said and "sampling" not in said
    assert "quiet" not in run_of(tmp_path / "out")["options"]


def test_progress_outside_a_terminal_is_a_line_every_few_seconds(monkeypatch, caplog):
    caplog.set_level("INFO")
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with common.Progress("fitting") as progress:
        for step in range(1, 1001):
            now[0] += 0.02
            progress(step, 1000, note="loss 1")
    assert 3 <= len(caplog.messages) <= 5
    assert caplog.messages[-1] == "fitting: 1000 of 1000 steps, loss 1"


@pytest.mark.parametrize("best", ["cuda", "xpu", "mps", "cpu"])
def test_auto_takes_the_fastest_device_that_is_there(monkeypatch, best):
    kinds = {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.backends.mps, "cpu": None}
    for i, known in enumerate(list(kinds.values())[:3]):
        monkeypatch.setattr(known, "is_available", lambda i=i: i >= list(kinds).index(best))
    assert common.choose_device("auto").type == best


def test_a_gpu_has_its_index(monkeypatch):
    """PyTorch limits the memory of a device with an index alone."""
    with PretendCuda(devices=2):
        for name in ("auto", "cuda", "cuda:0"):
            assert common.choose_device(name) == torch.device("cuda:0")
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert common.choose_device("auto") == torch.device("cuda:1")
