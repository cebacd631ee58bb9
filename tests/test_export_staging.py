"""Writing a folder is one step: after any failure the folder is as it was."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from sv4d2_core import stored
from sv4d2_core.cameras import Cameras
from sv4d2_core.data.views_folder import read_views, write_views
from sv4d2_core.files import all_or_nothing, exclusive, is_out_of_memory
from sv4d2_core.scene.gaussians.gaussians import Gaussians
from sv4d2_core.scene.store import load_scene
from sv4d2_core.stored import read_tensors
from sv4d2_core.video.read import load_clip
from sv4d2_core.views import ViewGrid

ROOT = Path(__file__).resolve().parents[1]


def write(folder: Path, text: str, existing=(), fail: BaseException | None = None) -> None:
    with all_or_nothing(folder, existing, "run.json", needed_bytes=123_000_000) as staging:
        (staging / "run.json").write_text(text)
        (staging / "frames").mkdir()
        (staging / "frames" / "0.png").write_text(text)
        if fail is not None:
            raise fail


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_entries_appear_together_and_staging_folders_are_swept_up(tmp_path):
    stale = tmp_path / "a/b/.partial/new/stale.txt"
    stale.parent.mkdir(parents=True)
    stale.write_text("of a program that was killed")
    write(tmp_path / "a" / "b", "new")
    assert tree(tmp_path / "a" / "b") == {"run.json": "new", "frames/0.png": "new"}
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == ["frames", "run.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("x"), OSError(errno.ENOSPC, "full")])
def test_failure_leaves_nothing_new_and_keeps_the_old_entries(tmp_path, error):
    out, old = tmp_path / "a" / "b", tmp_path / "old"
    with pytest.raises(type(error)):
        write(out, "new", fail=error)
    assert list(tmp_path.iterdir()) == [], "not even the folders above"
    write(old, "old")
    (old / "mine.txt").write_text("mine")
    before = tree(old)
    with pytest.raises(type(error)):
        write(old, "new", existing=["frames", "run.json"], fail=error)
    assert tree(old) == before
    write(old, "new", existing=["frames", "run.json"])
    assert tree(old) == {"run.json": "new", "frames/0.png": "new", "mine.txt": "mine"}


def test_a_move_that_fails_half_way_is_undone(tmp_path, monkeypatch):
    write(tmp_path, "old")
    before, moved, rename = tree(tmp_path), [], Path.rename

    def failing(self, target):
        if len(moved) == 3:  # both old entries are out, one new entry is in
            moved.append("failed")
            raise PermissionError(errno.EACCES, "held open by another program")
        moved.append(self.name)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(PermissionError, match="Choose another folder"):
        write(tmp_path, "new", existing=["frames", "run.json"])
    assert moved[:3] == ["run.json", "frames", "frames"]
    assert tree(tmp_path) == before


def test_the_marker_goes_first_and_comes_last(tmp_path, monkeypatch):
    write(tmp_path, "old")
    order, rename = [], Path.rename

    def recording(self, target):
        order.append((self.name, "out" if self.parent == tmp_path else "in"))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", recording)
    write(tmp_path, "new", existing=["frames", "run.json"])
    assert order[0] == ("run.json", "out")
    assert order[-1] == ("run.json", "in")


def test_the_cause_is_explained_and_the_error_number_kept(tmp_path):
    for number in (errno.ENOSPC, errno.EFBIG):
        with pytest.raises(OSError, match=r"up to 123 MB of space in .*out; .*Free some space") as caught:
            write(tmp_path / "out", "new", fail=OSError(number, "full"))
        assert caught.value.errno == number
    with pytest.raises(OSError, match=r"out; the system refuses .*Choose another") as caught:
        write(tmp_path / "out", "new", fail=OSError(errno.EROFS, "Read-only file system"))
    assert caught.value.errno == errno.EROFS
    with pytest.raises(OSError, match="^.Errno 5. broken$"):
        write(tmp_path / "out", "new", fail=OSError(errno.EIO, "broken"))


def test_a_file_in_the_folders_place_is_explained(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OSError, match="a file stands at"):
        write(tmp_path / "out", "new")
    assert (tmp_path / "out").read_text() == "a file"


HOLDER = """
import sys, time
from pathlib import Path
from sv4d2_core.files import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_folder_is_held_by_one_process_wherever_its_temporary_files_are(tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # as in another container

    def holder() -> subprocess.Popen:
        command = [sys.executable, "-c", HOLDER, str(out)]
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    first = holder()
    with pytest.raises(ValueError, match="Another process is writing to"), exclusive(out):
        pass
    first.communicate("\n")
    assert not out.exists()
    second = holder()
    with pytest.raises(ValueError, match="Another process"), exclusive(tmp_path / "x" / ".." / "out"):
        pass
    second.kill()
    second.communicate()
    assert (out / ".lock").exists(), "what a killed process leaves"
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
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", TAKERS, str(out)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
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
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("full"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        SafetensorError('Error: IoError(Os { code: 12, kind: OutOfMemory, message: "Cannot allocate" })'),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("XPU out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    ],
)
def test_reading_that_runs_out_of_memory_is_not_called_damage(tmp_path, monkeypatch, error):
    assert is_out_of_memory(error)
    grid = ViewGrid(torch.rand(1, 2, 16, 16, 3), Cameras.ring(1))
    write_views(tmp_path / "views", grid)
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    scene = Path(__file__).parent / "data/version_0_1/gaussians.safetensors"

    def full(*_args, **_kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Cameras, "from_json", full)
        with pytest.raises(type(error)):
            read_views(tmp_path / "views")
    with monkeypatch.context() as patch:
        patch.setattr(Gaussians, "from_tensors", full)
        with pytest.raises(type(error)):
            load_scene(scene)
    with monkeypatch.context() as patch:
        patch.setattr(stored, "safe_open", full)
        with pytest.raises(type(error)):
            read_tensors(scene, "sv4d2.scene")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", full)
        with pytest.raises(type(error)):
            load_clip(tmp_path / "one.png")


FULL_DISK = """
import resource, sys
import torch
from pathlib import Path
from sv4d2_core.cameras import Cameras
from sv4d2_core.data.views_folder import write_views
from sv4d2_core.views import ViewGrid

torch.set_num_threads(1)
grid = ViewGrid(torch.rand(2, 3, 64, 64, 3), Cameras.ring(2))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    write_views(Path(sys.argv[1]), grid, crop=None, run={})
except OSError as error:
    sys.exit("full: " + str(error))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a POSIX feature")
@pytest.mark.parametrize("limit", [0, 4000])
def test_a_file_that_does_not_fit_leaves_nothing_behind(tmp_path, limit):
    """The videos are written by libav, the rest by Python: neither may leave a short file."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "out"), str(limit)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1, result.stderr
    assert "full: [Errno 27] Expected up to 1 MB of space" in result.stderr
    assert list(tmp_path.iterdir()) == []
