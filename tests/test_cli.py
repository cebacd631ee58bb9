"""The command line as a user runs it: results, exit codes, messages, resume."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sv4d2_core import read_views
from sv4d2_core.cli import build_parser, main
from sv4d2_core.shipped import TINY_MODEL

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """Return a folder of 7 RGBA frames, 48 x 40, of a disc that moves."""
    folder = tmp_path_factory.mktemp("clip")
    y, x = np.mgrid[0:40, 0:48]
    for t in range(7):
        disc = (x - 18 - 2 * t) ** 2 + (y - 20) ** 2 <= 81
        picture = np.zeros((40, 48, 4), np.uint8)
        picture[disc] = (200, 30 * t, 40, 255)
        Image.fromarray(picture).save(folder / f"{t}.png")
    return folder


def command(clip_folder, checkpoint, out, *more):
    return [
        "views",
        str(clip_folder),
        "--checkpoint",
        str(checkpoint),
        "--out",
        str(out),
        "--variant",
        "sv4d2",
    ] + [
        "--steps",
        "2",
        *map(str, more),
    ]


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


def fails(capsys, arguments, code=2):
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_views_writes_the_whole_folder(clip_folder, micro_checkpoint, tmp_path):
    out = tmp_path / "out"
    assert main(command(clip_folder, micro_checkpoint, out, "--save-latents", "--memory-gb", 4)) == 0
    for name in ("view_00.mp4", "view_01.mp4", "view_02.mp4", "contact_sheet.png", "cameras.json"):
        assert (out / name).stat().st_size > 0
    for name in ("transforms.json", "transforms_train.json", "run.json", "latents"):
        assert (out / name).exists()
    assert len(list((out / "frames").rglob("*.png"))) == len(list((out / "masks").rglob("*.png"))) == 3 * 7
    run = json.loads((out / "run.json").read_text())
    assert (
        run["seed"] == 23 and run["steps"] == 2 and run["trained"] is False and "UNTRAINED" in run["warning"]
    )
    assert run["peak_memory_gb"]["resident"] > 0 and run["seconds"]["sample"] > 0
    assert run["versions"]["torch"] == torch.__version__
    grid = read_views(out)
    assert grid.images.shape == (7, 3, 32, 32, 3)
    assert grid.latents is not None and grid.latents.shape == (7, 2, 4, 16, 16)
    cameras = json.loads((out / "cameras.json").read_text())
    assert cameras["crop"]["source_width"] == 48 and len(cameras["crop"]["centers"]) == 7


def test_a_finished_run_says_so_and_other_settings_are_refused(
    clip_folder, micro_checkpoint, tmp_path, capsys
):
    out = tmp_path / "out"
    assert main(command(clip_folder, micro_checkpoint, out)) == 0
    before = contents(out)
    capsys.readouterr()
    assert main(command(clip_folder, micro_checkpoint, out)) == 0
    assert "already complete" in capsys.readouterr().err
    message = fails(capsys, command(clip_folder, micro_checkpoint, out, "--seed", 1))
    assert "--overwrite" in message and contents(out) == before
    assert main(command(clip_folder, micro_checkpoint, out, "--seed", 1, "--overwrite")) == 0
    assert json.loads((out / "run.json").read_text())["seed"] == 1
    assert contents(out) != before


# Sends its own process a signal at the second forward pass after the first window was kept. Ctrl-C counts
# even where these tests were started in the background of a shell, which has it ignored.
STOPPED_IN_THE_SECOND_WINDOW = """
import os, pathlib, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
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


def stopped_in_the_second_window(number, out, arguments):
    return subprocess.run(
        [sys.executable, "-c", STOPPED_IN_THE_SECOND_WINDOW, str(int(number)), out / ".windows", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_killed_and_continued_gives_the_same_bits(clip_folder, micro_checkpoint, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ("--steps", 3)
    assert main(command(clip_folder, micro_checkpoint, whole, *more)) == 0
    arguments = command(clip_folder, micro_checkpoint, killed, *more)
    done = stopped_in_the_second_window(signal.SIGKILL, killed, arguments)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list((killed / ".windows").glob("window_*.safetensors"))) == 1
    assert not (killed / "run.json").exists()
    assert main(arguments) == 0
    assert json.loads((killed / "run.json").read_text())["resumed_windows"] == 1
    assert contents(whole) == contents(killed)


def test_interrupt_exits_with_130_and_keeps_windows(clip_folder, micro_checkpoint, tmp_path):
    out = tmp_path / "out"
    arguments = command(clip_folder, micro_checkpoint, out, "--steps", 3)
    done = stopped_in_the_second_window(signal.SIGINT, out, arguments)
    assert done.returncode == 130, done.stderr
    assert "Interrupted" in done.stderr and "Traceback" not in done.stderr
    assert sorted(p.name for p in out.iterdir()) == [".windows"]


@pytest.mark.parametrize(
    "more,message",
    [
        (("--size", 34), r"divisible by 4; got 34. The nearest sizes are 32 and 36"),
        (("--azimuths", 5, 90, 180), r"must be elevation 0, azimuth 0.*got \(0, 5\)"),
        (("--elevations", 10), "one value for all views"),
        (("--elevations", 1, 2, "--ring-elevation", 3), "not both"),
        (("--memory-gb", 0.001), "at least .* GiB"),
        (("--device", "warp"), "a device of this machine; got 'warp'"),
        (("--mask", "nowhere.png"), "nowhere.png"),
        (("--reference-views", ROOT / "sv4d2_core"), "sv4d2_core"),
        (("--start", 99), "at least 100 frames.*got 7"),
    ],
)
def test_bad_options_leave_nothing_behind(clip_folder, micro_checkpoint, tmp_path, capsys, more, message):
    out = tmp_path / "out"
    error = fails(capsys, command(clip_folder, micro_checkpoint, out, *more))
    assert re.search(message, error), error
    assert not out.exists()


@pytest.mark.parametrize("option", ["--frames", "--steps", "--every"])
def test_counts_below_one_are_usage_errors(clip_folder, micro_checkpoint, tmp_path, capsys, option):
    with pytest.raises(SystemExit) as stop:
        main(command(clip_folder, micro_checkpoint, tmp_path / "out", option, 0))
    assert stop.value.code == 2
    assert "at least 1" in capsys.readouterr().err


def test_bad_files_leave_nothing_behind(clip_folder, micro_checkpoint, tmp_path, capsys):
    out, broken = tmp_path / "out", tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    assert "broken.mp4" in fails(capsys, command(broken, micro_checkpoint, out))
    assert "nowhere" in fails(capsys, command(tmp_path / "nowhere", micro_checkpoint, out))
    assert "broken.mp4" in fails(capsys, command(clip_folder, broken, out))
    assert not out.exists()
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "writable" in fails(capsys, command(clip_folder, micro_checkpoint, blocked / "out"))


def test_full_disk_is_one_message_and_continues_later(clip_folder, micro_checkpoint, tmp_path):
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))\n"
        "from sv4d2_core.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    out = tmp_path / "out"
    arguments = command(clip_folder, micro_checkpoint, out)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in out.rglob("*") if path.is_file()]
    assert main(arguments) == 0


def test_a_users_own_files_are_never_replaced(clip_folder, micro_checkpoint, tmp_path, capsys):
    project = tmp_path / "project"
    shutil.copytree(clip_folder, project / "frames")
    before = contents(project)
    for more in ((), ("--overwrite",)):
        arguments = command(project / "frames", micro_checkpoint, project, *more)
        assert "did not write" in fails(capsys, arguments)
    assert contents(project) == before
    assert "apart from the input" in fails(capsys, command(clip_folder, micro_checkpoint, clip_folder))
    out = tmp_path / "out"
    assert main(command(clip_folder, micro_checkpoint, out)) == 0
    inside = command(out / "frames" / "view_00", micro_checkpoint, out, "--overwrite")
    assert "apart from the input" in fails(capsys, inside)


def test_missing_results_are_made_again_from_the_windows(clip_folder, micro_checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(clip_folder, micro_checkpoint, out)) == 0
    before = contents(out)
    (out / "frames/view_01/00003.png").unlink()
    (out / "view_02.mp4").unlink()
    assert main(command(clip_folder, micro_checkpoint, out)) == 0
    assert contents(out) == before
    assert json.loads((out / "run.json").read_text())["resumed_windows"] == 3


def test_output_options_alone_sample_nothing_again(clip_folder, micro_checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(clip_folder, micro_checkpoint, out)) == 0
    message = fails(capsys, command(clip_folder, micro_checkpoint, out, "--fps", 12))
    assert "(fps)" in message and "Nothing would be sampled again" in message
    assert main(command(clip_folder, micro_checkpoint, out, "--fps", 12, "--overwrite")) == 0
    run = json.loads((out / "run.json").read_text())
    assert run["resumed_windows"] == 3 and run["fps"] == 12


def test_damaged_and_orphaned_windows_are_not_trusted(clip_folder, micro_checkpoint, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    assert main(command(clip_folder, micro_checkpoint, out)) == 0
    expected = contents(out)
    shutil.copytree(out / ".windows", other / ".windows")
    (other / ".windows/settings.json").unlink()
    assert main(command(clip_folder, micro_checkpoint, other, "--seed", 99)) == 0
    assert json.loads((other / "run.json").read_text())["resumed_windows"] == 0
    damaged = tmp_path / "damaged"
    shutil.copytree(out / ".windows", damaged / ".windows")
    (damaged / ".windows/window_001.safetensors").write_bytes(b"nothing")
    assert main(command(clip_folder, micro_checkpoint, damaged)) == 0
    assert json.loads((damaged / "run.json").read_text())["resumed_windows"] == 2
    assert contents(damaged) == expected


def test_another_checkpoint_of_the_same_size_is_another_run(clip_folder, micro_checkpoint, tmp_path, capsys):
    out, copy = tmp_path / "out", tmp_path / "copy.safetensors"
    assert main(command(clip_folder, micro_checkpoint, out)) == 0
    content = bytearray(micro_checkpoint.read_bytes())
    content[-2000:-1000] = bytes(1000)
    copy.write_bytes(content)
    assert "(checkpoint)" in fails(capsys, command(clip_folder, copy, out))


def test_bad_sampling_options_keep_finished_windows(clip_folder, micro_checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(clip_folder, micro_checkpoint, out)) == 0
    before = contents(out)
    for more in (("--cfg-max", "nan"), ("--seed", 10**20), ("--cfg-min", 5), ("--memory-gb", 0.001)):
        fails(capsys, command(clip_folder, micro_checkpoint, out, *more, "--overwrite"))
        assert contents(out) == before


def test_two_runs_never_share_a_folder(clip_folder, micro_checkpoint, tmp_path, capsys):
    from sv4d2_core.commands.common import exclusive

    out = tmp_path / "out"
    with exclusive(out):
        assert "Another process" in fails(capsys, command(clip_folder, micro_checkpoint, out))
    assert not out.exists()


@pytest.mark.parametrize("moves", [1, 6, 9, 14])
def test_killed_while_results_are_exchanged(clip_folder, micro_checkpoint, tmp_path, moves):
    """The process dies at some point of moving old results out and new ones in."""
    out = tmp_path / "out"
    assert main(command(clip_folder, micro_checkpoint, out)) == 0
    before = contents(out)
    script = (
        "import os, pathlib, sys\n"
        "from sv4d2_core.cli import main\n"
        "rename, left = pathlib.Path.rename, [int(sys.argv.pop(1))]\n"
        "def dying(self, target):\n"
        "    left[0] -= 1\n"
        "    return os._exit(9) if left[0] < 0 else rename(self, target)\n"
        "pathlib.Path.rename = dying\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    again = command(clip_folder, micro_checkpoint, out, "--fps", "12", "--overwrite")
    done = subprocess.run(
        [sys.executable, "-c", script, str(moves), *again],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 9 and (out / ".partial").exists()
    assert main(command(clip_folder, micro_checkpoint, out)) == 0, "the old results are complete again"
    assert contents(out) == before
    assert main(again) == 0
    assert json.loads((out / "run.json").read_text())["fps"] == 12


def test_half_precision_runs(clip_folder, micro_checkpoint, tmp_path):
    out = tmp_path / "out"
    assert main(command(clip_folder, micro_checkpoint, out, "--dtype", "bf16")) == 0
    assert json.loads((out / "run.json").read_text())["settings"]["dtype"] == "bfloat16"


def test_ring_elevation_and_passes(clip_folder, micro_checkpoint, tmp_path):
    out = tmp_path / "out"
    more = ("--azimuths", 0, 90, 180, 270, "--ring-elevation", 20, "--input-elevation", 5, "--frames", 2)
    assert main(command(clip_folder, micro_checkpoint, out, *more)) == 0
    cameras = read_views(out).cameras
    assert cameras.azimuths_deg == (0, 0, 90, 180, 270) and cameras.elevations_deg == (0, 20, 20, 20, 20)
    assert cameras.input_elevation_deg == 5


def test_reference_views_change_the_result(clip_folder, micro_checkpoint, tmp_path):
    references = tmp_path / "references"
    references.mkdir()
    for view in range(2):
        Image.new("RGB", (64, 64), (255, 100 * view, 0)).save(references / f"{view}.png")
    plain, referenced = tmp_path / "plain", tmp_path / "referenced"
    assert main(command(clip_folder, micro_checkpoint, plain)) == 0
    more = ("--reference-views", references)
    assert main(command(clip_folder, micro_checkpoint, referenced, *more)) == 0
    assert not torch.equal(read_views(plain).images[:, 1:], read_views(referenced).images[:, 1:])


def test_convert_and_info(micro_checkpoint, tmp_path, capsys):
    small = tmp_path / "small.safetensors"
    assert main(["convert", str(micro_checkpoint), str(small), "--variant", "sv4d2"]) == 0
    assert small.stat().st_size < 0.6 * micro_checkpoint.stat().st_size
    assert "FileExists" not in fails(capsys, ["convert", str(micro_checkpoint), str(small)])
    assert main(["info", str(small)]) == 0
    assert "SV4D 2.0" in capsys.readouterr().out
    fails(capsys, ["info", str(tmp_path / "nothing.safetensors")])


def test_module_runs_and_lists_its_commands():
    done = subprocess.run(
        [sys.executable, "-m", "sv4d2_core", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in ("views", "convert", "info", "demo"):
        assert name in done.stdout


def test_tiny_names_the_model_that_comes_with_the_pack():
    for command in (["views", "clip.gif"], ["refine", "folder"]):
        parsed = build_parser().parse_args([*command, "--out", "x", "--checkpoint", "tiny"])
        assert parsed.checkpoint == TINY_MODEL
