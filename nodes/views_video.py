"""All views side by side as one video."""

from __future__ import annotations

from fractions import Fraction

from comfy_api.latest import InputImpl, Types, io

from ..sv4d2_core.video.pictures import view_mosaic
from ..sv4d2_core.views import ViewGrid
from .sockets import ViewsType, aliases


class SV4D2ViewsGridVideo(io.ComfyNode):
    """Shows all views at once."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2ViewsGridVideo",
            display_name="SV4D2 Views Grid Video",
            category="SV4D2/views",
            description=(
                "Puts all views side by side, the input first, each with its number and angles: the quickest "
                "way to judge a result. Connect the views of SV4D2 Sampler or SV4D2 Load Views, and the "
                "video to Save Video or the images to Preview Image."
            ),
            inputs=[
                ViewsType.Input("views", tooltip="The views, from SV4D2 Sampler or SV4D2 Load Views."),
                io.Int.Input(
                    "columns",
                    default=0,
                    min=0,
                    max=65,
                    tooltip="Views in a row; 0 chooses a nearly square arrangement.",
                ),
                io.Boolean.Input(
                    "labels",
                    default=True,
                    tooltip="Write number, azimuth and elevation above each view.",
                ),
                io.Int.Input(
                    "cell_size",
                    default=288,
                    min=0,
                    max=2048,
                    step=8,
                    tooltip="Side of each view in pixels; 0 keeps the full size.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The frames with all views side by side."),
                io.Video.Output(
                    display_name="video", tooltip="The same as a video at the views' frame rate."
                ),
            ],
            **aliases("stable video 4d", "novel view", "mosaic", "contact sheet", "side by side"),
        )

    @classmethod
    def execute(cls, views: ViewGrid, columns: int, labels: bool, cell_size: int) -> io.NodeOutput:
        """Return the mosaic as images and as a video."""
        images = view_mosaic(views, columns=columns, labels=labels, cell_size=cell_size)
        rate = Fraction(views.fps).limit_denominator(1001)
        components = Types.VideoComponents(images=images, frame_rate=rate)
        return io.NodeOutput(images, InputImpl.VideoFromComponents(components))
