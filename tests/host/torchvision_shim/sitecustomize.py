"""Makes `import torchvision` work beside a torch build that it was not compiled for, as on a CPU machine.

ComfyUI imports torchvision at start and uses nothing of it for our nodes. Python runs this file by itself
when its folder is on PYTHONPATH; `conftest.py` runs it for tests inside the process. A torchvision that
works is left alone.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

_STUB = Path(__file__).parent / "stub" / "torchvision"
_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_alive = []


class _TorchvisionFinder(MetaPathFinder):
    """Looks at the installed torchvision once, right before its first import."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torchvision")
        if spec is None:
            return importlib.util.spec_from_file_location(
                name, _STUB / "__init__.py", submodule_search_locations=[str(_STUB)]
            )
        if not _operators_load(spec):
            _define_operators()
        return spec


def _operators_load(spec: ModuleSpec) -> bool:
    """Return whether torchvision's compiled operators fit this torch; loading them twice is harmless."""
    import torch

    library = PathFinder.find_spec("_C", list(spec.submodule_search_locations or []))
    if library is None or library.origin is None:
        return False
    try:
        torch.ops.load_library(library.origin)
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


sys.meta_path.insert(0, _TorchvisionFinder())
