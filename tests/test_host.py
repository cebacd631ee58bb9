"""Tests against a real ComfyUI, each file of `tests/host` in an interpreter that can run ComfyUI.

Where ComfyUI or such an interpreter is missing they are skipped with one line that says so;
``SV4D2_REQUIRE_HOST=1`` makes that a failure.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

import pytest

HOST_TESTS = Path(__file__).parent / "host"
REPOSITORY = HOST_TESTS.parent.parent
TIERS = sorted(HOST_TESTS.rglob("test_*.py"))
BROWSER = HOST_TESTS / "browser"
USUAL_CHECKOUTS = ("~/comfy/ComfyUI", "~/Documents/comfy/ComfyUI")
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 400
SIDE_BY_SIDE = min(2, os.cpu_count() or 1)

# Prints the packages that ComfyUI's requirements and our tests name and the interpreter lacks. Without
# torchvision and torchaudio ComfyUI starts all the same, given the shim in tests/host.
PROBE = """
import importlib.metadata, pathlib, re, sys
lines = [line.strip() for file in sys.argv[1:] for line in pathlib.Path(file).read_text().splitlines()]
names = {re.split("[^A-Za-z0-9._-]", line)[0] for line in lines if line and line[0] not in "#-"}
missing = []
for name in sorted((names | {"pytest", "requests"}) - {"torchvision", "torchaudio"}):
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        missing.append(name)
print(" ".join(missing))
"""


T = TypeVar("T")


class HostMissing(Exception):
    """Says what the tests against ComfyUI lack, and how to get it."""


def find_checkout() -> Path:
    """Return the folder of ComfyUI: $COMFYUI_PATH, else where comfy-cli puts it."""
    named = os.environ.get("COMFYUI_PATH")
    for place in [named] if named else USUAL_CHECKOUTS:
        checkout = Path(place).expanduser().absolute()
        if (checkout / "main.py").is_file() and (checkout / "comfy").is_dir():
            return checkout
    looked = f"$COMFYUI_PATH ({named})" if named else f"$COMFYUI_PATH, {' or '.join(USUAL_CHECKOUTS)}"
    raise HostMissing(
        f"No ComfyUI at {looked}: NOTHING was tested against the real host. "
        f"Clone ComfyUI, then run: make host COMFYUI_PATH=<its folder>"
    )


def find_python(checkout: Path) -> Path:
    """Return an interpreter that has what ComfyUI requires: $COMFYUI_PYTHON, else the usual places."""
    named = os.environ.get("COMFYUI_PYTHON")
    places = [Path(shutil.which(named) or named)] if named else _usual_pythons(checkout)
    tried = []
    for place in dict.fromkeys(places):
        python = place.expanduser().absolute()
        missing = _missing_packages(python, checkout)
        if not missing:
            return python
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        tried.append(f"{python} lacks {', '.join(missing[:5])}{more}")
    raise HostMissing(
        f"No interpreter can run {checkout} ({'; '.join(tried)}): NOTHING was tested against the real host. "
        f"Run: make host COMFYUI_PATH={checkout}"
    )


def _usual_pythons(checkout: Path) -> list[Path]:
    executable = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    venvs = [REPOSITORY / ".venv-host", checkout / ".venv", checkout / "venv"]
    places = [venv / executable for venv in venvs]
    places.append(checkout.parent / "python_embeded" / "python.exe")
    return [*(place for place in places if place.exists()), Path(sys.executable)]


def _missing_packages(python: Path, checkout: Path) -> list[str]:
    """Return names of packages that are not installed there."""
    command = [str(python), "-c", PROBE, str(checkout / "requirements.txt")]
    command.append(str(REPOSITORY / "requirements.txt"))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"everything ({error})"]
    return done.stdout.split() if done.returncode == 0 else [f"everything ({done.stderr.strip()[-200:]})"]


def find_browser() -> dict[str, str]:
    """Return the environment variables that tell the browser tests where their programs are."""
    node = shutil.which("node")
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    named = os.environ.get("PLAYWRIGHT_CORE")
    folders = [Path(named).expanduser()] if named else []
    for parent in (*REPOSITORY.parents, Path.home()):
        folders.append(parent / "node_modules" / "playwright-core")
    if node is not None:
        folders.append(Path(node).resolve().parent.parent / "lib/node_modules/playwright-core")
    playwright = next((folder for folder in folders if (folder / "package.json").is_file()), None)
    found = {"node": node, "chromium": chromium, "playwright-core": playwright}
    missing = [name for name, place in found.items() if place is None]
    if missing:
        raise HostMissing(
            f"No {', no '.join(missing)}: the workflows were NOT tested in the page. Install chromium and "
            f"node; outside the repository run: npm install playwright-core; then set "
            f"PLAYWRIGHT_CORE=<that folder>/node_modules/playwright-core"
        )
    return {"NODE": str(node), "CHROMIUM": str(chromium), "PLAYWRIGHT_CORE": str(playwright)}


def _or_skip(find: Callable[[], T]) -> T:
    """Return what ``find`` returns; skip the test, or fail where the host is required, if it is missing."""
    try:
        return find()
    except HostMissing as missing:
        why = str(missing)
    if os.environ.get("SV4D2_REQUIRE_HOST") == "1":
        pytest.fail(f"SV4D2_REQUIRE_HOST=1, but: {why}", pytrace=False)
    pytest.skip(why)


class _Tiers:
    """Runs files of tests side by side, each in a process of its own that uses one thread.

    Args:
        start: starts the tests of a file, their output going to the second argument.
        files: in the order in which their results will be asked for.
        folder: for the output.
    """

    def __init__(
        self, start: Callable[[Path, IO[str]], subprocess.Popen[str]], files: list[Path], folder: Path
    ) -> None:
        self._start = start
        self._waiting = list(files)
        self._folder = folder
        self._running: dict[Path, tuple[subprocess.Popen[str], float]] = {}

    def result(self, file: Path) -> tuple[int, str]:
        """Return exit code and output of a file's tests, when they have ended or their time is over."""
        log = self._log(file)
        while True:
            self._start_more()
            process, since = self._running[file]
            late = process.poll() is None and time.monotonic() - since > SECONDS
            if late:
                _end(process)
            if process.poll() is not None:
                output = log.read_text(errors="replace")
                return process.returncode, output + f"\nDid not end within {SECONDS} s." * late
            time.sleep(0.1)

    def end(self) -> None:
        """End what still runs, for example when the user interrupts."""
        for process, _ in self._running.values():
            if process.poll() is None:
                _end(process)

    def _start_more(self) -> None:
        busy = sum(process.poll() is None for process, _ in self._running.values())
        while self._waiting and busy < SIDE_BY_SIDE:
            file = self._waiting.pop(0)
            with self._log(file).open("w") as log:
                self._running[file] = self._start(file, log), time.monotonic()
            busy += 1

    def _log(self, file: Path) -> Path:
        return self._folder / f"{file.stem}.log"


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and, where the system knows groups, what it has started."""
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def host() -> tuple[Path, Path]:
    """Return ComfyUI's folder and its interpreter."""

    def find() -> tuple[Path, Path]:
        checkout = find_checkout()
        return checkout, find_python(checkout)

    return _or_skip(find)


@pytest.fixture(scope="module")
def tiers(
    host: tuple[Path, Path], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[_Tiers]:
    """Return the runner of all files that were asked for and can run."""
    checkout, python = host
    environment = {**os.environ, "COMFYUI_PATH": str(checkout), "OMP_NUM_THREADS": "1"}
    # What our own interpreter was given must not reach the host's.
    for name in ("PYTHONPATH", "PYTEST_ADDOPTS", "PYTHONHOME"):
        environment.pop(name, None)
    # Else `python -m` would put the working directory in front of ComfyUI's modules.
    environment["PYTHONSAFEPATH"] = "1"
    files = [item.callspec.params["file"] for item in request.session.items if "tiers" in item.fixturenames]
    try:
        environment |= find_browser()
    except HostMissing:
        files = [file for file in files if BROWSER not in file.parents]
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def start(file: Path, log: IO[str]) -> subprocess.Popen[str]:
        command = [str(python), "-m", "pytest", "-c", str(HOST_TESTS / "pytest.ini")]
        command += ["--rootdir", str(HOST_TESTS), "--color=no", "--durations=3", str(file)]
        return subprocess.Popen(
            command,
            cwd=elsewhere,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    running = _Tiers(start, files, elsewhere)
    yield running
    running.end()


@pytest.mark.host
@pytest.mark.parametrize("file", TIERS, ids=[file.stem for file in TIERS])
def test_on_real_host(file: Path, tiers: _Tiers, record_property: Callable[[str, object], None]) -> None:
    if BROWSER in file.parents:
        _or_skip(find_browser)
    code, output = tiers.result(file)
    lines = output.strip().splitlines()
    closing = f"{file.name}: {lines[-1].strip('= ') if lines else 'no output'}"
    # A skip inside would otherwise stay unseen.
    for line in [closing, *(f"  {line}" for line in lines if line.startswith("SKIPPED"))]:
        record_property("real ComfyUI", line)
    if code != 0:
        pytest.fail(f"{file.name} on ComfyUI:\n{output[-15000:]}", pytrace=False)
