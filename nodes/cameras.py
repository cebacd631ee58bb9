"""Cameras of the novel views, and their exchange with the host's 3D nodes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..sv4d2_core.cameras import DEFAULT_FOV_DEG, DEFAULT_RADIUS, Cameras
from ..sv4d2_core.export.plots import rig_picture
from ..sv4d2_core.export.viewer_cameras import Placement, ViewerCamera, from_viewer, to_viewer
from ..sv4d2_core.orbits import PRESETS, orbit
from .host import CamerasType, advanced, aliases, choice, described, number, shows_a_picture
from .preview import picture_preview

_FIRST, _FRONT = "first camera", "front"


class SV4D2CameraOrbit(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2CameraOrbit",
            category="SV4D2/cameras",
            inputs=[
                choice("preset", PRESETS),
                number("n_views", 4, (1, 64)),
                io.String.Input(
                    "elevations_deg", default="", placeholder="all level, or such as 0, 10, 0, 10"
                ),
                io.String.Input(
                    "azimuths_deg", default="", placeholder="for custom, such as 60, 120, 180, 240"
                ),
                number("sweep_azimuth_deg", 360.0, (-360, 360, 1), **advanced()),
                number("sweep_elevation_deg", 0.0, (-89, 89, 1), **advanced()),
                number("input_elevation_deg", 0.0, (-89, 89, 1)),
                number("radius", DEFAULT_RADIUS, (0.01, 100, 0.1), **advanced()),
                number("fov_deg", DEFAULT_FOV_DEG, (1, 170, 0.1), **advanced()),
            ],
            outputs=[CamerasType.Output(display_name="cameras")],
            **shows_a_picture(),
            **aliases("stable video 4d", "novel view", "camera path", "turntable", "azimuth", "elevation"),
        )

    @classmethod
    def execute(cls, preset: str, azimuths_deg: str, elevations_deg: str, **more: Any) -> io.NodeOutput:
        """Return the cameras and draw them; ``more`` are `orbit`'s numbers, as their widgets are called."""
        cameras = orbit(preset, azimuths=azimuths_deg, elevations=elevations_deg, **more)
        return io.NodeOutput(cameras, ui=picture_preview(rig_picture(cameras), cls=cls))


class SV4D2CamerasToCameraInfo(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2CamerasToCameraInfo",
            category="SV4D2/cameras",
            inputs=[CamerasType.Input("cameras"), number("view", 1, (0, 1024))],
            outputs=[
                io.Load3DCamera.Output(display_name="camera_info"),
                io.Load3DCamera.Output(display_name="all_cameras", is_output_list=True),
                io.Load3DCamera.Output(display_name="camera_list"),
            ],
            **aliases("3d camera", "load3d", "preview 3d", "camera position", "render mesh", "render splat"),
        )

    @classmethod
    def execute(cls, cameras: Cameras, view: int) -> io.NodeOutput:
        """Return the cameras in the host's words; both worlds have Y up and cameras that look along -Z."""
        cameras.check_view(view)
        infos = [_camera_info(camera) for camera in to_viewer(cameras)]
        camera_list: Any = infos
        # The host's own module: ours of that name is a part of our package.
        if "BatchCameras" not in getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {}):
            camera_list = ExecutionBlocker(
                "This ComfyUI has no camera lists yet. Connect all_cameras instead: the node behind runs "
                "once for each camera."
            )
        return io.NodeOutput(infos[view], infos, camera_list)


class SV4D2CameraInfoToCameras(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2CameraInfoToCameras",
            category="SV4D2/cameras",
            is_input_list=True,
            inputs=[
                io.Load3DCamera.Input("camera_info"),
                choice("input_view", [_FIRST, _FRONT]),
                number("input_elevation_deg", 0.0, (-89, 89, 1)),
                number("fov_deg", DEFAULT_FOV_DEG, (1, 170, 0.1), **advanced()),
                io.Custom("LOAD3D_MODEL_INFO").Input("model_3d_info", optional=True),
            ],
            outputs=[CamerasType.Output(display_name="cameras")],
            **aliases("3d camera", "load3d", "camera list", "camera orbit", "viewer", "novel view"),
        )

    @classmethod
    def execute(
        cls,
        camera_info: list[Any],
        input_view: list[str],
        input_elevation_deg: list[float],
        fov_deg: list[float],
        model_3d_info: list[Any] | None = None,
    ) -> io.NodeOutput:
        """Return the orbit; every input is a list, as the host gives it to a node that takes lists."""
        viewer = [_viewer_camera(info, fov_deg[0]) for info in _flat(camera_info)]
        front = input_elevation_deg[0] if input_view[0] == _FRONT else None
        placed = next(_flat(model_3d_info or []), None)
        model = None
        if placed is not None:
            named = (("xyz", "position"), ("xyzw", "quaternion"), ("xyz", "scale"))
            placed = {key: placed.get(key) if isinstance(placed, dict) else None for _, key in named}
            model = Placement(*(_numbers(names, placed[key]) for names, key in named))
        return io.NodeOutput(from_viewer(viewer, front_elevation_deg=front, model=model))


def _flat(values: Any) -> Iterator[Any]:
    """Yield what lists of lists hold: a host's list of values, each of which may be a camera list."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        elif value is not None:
            yield value


def _camera_info(camera: ViewerCamera) -> dict[str, Any]:
    return {
        "position": _named("xyz", camera.position),
        "target": _named("xyz", camera.target),
        "quaternion": _named("xyzw", camera.quaternion_xyzw or ()),
        "fov": camera.fov_deg,
        "zoom": camera.zoom,
        "cameraType": "perspective",
    }


def _viewer_camera(info: Any, fov_deg: float) -> ViewerCamera:
    """Return a camera_info as our core has it; ``fov_deg`` stands in for one that it lacks."""
    if not isinstance(info, dict) or not {"position", "target"} <= info.keys():
        raise ValueError(
            f"Expected a camera_info with position and target; got {str(info)[:80]}. Connect the camera_info "
            f"of Create Camera Info or of a 3D viewer."
        )
    kind = str(info.get("cameraType", "perspective"))
    if kind.lower().startswith("ortho"):
        raise ValueError(
            f"Expected perspective cameras; got an {kind} one. Set the camera to perspective in the node "
            f"that it comes from."
        )
    quaternion = info.get("quaternion")
    lens = {"fov": info.get("fov") or fov_deg, "zoom": info.get("zoom") or 1}
    fov_deg, zoom = _numbers(("fov", "zoom"), lens)
    return ViewerCamera(
        position=_numbers("xyz", info["position"]),
        target=_numbers("xyz", info["target"]),
        fov_deg=fov_deg,
        zoom=zoom,
        quaternion_xyzw=_numbers("xyzw", quaternion) if quaternion else None,
    )


def _named(names: str, values: Sequence[float]) -> dict[str, float]:
    return dict(zip(names, values, strict=True))


def _numbers(names: Sequence[str], values: Any) -> Any:
    try:
        return tuple(float(values[name]) for name in names)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected numbers {', '.join(names)} in a camera_info or model_3d_info; got {str(values)[:80]}. "
            f"Connect what a 3D node of ComfyUI gives."
        ) from error
