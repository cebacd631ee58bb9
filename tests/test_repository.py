"""The repository itself: metadata, dependencies, layers, public names."""

import ast
import builtins
import re
import sys
from pathlib import Path

import pytest

import sv4d2_core
from sv4d2_core.diffusion.safetensors_stream import CheckpointError

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings the same parser along
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = sorted((ROOT / "sv4d2_core").rglob("*.py"))
NODES = sorted((ROOT / "nodes").rglob("*.py"))
# What nodes/ may import: the host, and what the host itself always brings.
HOST = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "comfyui_version"}
BESIDE_THE_HOST = {"torch", "numpy", "PIL", "einops"}
IMPORTS = (ast.Import, ast.ImportFrom)
MOST_LINES = 500
# Caught by who calls, or by Python itself.
CAUGHT_BEFORE = {"OutOfTime", "KeyboardInterrupt", "AttributeError"}
# Heavy or optional: imported where they are used.
LAZY = {"pxr", "xatlas", "kornia", "cv2", "matplotlib", "jinja2", "trimesh", "skimage", "fast_simplification"}

# Higher floors may import lower ones, never the other way round.
FLOORS = [
    {"cameras", "files", "messages", "orbits", "shipped", "stored", "views", "world"},
    {"video"},
    {"diffusion", "metrics", "scene"},
    {"data"},
    {"export"},
    {"training"},
    {"commands", "cli", "__main__", "__init__"},
]


def requirements(path):
    lines = (ROOT / path).read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def imported_modules(path):
    """Return absolute names, relative ones resolved against the repository's root."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def floor_of(room):
    # What is not a room is a name of the package's own front, the top floor.
    return next((i for i, rooms in enumerate(FLOORS) if room in rooms), len(FLOORS) - 1)


def test_requirements_hold_no_torch_and_no_pins_and_what_the_tests_install():
    names = requirements("requirements.txt")
    expected = "trimesh scikit-image fast-simplification opencv-python matplotlib filelock>=3.24.3"
    assert names == set(expected.split()) == set(PROJECT["project"]["dependencies"])
    extras = PROJECT["project"]["optional-dependencies"]
    # 123 MB that only ComfyUI uses, which installs its own.
    assert "comfyui-frontend-package" in str(extras["comfyui"])
    alone = {name.split(">")[0] for extra in ("standalone", "dev") for name in extras[extra]}
    assert alone - {"torch"} == requirements("tests/requirements.txt")


def test_optional_packages_are_extras_and_imported_only_when_used():
    extras = PROJECT["project"]["optional-dependencies"]
    assert (extras["usd"], extras["texture"]) == (["usd-core"], ["xatlas"])
    for path in SOURCES:
        at_the_start = [node for node in ast.parse(path.read_text()).body if isinstance(node, IMPORTS)]
        names = {name.split(".")[0] for node in at_the_start for name in _names(node)}
        assert not names & LAZY, f"{path} needs {names & LAZY} to be imported"


def test_registry_metadata():
    assert re.fullmatch(r"[a-z0-9-]+", PROJECT["project"]["name"])
    assert "comfyui" not in PROJECT["project"]["name"]
    assert PROJECT["project"]["license"] == {"file": "LICENSE"}
    assert PROJECT["tool"]["comfy"]["requires-comfyui"] == ">=0.3.64"
    assert PROJECT["project"]["version"] == sv4d2_core.__version__


def test_imports_only_run_down_and_never_reach_the_host():
    host = HOST | {"nodes"}
    seen = set()
    for path in SOURCES:
        room = path.relative_to(ROOT / "sv4d2_core").with_suffix("").parts[0]
        for module in imported_modules(path):
            parts = module.split(".")
            assert parts[0] not in host, f"{path} imports {module}"
            if parts[0] == "sv4d2_core" and len(parts) > 1:
                seen.add((room, parts[1]))
                assert floor_of(parts[1]) <= floor_of(room), f"{path} imports {module} from above"
    assert ("diffusion", "video") in seen and ("commands", "diffusion") in seen


def test_nodes_import_relatively_and_only_what_a_host_has():
    allowed = HOST | BESIDE_THE_HOST | {"nodes", "sv4d2_core"} | set(sys.stdlib_module_names)
    for path in NODES:
        for node in ast.walk(ast.parse(path.read_text())):
            absolute = isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level)
            names = {name.split(".")[0] for name in _names(node)} if absolute else set()
            assert not names & {"nodes", "sv4d2_core"}, f"{path}: {names} must be imported relatively"
            assert names <= allowed, f"{path} imports {names - allowed}"


def _names(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""]


def test_the_root_is_lazy():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    kinds = [type(node).__name__ for node in tree.body]
    assert kinds == ["Expr", "Assign", "AsyncFunctionDef"]
    assert (ROOT / "web").is_dir() and "WEB_DIRECTORY" in ast.unparse(tree.body[1])


def test_nothing_chooses_a_device_or_runs_text():
    forbidden = {"cuda", "eval", "exec", "system", "__import__"}
    for path in [*SOURCES, *NODES]:
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        for call in calls:
            name = call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "")
            # `network.eval()` is PyTorch's evaluation mode.
            evaluation_mode = name == "eval" and isinstance(call, ast.Attribute)
            assert name not in forbidden or evaluation_mode, f"{path} calls {name}"


# Modules and names that run what a file or a text holds.
PROGRAMS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
RUNS = {"eval", "exec", "compile", "os.system", "os.popen", "ctypes.CDLL"}
RUNS |= {"pandas.read_pickle", "runpy.run_path"}
RUNS |= {f"torch.{name}" for name in ("jit.load", "hub.load", "package", "export.load", "serialization.load")}
RUNS |= {f"yaml.{name}" for name in ("load", "load_all", "full_load", "unsafe_load")}
RUNS_CODE = {
    # The one-time conversion of a file that --trust-code names, and its test.
    ("sv4d2_core/metrics/i3d.py", "torch.jit.load"),
    ("tests/test_metrics_networks.py", "torch.jit.load"),
}


def code_loaders(source):
    """Yield what a source imports or names that can run code out of a file or a text."""
    nodes, full = list(ast.walk(ast.parse(source))), {}
    for node in (node for node in nodes if isinstance(node, IMPORTS)):
        module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            whole = module + alias.name
            full |= {alias.asname: whole} if alias.asname else {alias.name: whole} if module else {}
            if whole.split(".")[0] in PROGRAMS:
                yield whole

    def named(node):
        first, dot, rest = ast.unparse(node).partition(".")
        return full.get(first, first) + dot + rest

    yield from (name for n in nodes if isinstance(n, ast.Name | ast.Attribute) and (name := named(n)) in RUNS)
    for call in (node for node in nodes if isinstance(node, ast.Call)):
        given = {word.arg: getattr(word.value, "value", "unknown") for word in call.keywords}
        if named(call.func) == "torch.load" and given.get("weights_only") is not True:
            yield "torch.load"
        if "numpy.load" == named(call.func) and given.get("allow_pickle", False) is not False:
            yield "numpy.load"
        yield from (word for word in ("trust_remote_code", "shell") if given.get(word, False) is not False)


def test_nothing_loads_files_that_can_run_code_but_what_the_user_trusts():
    found = set()
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT)
        if not place.parts[0].startswith(".") and place.parts != ("tests", "test_repository.py"):
            found |= {(place.as_posix(), name) for name in code_loaders(path.read_text(encoding="utf-8"))}
    assert found == RUNS_CODE


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path)",
        "import torch as t\nt.load(path, weights_only=False)",
        "from torch import jit\njit.load(path)",
        "from torch.jit import load as read\nread(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path, allow_pickle=flag)",
        "from pickle import loads",
        "import joblib",
        "read = eval",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "import subprocess\nsubprocess.run(line, shell=True)",
    ],
)
def test_the_scan_finds_what_runs_code(source):
    assert list(code_loaders(source))


def test_the_scan_leaves_harmless_loaders_alone():
    source = "import numpy as np, torch\ntorch.load(p, weights_only=True)\nnp.load(p)\nnetwork.eval()"
    assert not list(code_loaders(source))


def test_files_stay_small_and_docstrings_are_there():
    for path in [*SOURCES, *NODES]:
        text = path.read_text()
        assert text.count("\n") <= MOST_LINES, f"{path} has more than {MOST_LINES} lines"
        assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"


def test_the_command_line_tells_all_that_is_raised_on_purpose():
    """An error of another kind is a mistake of ours, and its traceback is wanted."""
    front = ast.walk(ast.parse((ROOT / "sv4d2_core/__main__.py").read_text()))
    told = [part for node in front if isinstance(node, ast.ExceptHandler) for part in ast.walk(node.type)]
    told = [part.id for part in told if isinstance(part, ast.Name) and part.id != "RuntimeError"]
    told = tuple(getattr(builtins, name) for name in told)
    for path in SOURCES:
        raised = (node.exc for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Raise))
        for name in {ast.unparse(call.func) for call in raised if isinstance(call, ast.Call)} - CAUGHT_BEFORE:
            kind = CheckpointError if name == "CheckpointError" else getattr(builtins, name, None)
            # What is no class makes one: `Fields.wrong` and the like.
            assert kind is None or issubclass(kind, told), f"{path} raises {name}, which ends in a traceback"


def test_public_names_exist():
    assert len(sv4d2_core.__all__) == len(set(sv4d2_core.__all__)) <= 15
    for name in sv4d2_core.__all__:
        assert getattr(sv4d2_core, name).__doc__, name
    assert sv4d2_core.cameras.Cameras is sv4d2_core.Cameras


def test_one_file_renames_removes_and_makes_temporary_names():
    forbidden = {"unlink", "rename", "rmtree", "rmdir", "mkstemp", "mkdtemp", "TemporaryDirectory", "flock"}
    for path in [*SOURCES, *NODES]:
        called = {
            node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
        }
        assert path.name == "files.py" or not called & forbidden, f"{path} calls {called & forbidden}"
