"""The commands `scenes` and `metrics` as a user runs them."""

import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from sv4d2_core.__main__ import main
from sv4d2_core.data.views_folder import read_views, write_views
from sv4d2_core.world import corrupt_views


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Return the folder that `scenes` makes of two scenes, cut to 3 frames to be quick to score."""
    folder = tmp_path_factory.mktemp("scenes")
    only = ("--only", "owl", "robot_arm")
    assert main(["scenes", "--out", str(folder), "--size", "32", "--corrupt", "1", *only]) == 0
    for place in folder.glob("*/*"):
        write_views(place, read_views(place).at_frames(range(3)), overwrite=True)
    return folder


def score(out: Path, *arguments: object) -> dict:
    """Run `metrics` and return the content of report.json."""
    assert main(["metrics", *map(str, arguments), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"report.json", "report.md", "report.html"}
    return json.loads((out / "report.json").read_text())


def fails(capsys, out: Path, *arguments: object) -> str:
    assert main(["metrics", *map(str, arguments), "--out", str(out)]) == 2
    assert not out.exists() or not list(out.glob("report.*"))
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def rows(markdown: str, title: str) -> list[str]:
    """Return the first cells of a table's rows."""
    lines = markdown.split(f"## {title}")[1].split("##")[0].splitlines()
    return [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:]


def test_scenes_are_complete_folders_with_true_times(scenes):
    parts = {"train", "train_corrupted", "held_out", "held_out_between"}
    assert {path.name for path in scenes.iterdir()} == parts
    train, spoilt = (read_views(scenes / part / "owl") for part in ("train", "train_corrupted"))
    assert train.settings is not None and spoilt.settings is not None
    assert train.settings["scene"] == "owl" and spoilt.settings["corruption"]["strength"] == 1
    expected = corrupt_views(train, 0)
    assert not torch.equal(spoilt.images, train.images) and expected.cameras == spoilt.cameras
    between = json.loads((scenes / "held_out_between/owl/transforms.json").read_text())
    assert between["frames"][0]["time"] == pytest.approx(0.5 / 11)


def test_scenes_that_are_there_are_left_alone_and_others_refused(tmp_path, capsys):
    command = ["scenes", "--out", str(tmp_path), "--size", "16", "--only", "flamingo"]
    assert main(command) == 0
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert main([*command, "--corrupt", "0.5"]) == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert main([*command, "--corrupt", "1"]) == 2
    assert "train_corrupted/flamingo" in capsys.readouterr().err.replace("\\", "/")
    (tmp_path / "held_out/flamingo/frames/view_01/00003.png").unlink()
    assert main([*command, "--overwrite"]) == 0
    assert (tmp_path / "held_out/flamingo/frames/view_01/00003.png").is_file()
    for more, message in (("--only unicorn", "--only out of walker, runner"), ("--size 33", "even --size")):
        assert main(["scenes", "--out", str(tmp_path / "none"), *more.split()]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_one_scene_against_the_truth_in_any_encoding(scenes, tmp_path, capsys, monkeypatch):
    report = score(tmp_path / "report", scenes / "train_corrupted/owl", scenes / "train/owl")
    assert "| predicted |" in capsys.readouterr().out
    assert report["kind"] == "sv4d2 evaluation report"
    markdown = (tmp_path / "report/report.md").read_text()
    assert rows(markdown, "Against the true views") == ["predicted"]
    assert rows(markdown, "Without true views") == ["reference", "predicted"]
    assert "--lpips FILE" in markdown
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", narrow)
    score(tmp_path / "narrow", scenes / "train/owl")
    narrow.flush()
    assert b"flicker ?" in narrow.buffer.getvalue()


def test_methods_side_by_side_in_every_form(scenes, tmp_path):
    """Our folder, its transforms file, and plain clips of the novel views alone, whose cameras are given."""
    clips = tmp_path / "clips"
    for view in range(1, 5):
        shutil.copytree(scenes / f"train/owl/frames/view_{view:02d}", clips / f"v{view}")
    owl = scenes / "train/owl"
    methods = (f"same={owl}", f"file={owl / 'transforms.json'}", f"clips={clips}")
    report = score(tmp_path / "report", owl, "--methods", *methods, "--size", 24, "--frames", 2)
    assert all(name in json.dumps(report) for name in ("same", "file", "clips"))
    markdown = (tmp_path / "report/report.md").read_text()
    assert rows(markdown, "Against the true views") == ["same", "file", "clips"]
    table = markdown.split("## Against the true views")[1].split("##")[0]
    assert table.count("∞") == 9  # three kinds of PSNR
    assert "Frames: 2" in markdown and "24 x 24" in markdown


@pytest.mark.parametrize(("kept", "frames"), [(2, 2), (3, 2)])
def test_clips_of_other_lengths_are_cut_alike(scenes, tmp_path, kept, frames):
    """The input view that novel views alone take from the reference is cut, too."""
    clips = tmp_path / "clips"
    for view in range(1, 5):
        shutil.copytree(scenes / f"train/owl/frames/view_{view:02d}", clips / f"v{view}")
        for file in sorted((clips / f"v{view}").iterdir())[kept:]:
            file.unlink()
    report = score(tmp_path / "report", clips, scenes / "train/owl", "--frames", frames)
    assert report["summary"]["predicted"]["values"]["PSNR"] == "inf"


def test_plain_clips_alone_need_cameras(scenes, tmp_path, capsys):
    clips = tmp_path / "clips"
    shutil.copytree(scenes / "train/owl/frames", clips)
    assert "--cameras FILE" in fails(capsys, tmp_path / "report", clips)
    cameras = scenes / "train/owl/cameras.json"
    by_file = score(tmp_path / "a", clips, "--cameras", cameras)
    by_list = score(tmp_path / "b", clips, "--azimuths", 60, 120, 180, 240)
    values = [report["summary"]["predicted"]["values"] for report in (by_file, by_list)]
    assert values[0] == values[1] and values[0]["tangency"] > 0
    assert "states its own cameras" not in capsys.readouterr().err
    score(tmp_path / "c", scenes / "train/owl", "--azimuths", 30, 120, 180, 240)
    assert "train/owl states its own cameras; those given are" in capsys.readouterr().err
    assert "True views: none" in (tmp_path / "b/report.md").read_text()


def test_a_folder_of_scenes_is_scored_as_a_whole(scenes, tmp_path, capsys):
    report = score(tmp_path / "report", scenes / "train_corrupted", scenes / "train")
    assert list(report["scenes"]) == ["owl", "robot_arm"]
    assert report["summary"]["predicted"]["n_scenes"] == 2
    assert report["run"]["options"]["overwrite"] is False
    lacking = tmp_path / "lacking"
    shutil.copytree(scenes / "train/owl", lacking / "owl")
    score(tmp_path / "second", scenes / "train", "--methods", f"A={lacking}", f"B={scenes / 'train'}")
    assert "A lacks 1 of 2 scenes: robot_arm" in capsys.readouterr().err
    shutil.copytree(scenes / "train/robot_arm", lacking / "robot")
    score(tmp_path / "third", lacking, scenes / "train")
    assert "has 1 scenes to compare with nothing: robot" in capsys.readouterr().err
    assert "- A: 1 of 2 scenes." in (tmp_path / "second/report.md").read_text()


def test_names_that_are_not_utf8_are_scored_too(scenes, tmp_path):
    for name in ("owl", os.fsdecode(b"caf\xe9")):
        shutil.copytree(scenes / "train/owl", tmp_path / "scenes" / name)
    score(tmp_path / "report", tmp_path / "scenes")
    for page in ("report.html", "report.md"):
        assert "caf?" in (tmp_path / "report" / page).read_text(encoding="utf-8")


def test_a_report_is_replaced_only_when_asked(scenes, tmp_path, capsys):
    out = tmp_path / "report"
    score(out, scenes / "train/owl")
    before = (out / "report.json").read_bytes()
    assert main(["metrics", str(scenes / "train/robot_arm"), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (out / "report.json").read_bytes() == before
    score(out, scenes / "train/robot_arm", "--overwrite")
    assert (out / "report.json").read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing_here"], "nothing is there. Three kinds are understood"),
        ([], "got 0 places"),
        (["a", "b", "c"], "got 3 places"),
        (["{train}", "--methods", "x"], "NAME=DIR with different names; got x"),
        (["{train}", "--methods", "x={train}", "x={train}"], "NAME=DIR with different names"),
        (["{train}", "--methods", "x={train}", "x ={train}"], "NAME=DIR with different names"),
        (["{held_out}", "{train}", "--methods", "predicted={train}"], "another name than 'predicted'"),
        (["{between}", "{held_out}"], "frame 0 of {between} shows time 0.0455, the reference's 0"),
        (["{train}", "--elevations", "5"], "got --elevations alone"),
        (["{train}", "--cameras", "c.json", "--azimuths", "5"], "got both"),
        (["{train}", "{held_out}"], "from the reference's cameras (azimuth 45 elevation 0"),
        (["{train}", "--frames", "9"], "at least --frames 9"),
        (["{train}", "--shrinkage", "2"], "a number from 0 to 1, got 2"),
        *((["{train}", option, "none.pt"], "no file none.pt") for option in ("--lpips", "--clip", "--i3d")),
        (["{train}", "--device", "nowhere"], "a device of this machine; got 'nowhere'"),
        (["{train}", "--methods", "reference={train}"], "reference"),
    ],
)
def test_bad_input_is_one_message(scenes, tmp_path, capsys, arguments, message):
    places = {name: str(scenes / name / "owl") for name in ("train", "held_out")}
    places["between"] = str(scenes / "held_out_between/owl")
    filled = [text.format(**places) for text in arguments]
    assert message.format(**places) in fails(capsys, tmp_path / "report", *filled)
