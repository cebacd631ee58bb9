"""The node that writes views as a data set for reconstruction programs."""

from __future__ import annotations

from comfy_api.latest import io

from ..sv4d2_core.export.scene_export import VIEWS_FORMATS, export_views
from ..sv4d2_core.files import claimed
from ..sv4d2_core.views import ViewGrid
from .output_folder import output_place, relative_to_output, shown_files
from .sockets import ViewsType, aliases
from .views_folder import parsed_crop


class SV4D2ExportDataset(io.ComfyNode):
    """Views as a data set."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's sockets and widgets."""
        return io.Schema(
            node_id="SV4D2ExportDataset",
            display_name="SV4D2 Export Dataset",
            category="SV4D2/export",
            description=(
                "Writes views as a data set that reconstruction programs train on: D-NeRF and nerfstudio "
                "(transforms_train, val and test, RGBA pictures, masks, times, cameras.json, videos) or "
                "COLMAP text. Connect the views of SV4D2 Sampler or SV4D2 Render 4D. Nothing is ever "
                "overwritten."
            ),
            inputs=[
                ViewsType.Input(
                    "views", tooltip="The views to write, from SV4D2 Sampler or SV4D2 Render 4D."
                ),
                io.Combo.Input(
                    "format",
                    options=list(VIEWS_FORMATS),
                    default=VIEWS_FORMATS[0],
                    tooltip="dataset: for D-NeRF, nerfstudio, 4D Gaussian splatting and their like. colmap: "
                    "one COLMAP model per frame.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="sv4d2/dataset",
                    tooltip="Name of the folder below ComfyUI's output folder; a number is added: "
                    "sv4d2/dataset_00001. Knows %year%, %month%, %day% and the like.",
                ),
                io.String.Input(
                    "crop",
                    optional=True,
                    force_input=True,
                    tooltip="The crop of SV4D2 Prepare Clip, kept in cameras.json: it says where the views "
                    "belong in the source clip.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="folder", tooltip="The new folder relative to the output folder."
                ),
            ],
            is_output_node=True,
            **aliases("transforms.json", "nerfstudio", "d-nerf", "colmap", "nerf", "export"),
        )

    @classmethod
    def execute(
        cls, views: ViewGrid, format: str, filename_prefix: str, crop: str | None = None
    ) -> io.NodeOutput:
        """Write the folder and return its name."""
        path = parsed_crop(crop)
        with claimed(*output_place(filename_prefix, views.images.shape[2])) as folder:
            made = export_views(views, folder, format, crop=path)
        name = relative_to_output(folder)
        report = f"{name}: {made.n_bytes() / 1e6:.2f} MB"
        return io.NodeOutput(name, ui={**shown_files(made.paths), "text": [report]})
