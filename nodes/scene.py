"""Scenes in files, and pictures of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..sv4d2_core.cameras import Cameras
from ..sv4d2_core.files import claimed
from ..sv4d2_core.scene.scene import Scene4D, even_times, own_cameras, pace, placed, slowed, turntable
from ..sv4d2_core.scene.store import load_scene
from ..sv4d2_core.scene.targets import packed_normals
from ..sv4d2_core.views import ViewGrid, playable
from .host import (
    CamerasType,
    SceneType,
    ViewsType,
    aliases,
    check_main_memory,
    choice,
    described,
    gradients,
    number,
    outputs,
)
from .output_folder import fingerprint_of_files, found_inside, output_place, relative_to_output, shown_files
from .preview import Progress, picture_preview, scene_strip

_SUFFIX = ".safetensors"

_VIEWS, _TURNTABLE = "views", "turntable"
_TURNTABLE_PICTURES = 96
_NUMBERS = 24  # numbers per pixel alive at once: the scene's maps and the outputs made of them
_OPAQUE = 0.5  # pixels below this opacity do not set the depth's range


class SV4D2LoadScene(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2LoadScene",
            category="SV4D2/scene",
            inputs=[io.String.Input("file", default="sv4d2/scene_00001.safetensors")],
            outputs=outputs(scene=SceneType, cameras=CamerasType),
            **aliases("4d", "nerf", "gaussian splatting", "open scene"),
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None) -> str:
        return fingerprint_of_files(file, _found)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        with gradients():
            scene = load_scene(_found(file), comfy.model_management.get_torch_device())
        return io.NodeOutput(scene, scene.cameras)


class SV4D2SaveScene(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2SaveScene",
            category="SV4D2/scene",
            inputs=[SceneType.Input("scene"), io.String.Input("filename_prefix", default="sv4d2/scene")],
            outputs=outputs(file=io.String),
            is_output_node=True,
            **aliases("4d", "nerf", "gaussian splatting", "export scene"),
        )

    @classmethod
    def execute(cls, scene: Scene4D, filename_prefix: str) -> io.NodeOutput:
        with claimed(*output_place(filename_prefix, 0), _SUFFIX) as place:
            scene.save(place)
        relative = relative_to_output(place)
        size = place.stat().st_size / 2**20
        lines = [f"Saved {relative}: {scene.backend}, {scene.n_frames} frames, {size:.1f} MB"]
        with gradients():
            strip = scene_strip(scene)
        shown = {**picture_preview(strip, lines, cls), **shown_files([place])}
        return io.NodeOutput(relative, ui=shown)


def _found(name: str) -> Path:
    return found_inside(
        name, lambda path: path.suffix.lower() == _SUFFIX and path.is_file(), "the file of a scene"
    )


class SV4D2Render4D(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2Render4D",
            category="SV4D2/scene",
            inputs=[
                SceneType.Input("scene"),
                choice("mode", [_VIEWS, _TURNTABLE]),
                number("frames", 0, (0, 10000)),
                number("size", 512, (16, 4096, 16)),
                number("turns", 1.0, (-100, 100, 0.25)),
                CamerasType.Input("cameras", optional=True),
                number("slow_motion", 1, (1, 64), optional=True),
            ],
            outputs=outputs(
                images=io.Image,
                masks=io.Mask,
                depth=io.Image,
                normals=io.Image,
                views=ViewsType,
                fps=io.Float,
            ),
            **aliases("4d", "novel view", "turntable", "bullet time", "nerf", "depth", "normal map"),
        )

    @classmethod
    def execute(
        cls,
        scene: Scene4D,
        mode: str,
        frames: int,
        size: int,
        turns: float,
        cameras: Cameras | None = None,
        slow_motion: int = 1,
    ) -> io.NodeOutput:
        cameras = own_cameras(scene) if cameras is None else placed(cameras, scene)
        around = mode == _TURNTABLE
        times = scene.times if frames == 0 or around else even_times(frames)
        fps = playable(pace(scene, times))
        times = slowed(times, slow_motion)
        count = (frames or _TURNTABLE_PICTURES) if around else len(times)
        n_pictures = count if around else count * (cameras.n_views + 1)
        check_main_memory(
            4 * _NUMBERS * n_pictures * size * size,
            f"{n_pictures} pictures of {size} x {size} need",
            "Lower size or frames.",
        )
        views: Any = ExecutionBlocker(
            "A turntable has no views, as its camera moves. Set mode to views, or use images instead."
        )
        with gradients():
            if around:
                seen, cameras = turntable(
                    scene, cameras, count, size, turns=turns, slow=slow_motion, callback=Progress()
                )
            else:
                seen = scene.render(cameras, times, size, callback=Progress())
                views = ViewGrid(seen.rgb, cameras, seen.alpha, fps, times=times)
            images, masks = _by_view(seen.rgb), _by_view(seen.alpha)
            depth = depth_images(_by_view(seen.depth), masks)
            normals = _by_view(packed_normals(seen.normal, cameras))
        return io.NodeOutput(images, masks, depth, normals, views, fps)


def _by_view(maps: Tensor) -> Tensor:
    """Return a copy of maps [T, C, ...] as [C * T, ...], all times of one camera after the other."""
    return maps.transpose(0, 1).clone(memory_format=torch.contiguous_format).flatten(0, 1)


def depth_images(depth: Tensor, alpha: Tensor) -> Tensor:
    """Return depths [..., H, W] as grey images [..., H, W, 3]: white is nearest, black farthest or nothing.

    One range for all pictures, so that a video does not flicker.
    """
    seen = alpha >= _OPAQUE
    if not seen.any():
        return torch.zeros(*depth.shape, 3)
    near, far = depth[seen].min(), depth[seen].max()
    nearness = ((far - depth) / (far - near).clamp(min=1e-6)).clamp(0, 1) * alpha
    return nearness[..., None].expand(*depth.shape, 3).contiguous()
