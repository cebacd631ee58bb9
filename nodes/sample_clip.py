"""A clip to try everything with, as Load Video would give it."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import InputImpl, Types, io, ui

from ..sv4d2_core.shipped import SAMPLE_CLIP
from ..sv4d2_core.video.read import load_clip
from .sockets import aliases, shows_a_picture


class SV4D2SampleClip(io.ComfyNode):
    """The clip that comes with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's sockets and widgets."""
        return io.Schema(
            node_id="SV4D2SampleClip",
            display_name="SV4D2 Sample Clip",
            category="SV4D2/prepare",
            description=(
                "A clip to try the pack with, without a file of your own: a generated puppy that walks, 21 "
                "frames of 576 x 576. Connect video and mask to SV4D2 Prepare Clip. For a clip of your own "
                "put Load Video in its place."
            ),
            inputs=[],
            outputs=[
                io.Video.Output(display_name="video", tooltip="The clip on white, 8 frames per second."),
                io.Mask.Output(display_name="mask", tooltip="The puppy in every frame, white."),
            ],
            **shows_a_picture(),
            **aliases("stable video 4d", "example", "demo", "test video"),
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Return the clip, and play it on the node."""
        clip = load_clip(SAMPLE_CLIP, frames=None)
        pixels = torch.from_numpy(clip.frames).float() / 255
        images, opacity = pixels[..., :3], pixels[..., 3]
        on_white = images * opacity[..., None] + (1 - opacity[..., None])
        rate = Fraction(clip.fps).limit_denominator(1001)
        video = InputImpl.VideoFromComponents(Types.VideoComponents(images=on_white, frame_rate=rate))
        return io.NodeOutput(video, opacity, ui=_played(SAMPLE_CLIP))


def _played(file: Path) -> dict[str, Any]:
    """Return the `ui` result that plays an animation on the node, from the host's temporary folder."""
    name = f"sv4d2_{file.name}"
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, folder / name)
    return {"images": [ui.SavedResult(name, "", io.FolderType.temp)], "animated": (True,)}
