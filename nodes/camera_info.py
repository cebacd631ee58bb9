"""One of our cameras as the host's 3D nodes take it; for hosts that have `io.Load3DCamera`."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..sv4d2_core.cameras import Cameras
from .sockets import CamerasType, aliases


class SV4D2CamerasToCameraInfo(io.ComfyNode):
    """Turns one camera into the camera of a 3D viewer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2CamerasToCameraInfo",
            display_name="SV4D2 Cameras to Camera Info",
            category="SV4D2/cameras",
            description=(
                "Gives one camera of an orbit to ComfyUI's 3D nodes, so that a 3D preview or renderer looks "
                "from exactly where a novel view does. Connect the cameras of SV4D2 Camera Orbit, and the "
                "output to a node with a camera_info input, such as Preview 3D."
            ),
            inputs=[
                CamerasType.Input("cameras", tooltip="The cameras, from SV4D2 Camera Orbit."),
                io.Int.Input(
                    "view",
                    default=1,
                    min=0,
                    max=1024,
                    tooltip="Which camera: 0 is the clip's own, 1 the first novel view.",
                ),
            ],
            outputs=[
                io.Load3DCamera.Output(
                    display_name="camera_info",
                    tooltip="Position, target, rotation and field of view of the camera (Y is up).",
                ),
            ],
            **aliases("3d camera", "load3d", "preview 3d", "camera position"),
        )

    @classmethod
    def execute(cls, cameras: Cameras, view: int) -> io.NodeOutput:
        """Return the camera in the host's words; both worlds have Y up and cameras that look along -Z."""
        cameras.check_view(view)
        camera_info = {
            "position": _named("xyz", cameras.eyes()[view].tolist()),
            "target": _named("xyz", [0.0, 0.0, 0.0]),
            "quaternion": _named("xyzw", cameras.quaternions_xyzw()[view].tolist()),
            "fov": cameras.fov_deg,
            "zoom": 1,
            "cameraType": "perspective",
        }
        return io.NodeOutput(camera_info)


def _named(names: str, values: list[float]) -> dict[str, Any]:
    return dict(zip(names, values, strict=True))
