"""Makes `import torchvision` and `import torchaudio` work beside a torch that they were not compiled for.

ComfyUI imports both at start (some versions only one) and uses nothing of them for our nodes. Python runs
this file by itself when its folder is on PYTHONPATH; `conftest.py` runs it for tests inside the process.
Packages that work are left alone.
"""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

_STUBS = Path(__file__).parent / "stub"
_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_alive = []


class _Finder(MetaPathFinder):
    """Looks at one installed package once, when somebody first asks for it, and remembers what it found."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.looking = False
        self.spec: ModuleSpec | None = None

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != self.package or self.looking:
            return None
        if self.spec is None:
            self.looking = True
            try:
                self.spec = _working(name)
            finally:
                self.looking = False
        return self.spec


def _working(name: str) -> ModuleSpec | None:
    """Return how the package is imported: as it is installed, or our stand-in."""
    spec = importlib.util.find_spec(name)
    if spec is None or (name == "torchaudio" and not _torchaudio_loads(spec)):
        stub = _STUBS / name
        return importlib.util.spec_from_file_location(
            name, stub / "__init__.py", submodule_search_locations=[str(stub)]
        )
    if name == "torchvision" and not _library_loads(spec, "_C"):
        _define_operators()
    return spec


def _torchaudio_loads(spec: ModuleSpec) -> bool:
    """Return whether torchaudio's compiled part, if it has one, fits this torch."""
    folders = [Path(folder) / "lib" for folder in spec.submodule_search_locations or []]
    libraries = [file for folder in folders for file in folder.glob("libtorchaudio.*")]
    return all(map(_loads, libraries))


def _library_loads(spec: ModuleSpec, name: str) -> bool:
    """Return whether torchvision's compiled operators fit this torch."""
    library = PathFinder.find_spec(name, list(spec.submodule_search_locations or []))
    return library is not None and library.origin is not None and _loads(library.origin)


def _loads(library: str | Path) -> bool:
    """Return whether a library can be loaded; loading it twice is harmless."""
    import torch

    try:
        torch.ops.load_library(str(library))
    except OSError:
        return False
    return True


def _define_operators() -> None:
    """Declare the two operators that torchvision registers shapes for when it is imported."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    library.define("nms" + _NMS)
    library.define("qnms" + _NMS)
    # The declarations last as long as this object.
    _alive.append(library)


sys.meta_path[:0] = [_Finder("torchvision"), _Finder("torchaudio")]
