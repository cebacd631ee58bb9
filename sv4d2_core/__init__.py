"""Stable Video 4D 2.0: one clip of a moving object in, consistent novel-view videos out."""

__version__ = "0.1.0"

from .cameras import Cameras
from .data.views_folder import read_views, write_views
from .diffusion.checkpoint import load_checkpoint
from .diffusion.convert import convert_checkpoint
from .diffusion.novel_views import resynthesizer, sample_views
from .scene.config import RefineConfig
from .scene.refine import refine_scene
from .scene.store import load_scene
from .video.prepare import PreparedClip, prepare_clip
from .video.read import Clip, load_clip
from .views import ViewGrid

__all__ = [
    "Cameras",
    "Clip",
    "PreparedClip",
    "RefineConfig",
    "ViewGrid",
    "convert_checkpoint",
    "load_checkpoint",
    "load_clip",
    "load_scene",
    "prepare_clip",
    "read_views",
    "refine_scene",
    "resynthesizer",
    "sample_views",
    "write_views",
]
