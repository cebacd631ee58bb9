"""Files of others are never touched, those of dead processes go, and nobody writes where another does."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sv4d2_core.__main__ import main
from sv4d2_core.cameras import Cameras
from sv4d2_core.data.datasets import write_dataset
from sv4d2_core.data.views_folder import write_views
from sv4d2_core.export.report import write_report
from sv4d2_core.files import all_or_nothing, exclusive, exclusive_file, recover, write_whole, writing_whole
from sv4d2_core.messages import listed
from sv4d2_core.shipped import TINY_MODEL
from sv4d2_core.views import ViewGrid

ROOT = Path(__file__).resolve().parents[1]


def staged(folder: Path, swap: bytes | None) -> Path:
    """Return the staging folder of a job that was killed while it replaced entries."""
    staging = folder / ".partial"
    for name in ("new", "old"):
        (staging / name).mkdir(parents=True)
    list_file = staging / "swap.json"
    list_file.mkdir() if swap is None else list_file.write_bytes(swap)
    return staging


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([], "none"),
        (range(3), "0, 1, 2"),
        (["x" * 500] * 9, "x" * 77 + "... and 8 more"),
        ([name * 70 for name in "abc"], f"{'a' * 70}, {'b' * 70} and 1 more"),
    ],
)
def test_lists_in_messages_are_short(items, text):
    assert listed(items) == text


@pytest.mark.parametrize("text", [None, b"", b"\0" * 9, b"[" * 5000, b"{}", b"[1, null]"])
def test_a_damaged_list_of_entries_locks_no_folder_and_loses_nothing(tmp_path, text):
    (staged(tmp_path, text) / "old/run.json").write_text("the user's last result")
    with exclusive(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_unfinished_results_and_locks_of_other_programs_stay(tmp_path):
    download, lock = tmp_path / ".partial/download.bin", tmp_path / ".lock"
    download.parent.mkdir()
    download.write_text("of the user")
    lock.write_text("4711")
    with pytest.raises(FileExistsError, match="it holds download.bin, which this program did not write"):
        with exclusive(tmp_path):
            pass
    assert download.read_text() == "of the user" and lock.read_text() == "4711"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".partial"]


@pytest.mark.parametrize("name", ["../victim", "a/../../victim", "..", "", "{absolute}", "c:victim", "a\\b"])
def test_a_foreign_list_of_entries_leads_nowhere(tmp_path, name):
    folder, victim = tmp_path / "folder", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("a file of the user")
    staged(folder, json.dumps([name.format(absolute=victim)]).encode())
    recover(folder)
    assert victim.read_text() == "a file of the user" and list(folder.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows allows no such names")
def test_colons_and_backslashes_in_names_are_letters(tmp_path, monkeypatch):
    name, rename = "cat 12:30 a\\b", Path.rename

    def failing(self, target):
        if self.name == "run.json":
            raise OSError(errno.EIO, "broken")
        return rename(self, target)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="broken"):
        patched.setattr(Path, "rename", failing)
        with all_or_nothing(tmp_path, list, "run.json", 0) as staging:
            (staging / name).mkdir()
            (staging / "run.json").touch()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("link", [".partial", ".partial/new", ".partial/old"])
def test_a_staging_folder_that_is_a_link_is_not_followed(tmp_path, link, caplog):
    folder, victim = tmp_path / "folder", tmp_path / "victim"
    staged(victim, b"[]")
    (victim / "old").mkdir()
    (victim / "old/file").write_text("a file of the user")
    (folder / link).parent.mkdir(parents=True)
    for name in ("new", "old"):
        if link != ".partial" and not link.endswith(name):
            (folder / ".partial" / name).mkdir()
    (folder / link).symlink_to(victim / link.removeprefix(".partial/"), target_is_directory=True)
    (victim / "new").mkdir()
    with all_or_nothing(folder, list, "run.json", 0) as staging:
        (staging / "run.json").touch()
    assert [path.name for path in folder.iterdir()] == ["run.json"] and (victim / "old/file").exists()
    assert "Dropped" in caplog.text


def test_results_that_cannot_be_moved_back_at_once_come_back_with_the_next_job(tmp_path, monkeypatch):
    (tmp_path / "run.json").write_text("old")
    rename, moves = Path.rename, iter([True])

    def fails_the_second_time(*places: Path) -> Path:
        if next(moves, False):
            return rename(*places)
        raise PermissionError("held open by another program")

    with monkeypatch.context() as patched, pytest.raises(PermissionError):
        patched.setattr(Path, "rename", fails_the_second_time)
        with all_or_nothing(tmp_path, lambda: ["run.json"], "run.json", 0) as staging:
            (staging / "run.json").write_text("new")
    with exclusive(tmp_path):
        assert (tmp_path / "run.json").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


# Dies before the n-th change of the disk while it replaces results, and again while it undoes that.
DYING_TWICE = """
import os, shutil, sys
from pathlib import Path
from sv4d2_core.files import all_or_nothing, exclusive

folder, changes = Path(sys.argv[1]), {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}

def fill(place, text):
    for name in ("run.json", text):
        (place / name).write_text(text)
    return content()

def content():
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}

def replace():
    with all_or_nothing(folder, lambda: [*old], "run.json", 0) as staging:
        fill(staging, "new")

def undo():
    with exclusive(folder):
        pass

def dies(job, left):
    def count(event, _):
        nonlocal left
        left -= event in changes
        if left < 0:
            os._exit(9)

    if not (process := os.fork()):
        sys.addaudithook(count)
        job()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9

first = second = 0
died = True
while died:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    old = fill(folder, "old")
    died = dies(replace, first)
    first, second = (first, second + 1) if dies(undo, second) else (first + 1, 0)
    undo()
    new = {"run.json": "new", "new": "new"}
    assert content() in (old, new) and len(list(folder.iterdir())) == 2, (first, second, content())
assert first > 9 and content() == new
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="ends processes of its own kind")
def test_killed_while_results_are_exchanged_and_killed_while_that_is_undone(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", DYING_TWICE, str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_devices_pipes_and_folders_are_never_replaced_and_links_are_followed(tmp_path):
    pipe, link, real = tmp_path / "pipe", tmp_path / "link", tmp_path / "real"
    os.mkfifo(pipe)
    for place, what in (
        (pipe, "a device or a pipe"),
        (Path("/dev/null"), "a device"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(FileExistsError, match=what):
            write_whole(place, b"new")
    real.write_text("old")
    link.symlink_to(real)
    with pytest.raises(FileExistsError, match="exists already"):
        write_whole(link, b"new", overwrite=False)
    write_whole(link, b"new")
    assert link.is_symlink() and real.read_text() == "new"
    real.unlink()
    write_whole(link, b"newer", overwrite=False)
    assert real.read_text() == "newer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "real"]


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_what_comes_in_between_is_not_replaced(tmp_path, monkeypatch, links):
    target = tmp_path / "target"

    def refuse(*_):
        raise PermissionError("no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    sync = os.fsync

    def meanwhile(descriptor: int) -> None:
        sync(descriptor)
        target.write_text("of another program")

    write_whole(tmp_path / "first", b"new", overwrite=False)
    assert (tmp_path / "first").read_text() == "new"
    monkeypatch.setattr(os, "fsync", meanwhile)
    with pytest.raises(FileExistsError, match="exists already"):
        write_whole(target, b"new", overwrite=False)
    assert target.read_text() == "of another program" and len(list(tmp_path.iterdir())) == 2


def test_what_a_killed_process_left_of_a_file_goes_and_other_files_stay(tmp_path):
    kept = [".x.ply.part", ".x.ply.0123456.part", ".video.mp4.part", ".y.ply.0123abcd.part"]
    for name in [*kept, ".x.ply.0123abcd.part", ".x.ply.sv4d2.lock"]:
        (tmp_path / name).touch()
    with exclusive_file(tmp_path / "x.ply"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_what_a_living_process_writes_is_left_alone(tmp_path, monkeypatch):
    replace = Path.replace

    def others() -> None:
        with exclusive(tmp_path), exclusive_file(tmp_path / "x.ply"):
            pass

    monkeypatch.setattr(Path, "replace", lambda *places: (others(), replace(*places)))
    with writing_whole(tmp_path / "x.ply") as file:
        file.write(b"whole")
        others()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"whole"]


HOLDER = """
import pathlib, sys
from sv4d2_core.files import {0}
with {0}(pathlib.Path(sys.argv[1])):
    print(flush=True)
    sys.stdin.readline()
"""


@contextmanager
def held(place: Path, by: str = "exclusive") -> Iterator[subprocess.Popen[str]]:
    """Have another process hold a place inside the block, or until it is killed."""
    command, pipe = [sys.executable, "-c", HOLDER.format(by), str(place)], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "\n"
        yield process
        process.communicate("\n")


def test_a_folder_is_held_by_one_process_wherever_its_temporary_files_are(tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # as in another container
    with held(out), pytest.raises(ValueError, match="Another process is writing to"), exclusive(out):
        pass
    assert not out.exists()
    with held(out) as holder:
        with pytest.raises(ValueError, match="Another process"), exclusive(tmp_path / "x" / ".." / "out"):
            pass
        holder.kill()
    assert (out / ".sv4d2.lock").exists(), "what a killed process leaves"
    with exclusive(out), exclusive(out):
        (out / "result").touch()
    assert [path.name for path in out.iterdir()] == ["result"]


TAKERS = """
import sys, time
from pathlib import Path
from sv4d2_core.files import exclusive
out, n = Path(sys.argv[1]), 0
sys.stdin.readline()
while n < 150:
    try:
        with exclusive(out):
            (out / "inside").touch(exist_ok=False)
            (out / "inside").unlink()
            n += 1
    except ValueError as error:
        assert "Another process" in str(error)
"""


def test_a_lock_that_goes_with_its_holder_lets_nobody_else_in(tmp_path):
    """Who waits for a lock file that its holder removes must not hold the removed one."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "other").touch()
    pipe = subprocess.PIPE
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", TAKERS, str(out)], cwd=ROOT, stdin=pipe, stderr=pipe, text=True
        )
        for _ in range(3)
    ]
    for taker in takers:
        assert taker.stdin is not None
        taker.stdin.write("\n")
        taker.stdin.flush()
    for taker in takers:
        _, errors = taker.communicate(timeout=120)
        assert taker.returncode == 0, errors


@pytest.mark.parametrize(
    "words",
    [
        ["convert", str(TINY_MODEL), "{out}"],
        ["refine", "{here}", "--out", "{out}"],
        ["export", "{here}", "--format", "dataset", "--out", "{out}"],
        ["scenes", "--out", "{out}"],
        ["views", "sample", "--checkpoint", "tiny", "--out", "{out}"],
        ["batch", "sample", "--checkpoint", "tiny", "--out", "{out}"],
        ["demo", "--out", "{out}"],
        ["train", "--out", "{out}"],
    ],
    ids=lambda words: words[0],
)
def test_every_job_that_writes_holds_its_place(tmp_path, capsys, words):
    out = tmp_path / "out.safetensors"
    with held(out, "exclusive_file" if words[0] in ("convert", "refine") else "exclusive"):
        assert main([word.format(out=out, here=tmp_path / "views") for word in words]) == 2
        assert f"Another process is writing to {out}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_staging_of_a_living_process_is_left_alone(tmp_path):
    out = tmp_path / "out"
    grid = ViewGrid(torch.ones(1, 2, 8, 8, 3), Cameras((0, 0), (0, 90)), torch.ones(1, 2, 8, 8))
    with held(out):
        (out / ".partial/new").mkdir(parents=True)
        for write, content in ((write_views, grid), (write_dataset, grid), (write_report, [])):
            with pytest.raises(ValueError, match="Another process is writing to"):
                write(out, content)
            assert (out / ".partial/new").is_dir()
