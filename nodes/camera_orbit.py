"""Where the novel views are seen from."""

from __future__ import annotations

from comfy_api.latest import io

from ..sv4d2_core.cameras import DEFAULT_FOV_DEG, DEFAULT_RADIUS
from ..sv4d2_core.export.plots import rig_picture
from ..sv4d2_core.orbits import PRESETS, orbit
from .preview import picture_preview
from .sockets import CamerasType, advanced, aliases, shows_a_picture


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
