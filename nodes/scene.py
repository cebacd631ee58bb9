"""Scenes in files, and pictures of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from einops import rearrange
from torch import Tensor

from ..sv4d2_core.cameras import Cameras
from ..sv4d2_core.data.reader import numbered_file
from ..sv4d2_core.scene.losses import packed_normals
from ..sv4d2_core.scene.scene import Scene4D, even_times, own_cameras, turntable
from ..sv4d2_core.scene.store import load_scene
from ..sv4d2_core.views import ViewGrid
from .host import CamerasType, SceneType, ViewsType, aliases, gradients
from .output_folder import output_place, relative_to_output, shown_files
from .preview import counted_progress, picture_preview, scene_strip

# Pixels below this opacity do not set the range of the depth.
_OPAQUE = 0.5


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


_SUFFIX = ".safetensors"
_LISTED = 5


class SV4D2LoadScene(io.ComfyNode):
    """Loads a scene that was saved earlier."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's sockets and widgets."""
        return io.Schema(
            node_id="SV4D2LoadScene",
            display_name="SV4D2 Load Scene",
            category="SV4D2/scene",
            description=(
                "Loads a 4D scene that SV4D2 Save Scene or the command line wrote, so that it need not be "
                "fitted again. Give the file's name; nothing needs to be connected. Connect the scene to "
                "SV4D2 Render 4D."
            ),
            inputs=[
                io.String.Input(
                    "file",
                    default="sv4d2/scene_00001.safetensors",
                    tooltip="The file, relative to ComfyUI's output folder (looked at first) or input "
                    "folder, such as sv4d2/scene_00001.safetensors. Or connect the file output of SV4D2 "
                    "Save Scene.",
                ),
            ],
            outputs=[
                SceneType.Output(display_name="scene", tooltip="The scene, for SV4D2 Render 4D."),
                CamerasType.Output(
                    display_name="cameras", tooltip="The cameras of the views that it was fitted to."
                ),
            ],
            **aliases("4d", "nerf", "gaussian splatting", "open scene"),
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None) -> int:
        """Return when the file last changed, so that it is read again then."""
        if file is None:
            # The name comes through a link and is not known yet.
            return 0
        try:
            return _found(file).stat().st_mtime_ns
        except (OSError, ValueError):
            # `execute` says what is wrong.
            return 0

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        """Return the scene and its cameras."""
        with gradients():
            scene = load_scene(_found(file), comfy.model_management.get_torch_device())
        return io.NodeOutput(scene, scene.cameras)


class SV4D2SaveScene(io.ComfyNode):
    """Saves a scene."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's sockets and widgets."""
        return io.Schema(
            node_id="SV4D2SaveScene",
            display_name="SV4D2 Save Scene",
            category="SV4D2/scene",
            description=(
                "Writes a 4D scene into one new file, which SV4D2 Load Scene and the command line (sv4d2 "
                "render) read. Connect the scene of SV4D2 Refine 4D. Nothing is ever overwritten."
            ),
            inputs=[
                SceneType.Input("scene", tooltip="The scene to save, from SV4D2 Refine 4D."),
                io.String.Input(
                    "filename_prefix",
                    default="sv4d2/scene",
                    tooltip="Name of the file below ComfyUI's output folder; a number is added: "
                    "sv4d2/scene_00001.safetensors. Knows %year%, %month%, %day% and the like.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="file",
                    tooltip="The new file relative to the output folder, as SV4D2 Load Scene takes it.",
                ),
            ],
            is_output_node=True,
            **aliases("4d", "nerf", "gaussian splatting", "export scene"),
        )

    @classmethod
    def execute(cls, scene: Scene4D, filename_prefix: str) -> io.NodeOutput:
        """Write the file, show the scene and its name."""
        place = numbered_file(*output_place(filename_prefix, 0), _SUFFIX)
        try:
            scene.save(place)
        except BaseException:
            place.unlink(missing_ok=True)
            raise
        relative = relative_to_output(place)
        size = place.stat().st_size / 2**20
        lines = [f"Saved {relative}: {scene.backend}, {scene.n_frames} frames, {size:.1f} MB"]
        with gradients():
            strip = scene_strip(scene)
        shown = {**picture_preview(strip, lines, cls), **shown_files([place])}
        return io.NodeOutput(relative, ui=shown)


def _found(name: str) -> Path:
    """Return the file called ``name`` in the output or the input folder, links resolved.

    Raises:
        ValueError: the path leads out of these folders.
        FileNotFoundError: there is no such file; the text lists some that are there.
    """
    roots = [Path(folder_paths.get_output_directory()), Path(folder_paths.get_input_directory())]
    if "\0" in name:
        raise ValueError(f"Expected the name of a file; got {name!r}, which holds a NUL byte.")
    for root in map(Path.resolve, roots):
        file = (root / name.strip()).resolve()
        if root not in file.parents:
            raise ValueError(
                f"Expected a file inside {' or '.join(map(str, roots))}; {name!r} leads (by a link or ..) "
                f"outside. Give its path relative to one of them."
            )
        if file.is_file():
            return file
    found = sorted(
        (path for root in roots for path in root.rglob(f"*{_SUFFIX}") if path.is_file()),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    names = [next(p.relative_to(r) for r in roots if r in p.parents).as_posix() for p in found[:_LISTED]]
    listing = f"Files that exist: {', '.join(names)}." if names else "There are none yet."
    raise FileNotFoundError(
        f"Expected the file of a scene; there is no {name!r} in the output or input folder. {listing}"
    )


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
