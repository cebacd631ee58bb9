"""Tests against real ComfyUIs, each file of `tests/host` in an interpreter that can run that ComfyUI.

$COMFYUI_PATH names the checkouts, as $PATH names folders. Where a checkout or its interpreter is missing the
tests are skipped with one line that says so; ``SV4D2_REQUIRE_HOST=1`` makes that a failure.
"""

import functools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HOST_TESTS = Path(__file__).parent / "host"
REPOSITORY = HOST_TESTS.parent.parent
FILES = sorted(HOST_TESTS.rglob("test_*.py"))
BROWSER = HOST_TESTS / "browser"
USUAL_CHECKOUTS = ("~/comfy/ComfyUI", "~/Documents/comfy/ComfyUI")
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 1500

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


class HostMissing(Exception):
    """Says what the tests against ComfyUI lack, and how to get it."""


def named_in(variable: str) -> list[str]:
    """Return the paths that an environment variable lists."""
    return [path for path in os.environ.get(variable, "").split(os.pathsep) if path]


def is_checkout(place: Path) -> bool:
    return (place / "main.py").is_file() and (place / "comfy").is_dir()


def find_checkouts() -> list[Path]:
    """Return ComfyUI's folders: those of $COMFYUI_PATH, else the place of comfy-cli's that has one."""
    named = named_in("COMFYUI_PATH")
    places = [Path(place).expanduser().absolute() for place in named or USUAL_CHECKOUTS]
    return places if named else next(([place] for place in places if is_checkout(place)), places[:1])


def version_of(checkout: Path) -> str:
    """Return the version that a checkout says it is."""
    try:
        text = (checkout / "comfyui_version.py").read_text()
    except OSError:
        return "missing"
    return text.partition('__version__ = "')[2].partition('"')[0]


CHECKOUTS = find_checkouts()


def find_python(checkout: Path) -> Path:
    """Return an interpreter with what ComfyUI requires: of $COMFYUI_PYTHON (one for all checkouts or each),
    else of the usual places.
    """
    if not is_checkout(checkout):
        named = named_in("COMFYUI_PATH")
        looked = checkout if named else f"$COMFYUI_PATH, {' or '.join(USUAL_CHECKOUTS)}"
        raise HostMissing(
            f"No ComfyUI at {looked}: NOTHING was tested against the real host. "
            f"Clone ComfyUI, then run: make host COMFYUI_PATH=<its folder>"
        )
    # One is repeated, several are in the checkouts' order.
    named = (named_in("COMFYUI_PYTHON") * len(CHECKOUTS))[CHECKOUTS.index(checkout) :][:1]
    tried = []
    for place in [Path(shutil.which(name) or name) for name in named] or _usual_pythons(checkout):
        python = place.expanduser().absolute()
        missing = _missing_packages(python, checkout)
        if not missing:
            return python
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        tried.append(f"{python} lacks {', '.join(missing[:5])}{more}")
    raise HostMissing(
        f"No interpreter can run {checkout} ({'; '.join(tried)}): NOTHING was tested against that host. "
        f"Run: make host COMFYUI_PATH={checkout}"
    )


def _usual_pythons(checkout: Path) -> list[Path]:
    executable = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    ours = REPOSITORY / f".venv-host-{version_of(checkout)}"
    places = [venv / executable for venv in (ours, checkout / ".venv", checkout / "venv")]
    places.append(checkout.parent / "python_embeded" / "python.exe")
    return [*(place for place in places if place.exists()), Path(sys.executable)]


@functools.cache
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
    folders += [parent / "node_modules/playwright-core" for parent in (*REPOSITORY.parents, Path.home())]
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


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs and, where the system knows groups, what it has started."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()


def run(checkout: Path, file: Path, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Return exit code and output of a file's tests, run in a process of their own in ``folder``."""
    command = [str(find_python(checkout)), "-m", "pytest", "-c", str(HOST_TESTS / "pytest.ini")]
    command += ["--rootdir", str(HOST_TESTS), "--color=no", "--durations=3", str(file)]
    # What our own interpreter was given must not reach the host's.
    ours = {"PYTHONPATH", "PYTEST_ADDOPTS", "PYTHONHOME"}
    env = {name: value for name, value in os.environ.items() if name not in ours} | environment
    # Else `python -m` would put the working directory in front of ComfyUI's modules.
    env |= {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "COMFYUI_PATH": str(checkout)}
    log, late = folder / "log", ""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            late = f"\nDid not end within {SECONDS} s."
        finally:
            _end(process)
    return process.returncode, log.read_text(errors="replace") + late


@pytest.mark.host
@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
@pytest.mark.parametrize("checkout", CHECKOUTS, ids=version_of)
def test_on_real_host(checkout, file, tmp_path, record_property):
    try:
        find_python(checkout)
        environment = find_browser() if BROWSER in file.parents else {}
    except HostMissing as missing:
        if os.environ.get("SV4D2_REQUIRE_HOST") == "1":
            pytest.fail(f"SV4D2_REQUIRE_HOST=1, but: {missing}", pytrace=False)
        pytest.skip(str(missing))
    code, output = run(checkout, file, tmp_path, environment)
    lines = output.strip().splitlines()
    closing = f"{file.name}: {lines[-1].strip('= ') if lines else 'no output'}"
    # A skip inside would otherwise stay unseen.
    for line in [closing, *(f"  {line}" for line in lines if line.startswith("SKIPPED"))]:
        record_property(f"ComfyUI {version_of(checkout)}", line)
    if code != 0:
        pytest.fail(f"{file.name} on {checkout}:\n{output[-15000:]}", pytrace=False)
