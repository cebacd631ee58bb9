"""Stands in for torchaudio where none fits the installed torch: just what ComfyUI's imports ask for."""

from . import functional as functional
from . import transforms as transforms

__version__ = "0.0.0"


def load(*_args: object, **_kwargs: object) -> None:
    """Say that there is no sound here; `save` and `info` are the same."""
    raise RuntimeError("torchaudio is not installed; this stand-in only lets ComfyUI start.")


save = info = load
