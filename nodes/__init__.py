"""The nodes: they hand the sockets' values to the core; their help is in locales/en/nodeDefs.json."""

from __future__ import annotations

import logging

from comfy_api.latest import ComfyExtension, io

from .cameras import SV4D2CameraInfoToCameras, SV4D2CameraOrbit, SV4D2CamerasToCameraInfo
from .export import SV4D2Export4D, SV4D2ExportDataset, SV4D2SceneToMesh, SV4D2SceneToSplat
from .host_model import register
from .load_model import SV4D2CheckpointLoader, SV4D2UNETLoader, register_tiny_model
from .metrics import SV4D2Metrics, register_folder
from .prepare_clip import SV4D2PrepareClip, SV4D2SampleClip
from .refine import SV4D2Refine4D
from .sample import SV4D2Conditioning, SV4D2Guidance, SV4D2Sampler
from .scene import SV4D2LoadScene, SV4D2Render4D, SV4D2SaveScene
from .views import (
    SV4D2ImagesToViews,
    SV4D2LoadViews,
    SV4D2RendersToViews,
    SV4D2SaveViews,
    SV4D2ViewsGridVideo,
    SV4D2ViewsToImages,
)

log = logging.getLogger(__name__)


class SV4D2Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
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
