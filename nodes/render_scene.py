"""The node that takes pictures of a 4D scene."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from einops import rearrange
from torch import Tensor

from ..sv4d2_core.cameras import Cameras
from ..sv4d2_core.scene.scene import Scene4D, even_times, own_cameras, turntable
from ..sv4d2_core.scene.targets import packed_normals
from ..sv4d2_core.views import ViewGrid
from .geometry_images import depth_images
from .gradients import gradients
from .progress import counted_progress
from .sockets import CamerasType, SceneType, ViewsType, aliases

_VIEWS, _TURNTABLE = "views", "turntable"
_TURNTABLE_PICTURES = 96
# Numbers per pixel that are alive at once: the maps of a scene and the outputs made of them.
_NUMBERS = 24


class SV4D2Render4D(io.ComfyNode):
    """A scene from any camera at any time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's sockets and widgets."""
        return io.Schema(
            node_id="SV4D2Render4D",
            display_name="SV4D2 Render 4D",
            category="SV4D2/scene",
            description=(
                "Takes pictures of a 4D scene: videos from its own cameras or from any others, also between "
                "its frames, or a turntable, which goes around the scene while it moves. Connect the scene "
                "of SV4D2 Refine 4D or SV4D2 Load Scene, images and fps to Create Video, or views to SV4D2 "
                "Views Grid Video, SV4D2 Save Views or SV4D2 Metrics."
            ),
            inputs=[
                SceneType.Input("scene", tooltip="The scene, from SV4D2 Refine 4D or SV4D2 Load Scene."),
                io.Combo.Input(
                    "mode",
                    options=[_VIEWS, _TURNTABLE],
                    default=_VIEWS,
                    tooltip="views: the whole clip from every camera. turntable: one video around the scene, "
                    "its motion playing to and fro.",
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="views: this many evenly spread times, in as many seconds; 0: the scene's own. "
                    "turntable: pictures in all; 0: 96.",
                ),
                io.Int.Input(
                    "size", default=512, min=16, max=4096, step=16, tooltip="Side of the pictures in pixels."
                ),
                io.Float.Input(
                    "turns",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.25,
                    tooltip="turntable: how often around the scene; negative goes the other way.",
                ),
                CamerasType.Input(
                    "cameras",
                    optional=True,
                    tooltip="Where to see the scene from, from SV4D2 Camera Orbit or, for cameras of "
                    "ComfyUI's 3D nodes, SV4D2 Camera Info to Cameras. Open: the cameras of the views it was "
                    "fitted to. A turntable takes radius and field of view from them.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    tooltip="The pictures on white, view by view: the whole clip of the input's camera "
                    "first.",
                ),
                io.Mask.Output(display_name="masks", tooltip="The opacity of the scene in images."),
                io.Image.Output(
                    display_name="depth",
                    tooltip="Depth of images in grey: white is nearest, black farthest or nothing; one range "
                    "for all.",
                ),
                io.Image.Output(
                    display_name="normals",
                    tooltip="Normals of images in OpenGL colours (x right, y up, z towards the camera).",
                ),
                ViewsType.Output(
                    display_name="views", tooltip="The pictures as views. A turntable has none."
                ),
                io.Float.Output(
                    display_name="fps",
                    tooltip="Frames per second of the pictures; connect it to Create Video.",
                ),
            ],
            **aliases("4d", "novel view", "turntable", "bullet time", "nerf", "depth", "normal map"),
        )

    @classmethod
    def execute(
        cls, scene: Scene4D, mode: str, frames: int, size: int, turns: float, cameras: Cameras | None = None
    ) -> io.NodeOutput:
        """Return the pictures with their masks, depth and normals."""
        cameras = own_cameras(scene) if cameras is None else cameras
        around = mode == _TURNTABLE
        count = (frames or _TURNTABLE_PICTURES) if around else frames or scene.n_frames
        _check_memory(count if around else count * (cameras.n_views + 1), size)
        views: Any = ExecutionBlocker(
            "A turntable has no views, as its camera moves. Set mode to views, or use images instead."
        )
        fps = scene.fps
        with gradients():
            if around:
                step = counted_progress()
                seen, cameras = turntable(scene, cameras, count, size, turns=turns, callback=step)
            else:
                times = scene.times if frames == 0 else even_times(frames)
                seen = scene.render(cameras, times, size, callback=counted_progress())
                fps *= max(len(times) - 1, 1) / max(scene.n_frames - 1, 1)
                views = ViewGrid(seen.rgb, cameras, seen.alpha, fps, times=times)
            images, masks = _by_view(seen.rgb), _by_view(seen.alpha)
            depth = depth_images(_by_view(seen.depth), masks)
            normals = _by_view(packed_normals(seen.normal, cameras))
        return io.NodeOutput(images, masks, depth, normals, views, fps)


def _by_view(maps: Tensor) -> Tensor:
    """Return maps [T, C, ...] as [C * T, ...], all times of one camera after the other."""
    return rearrange(maps, "t c ... -> (c t) ...").contiguous()


def _check_memory(n_pictures: int, size: int) -> None:
    """Raise ValueError where the pictures would not fit into main memory."""
    needed = 4 * _NUMBERS * n_pictures * size * size
    free = comfy.model_management.get_free_memory(torch.device("cpu"))
    if needed > free:
        raise ValueError(
            f"{n_pictures} pictures of {size} x {size} need about {needed / 2**30:.1f} GiB of main memory; "
            f"{free / 2**30:.1f} GiB are free. Lower size or frames."
        )
