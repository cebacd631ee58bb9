"""Where the novel views are seen from, and cameras of the host's 3D nodes as ours and back."""

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
from .host import CamerasType, advanced, aliases, shows_a_picture
from .preview import picture_preview


class SV4D2CameraOrbit(io.ComfyNode):
    """Places cameras around the object."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2CameraOrbit",
            display_name="SV4D2 Camera Orbit",
            category="SV4D2/cameras",
            description=(
                "Places the cameras of the novel views around the object; all angles are relative to the "
                "clip's own camera. Choose the preset of your checkpoint first: it is what the model was "
                "trained for. Connect the output to SV4D2 Sampler or SV4D2 Conditioning. The picture on the "
                "node shows every camera with its number; the input's is orange."
            ),
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=PRESETS[0],
                    tooltip="4 views, 8 views: the orbits of the two official checkpoints. ring: n_views "
                    "evenly around, at one elevation. rings: one such ring per elevation in the list. sweep: "
                    "n_views along an arc. custom: your own azimuths and elevations. The number of views "
                    "must be that of the checkpoint (4 or 8) or a multiple of it.",
                ),
                io.Int.Input(
                    "n_views",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="Number of novel views of a ring (for rings: of each ring) or of a sweep. Not "
                    "used by the other presets.",
                ),
                io.String.Input(
                    "elevations_deg",
                    default="",
                    placeholder="all level, or such as 0, 10, 0, 10",
                    tooltip="Camera heights in degrees relative to the input view (positive = from above), "
                    "separated by commas or blanks. 4 views, 8 views and custom: blank (all level with the "
                    "input) or one per novel view. ring: blank or one number. rings: one per ring, such as "
                    "-15, 20.",
                ),
                io.String.Input(
                    "azimuths_deg",
                    default="",
                    placeholder="for custom, such as 60, 120, 180, 240",
                    tooltip="Only for custom: degrees around the object, one per novel view, such as 60, "
                    "120, 180, 240. Positive moves the camera to the viewer's right; 180 is behind the "
                    "object. A leading 0 stands for the input view and may be left out.",
                ),
                io.Float.Input(
                    "sweep_azimuth_deg",
                    default=360.0,
                    min=-360.0,
                    max=360.0,
                    step=1.0,
                    tooltip="Only for sweep: the arc in degrees from the input view to just after the last "
                    "view; 360 is a full turn, negative turns to the left.",
                    **advanced(),
                ),
                io.Float.Input(
                    "sweep_elevation_deg",
                    default=0.0,
                    min=-89.0,
                    max=89.0,
                    step=1.0,
                    tooltip="Only for sweep: how far the camera rises and sinks along the arc, in degrees "
                    "(one wave).",
                    **advanced(),
                ),
                io.Float.Input(
                    "input_elevation_deg",
                    default=0.0,
                    min=-89.0,
                    max=89.0,
                    step=1.0,
                    tooltip="How high the clip's own camera looks down on the object, in degrees. The model "
                    "does not see it; it makes the exported cameras and 3D scenes stand upright.",
                ),
                io.Float.Input(
                    "radius",
                    default=DEFAULT_RADIUS,
                    min=0.01,
                    max=100.0,
                    step=0.1,
                    tooltip="Distance of the cameras from the object (about 1 large) in exported camera "
                    "files. Does not change the pictures.",
                    **advanced(),
                ),
                io.Float.Input(
                    "fov_deg",
                    default=DEFAULT_FOV_DEG,
                    min=1.0,
                    max=170.0,
                    step=0.1,
                    tooltip="Field of view in degrees in exported camera files; 33.8 is what the model was "
                    "trained with. Does not change the pictures.",
                    **advanced(),
                ),
            ],
            outputs=[
                CamerasType.Output(
                    display_name="cameras",
                    tooltip="The input's camera and those of the novel views; connect it to SV4D2 Sampler, "
                    "SV4D2 Conditioning or SV4D2 Images to Views.",
                ),
            ],
            **shows_a_picture(),
            **aliases("stable video 4d", "novel view", "camera path", "turntable", "azimuth", "elevation"),
        )

    @classmethod
    def execute(
        cls,
        preset: str,
        n_views: int,
        elevations_deg: str,
        azimuths_deg: str,
        sweep_azimuth_deg: float,
        sweep_elevation_deg: float,
        input_elevation_deg: float,
        radius: float,
        fov_deg: float,
    ) -> io.NodeOutput:
        """Return the cameras and draw them."""
        cameras = orbit(
            preset,
            n_views=n_views,
            azimuths=azimuths_deg,
            elevations=elevations_deg,
            sweep_azimuth_deg=sweep_azimuth_deg,
            sweep_elevation_deg=sweep_elevation_deg,
            input_elevation_deg=input_elevation_deg,
            radius=radius,
            fov_deg=fov_deg,
        )
        return io.NodeOutput(cameras, ui=picture_preview(rig_picture(cameras), cls=cls))


_FIRST, _FRONT = "first camera", "front"


class SV4D2CamerasToCameraInfo(io.ComfyNode):
    """Turns our cameras into those of a 3D viewer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2CamerasToCameraInfo",
            display_name="SV4D2 Cameras to Camera Info",
            category="SV4D2/cameras",
            description=(
                "Gives the cameras of an orbit to ComfyUI's 3D nodes, so that a 3D preview or renderer looks "
                "from exactly where the novel views do. Connect the cameras of SV4D2 Camera Orbit, and an "
                "output to a node with a camera_info input: camera_info to Preview 3D, all_cameras to Render "
                "Mesh or Render Splat, whose pictures SV4D2 Renders to Views turns into views."
            ),
            inputs=[
                CamerasType.Input("cameras", tooltip="The cameras, from SV4D2 Camera Orbit."),
                io.Int.Input(
                    "view",
                    default=1,
                    min=0,
                    max=1024,
                    tooltip="Which camera camera_info is: 0 is the clip's own, 1 the first novel view.",
                ),
            ],
            outputs=[
                io.Load3DCamera.Output(
                    display_name="camera_info",
                    tooltip="Position, target, rotation and field of view of the camera (Y is up).",
                ),
                io.Load3DCamera.Output(
                    display_name="all_cameras",
                    is_output_list=True,
                    tooltip="All cameras, the clip's own first. The node behind runs once for each of them.",
                ),
                io.Load3DCamera.Output(
                    display_name="camera_list",
                    tooltip="All cameras in one camera list, for versions of ComfyUI that have the node "
                    "Batch Cameras. Others take all_cameras.",
                ),
            ],
            **aliases("3d camera", "load3d", "preview 3d", "camera position", "render mesh", "render splat"),
        )

    @classmethod
    def execute(cls, cameras: Cameras, view: int) -> io.NodeOutput:
        """Return the cameras in the host's words; both worlds have Y up and cameras that look along -Z."""
        cameras.check_view(view)
        infos = [_camera_info(camera) for camera in to_viewer(cameras)]
        camera_list: Any = infos
        if not _host_has_camera_lists():
            camera_list = ExecutionBlocker(
                "This ComfyUI has no camera lists yet. Connect all_cameras instead: the node behind runs "
                "once for each camera."
            )
        return io.NodeOutput(infos[view], infos, camera_list)


class SV4D2CameraInfoToCameras(io.ComfyNode):
    """Turns cameras of a 3D viewer into ours."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2CameraInfoToCameras",
            display_name="SV4D2 Camera Info to Cameras",
            category="SV4D2/cameras",
            description=(
                "Takes the cameras of ComfyUI's 3D nodes: one, several or a camera list that stand around "
                "one point and look at it. Connect Create Camera Info, Preview 3D or Create Camera Orbit, "
                "and the output to SV4D2 Render 4D, SV4D2 Sampler or, with pictures rendered from these "
                "cameras, to SV4D2 Renders to Views."
            ),
            is_input_list=True,
            inputs=[
                io.Load3DCamera.Input(
                    "camera_info",
                    tooltip="The cameras. All must be perspective and upright and have one target, one "
                    "distance from it and one field of view; the target becomes the object's centre.",
                ),
                io.Combo.Input(
                    "input_view",
                    options=[_FIRST, _FRONT],
                    default=_FIRST,
                    tooltip="Which camera is the input view, which azimuths count from. first camera: the "
                    "first one; the others are the novel views. front: one at the front of the world (+Z), "
                    "as in the scenes of SV4D2 Refine 4D; all cameras given are novel views.",
                ),
                io.Float.Input(
                    "input_elevation_deg",
                    default=0.0,
                    min=-89.0,
                    max=89.0,
                    step=1.0,
                    tooltip="Only for front: how high the clip's own camera looks down on the object, in "
                    "degrees.",
                ),
                io.Float.Input(
                    "fov_deg",
                    default=DEFAULT_FOV_DEG,
                    min=1.0,
                    max=170.0,
                    step=0.1,
                    tooltip="Field of view in degrees of a camera_info that states none, as older versions "
                    "of ComfyUI make them. Otherwise not used.",
                    **advanced(),
                ),
                io.Custom("LOAD3D_MODEL_INFO").Input(
                    "model_3d_info",
                    optional=True,
                    tooltip="How a viewer has moved, turned and scaled the model, from the same node as "
                    "camera_info: the cameras then fit the model as it is in its file.",
                ),
            ],
            outputs=[
                CamerasType.Output(
                    display_name="cameras",
                    tooltip="The input's camera and those of the novel views; connect it to SV4D2 Render 4D, "
                    "SV4D2 Sampler or SV4D2 Renders to Views.",
                ),
            ],
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
        models = list(_flat(model_3d_info or []))
        model = _placement(models[0]) if models else None
        return io.NodeOutput(from_viewer(viewer, front_elevation_deg=front, model=model))


def _host_has_camera_lists() -> bool:
    """Return whether the host's 3D nodes take several cameras through one socket."""
    # The host's own module: ours of that name is a part of our package.
    return "BatchCameras" in getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})


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
    return ViewerCamera(
        position=_numbers("xyz", info["position"]),
        target=_numbers("xyz", info["target"]),
        fov_deg=float(info.get("fov") or fov_deg),
        zoom=float(info.get("zoom") or 1),
        quaternion_xyzw=_numbers("xyzw", quaternion) if quaternion else None,
    )


def _placement(info: dict[str, Any]) -> Placement:
    return Placement(
        position=_numbers("xyz", info["position"]),
        quaternion_xyzw=_numbers("xyzw", info["quaternion"]),
        scale=_numbers("xyz", info["scale"]),
    )


def _named(names: str, values: Sequence[float]) -> dict[str, float]:
    return dict(zip(names, values, strict=True))


def _numbers(names: str, values: dict[str, float]) -> Any:
    return tuple(float(values[name]) for name in names)
