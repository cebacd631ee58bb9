"""Stable Video 4D 2.0: one clip of a moving object in, consistent novel-view videos out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .shipped import __version__ as __version__

if TYPE_CHECKING:
    from .cameras import Cameras as Cameras
    from .data.views_folder import read_views as read_views
    from .data.views_folder import write_views as write_views
    from .diffusion.checkpoint import convert_checkpoint as convert_checkpoint
    from .diffusion.checkpoint import load_checkpoint as load_checkpoint
    from .diffusion.novel_views import resynthesizer as resynthesizer
    from .diffusion.novel_views import sample_views as sample_views
    from .scene.config import RefineConfig as RefineConfig
    from .scene.refine import refine_scene as refine_scene
    from .scene.store import load_scene as load_scene
    from .video.prepare import PreparedClip as PreparedClip
    from .video.prepare import prepare_clip as prepare_clip
    from .video.read import Clip as Clip
    from .video.read import load_clip as load_clip
    from .views import ViewGrid as ViewGrid

# Imported when they are asked for: PyTorch takes seconds, which `sv4d2 --help` need not wait for.
_HOMES = {
    "Cameras": "cameras",
    "Clip": "video.read",
    "PreparedClip": "video.prepare",
    "RefineConfig": "scene.config",
    "ViewGrid": "views",
    "convert_checkpoint": "diffusion.checkpoint",
    "load_checkpoint": "diffusion.checkpoint",
    "load_clip": "video.read",
    "load_scene": "scene.store",
    "prepare_clip": "video.prepare",
    "read_views": "data.views_folder",
    "refine_scene": "scene.refine",
    "resynthesizer": "diffusion.novel_views",
    "sample_views": "diffusion.novel_views",
    "write_views": "data.views_folder",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]

# Folders and files that are attributes, too, without an import of their own.
_PARTS = ("cameras", "data", "diffusion", "export", "files", "metrics", "scene", "video", "views")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    if name in _PARTS:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
