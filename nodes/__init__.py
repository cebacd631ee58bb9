"""The ComfyUI door: nodes that hand the sockets' values to the core."""

from __future__ import annotations

import logging

from comfy_api.latest import ComfyExtension, io

from .camera_info import SV4D2CameraInfoToCameras, SV4D2CamerasToCameraInfo
from .camera_orbit import SV4D2CameraOrbit
from .conditioning_node import SV4D2Conditioning
from .export_dataset import SV4D2ExportDataset
from .export_scene import SV4D2Export4D
from .guidance_node import SV4D2Guidance
from .host_model import register
from .loaders import SV4D2CheckpointLoader, SV4D2UNETLoader
from .metrics import SV4D2Metrics
from .metrics_networks import register_folder
from .prepare_clip import SV4D2PrepareClip
from .refine import SV4D2Refine4D
from .render_scene import SV4D2Render4D
from .replacements import register_replacements
from .sample_clip import SV4D2SampleClip
from .sampler import SV4D2Sampler
from .scene_files import SV4D2LoadScene, SV4D2SaveScene
from .scene_mesh import SV4D2SceneToMesh
from .scene_splat import SV4D2SceneToSplat
from .tiny_model import register_tiny_model
from .views_folder import SV4D2LoadViews, SV4D2SaveViews
from .views_images import SV4D2ImagesToViews, SV4D2RendersToViews, SV4D2ViewsToImages
from .views_video import SV4D2ViewsGridVideo

log = logging.getLogger(__name__)


class SV4D2Extension(ComfyExtension):
    """All nodes of this pack."""

    async def on_load(self) -> None:
        """Register what newer hosts want to know before the nodes."""
        try:
            await register_replacements()
        except Exception:
            log.exception("SV4D2: this ComfyUI did not take the list of renamed nodes.")

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the node classes."""
        for step in (register, register_folder, register_tiny_model):
            try:
                step()
            except Exception:
                # Each step is one change of a host's list: what failed has changed nothing.
                log.exception("SV4D2: %s failed in this ComfyUI; the rest of the pack works.", step.__name__)
        return [
            SV4D2CheckpointLoader,
            SV4D2UNETLoader,
            SV4D2SampleClip,
            SV4D2PrepareClip,
            SV4D2CameraOrbit,
            *([SV4D2CamerasToCameraInfo, SV4D2CameraInfoToCameras] if hasattr(io, "Load3DCamera") else []),
            SV4D2Conditioning,
            SV4D2Guidance,
            SV4D2Sampler,
            SV4D2ViewsToImages,
            SV4D2ImagesToViews,
            SV4D2RendersToViews,
            SV4D2ViewsGridVideo,
            SV4D2LoadViews,
            SV4D2SaveViews,
            SV4D2Metrics,
            SV4D2Refine4D,
            SV4D2Render4D,
            SV4D2LoadScene,
            SV4D2SaveScene,
            SV4D2Export4D,
            SV4D2ExportDataset,
            SV4D2SceneToMesh,
            *([SV4D2SceneToSplat] if hasattr(io, "Splat") else []),
        ]
