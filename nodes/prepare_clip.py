"""A clip becomes what the model sees: square frames on white; and a clip to try everything with."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import Input, InputImpl, Types, io, ui
from torch import Tensor

from ..sv4d2_core.shipped import SAMPLE_CLIP
from ..sv4d2_core.video.crop import CENTERINGS, prepare_clip
from ..sv4d2_core.video.pictures import frame_strip
from ..sv4d2_core.video.read import Clip, load_clip
from .host import aliases, shows_a_picture
from .preview import picture_preview

# Frames per second that a video has before it is known, and copies of its frames that are alive at once.
_LIKELY_RATE, _COPIES = 30, 2


class SV4D2PrepareClip(io.ComfyNode):
    """Crops a clip around its object and puts it on white."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2PrepareClip",
            display_name="SV4D2 Prepare Clip",
            category="SV4D2/prepare",
            description=(
                "Makes a clip ready for SV4D 2.0: picks frames, crops a square around the moving object and "
                "puts it on white. Connect a video (Load Video) or a batch of images; connect a mask of the "
                "object unless the images have transparency or the background is white already. Feed the "
                "outputs clip, mask and fps to SV4D2 Sampler, and crop to SV4D2 Save Views. The report says "
                "what may spoil the result before minutes of sampling are spent."
            ),
            inputs=[
                io.MultiType.Input(
                    "clip",
                    [io.Image, io.Video],
                    tooltip="The clip of one moving object: a VIDEO, or a batch of images (with or without "
                    "alpha). A VIDEO keeps transparency in newer ComfyUI only: else connect a mask.",
                ),
                io.Int.Input(
                    "frames",
                    default=21,
                    min=1,
                    max=10000,
                    tooltip="Largest number of frames to use; a shorter clip gives what it has. SV4D 2.0 was "
                    "made for 21. More than 60 drift and lose detail.",
                ),
                io.Int.Input(
                    "start", default=0, min=0, max=1000000, tooltip="First frame to use, counted from 0."
                ),
                io.Int.Input(
                    "every",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="Use every Nth frame: 2 skips every other one. Helps with slow motion and with "
                    "long clips.",
                ),
                io.Float.Input(
                    "fps",
                    default=8.0,
                    min=0.1,
                    max=1000.0,
                    step=0.01,
                    tooltip="Frames per second of the result when images are connected. A VIDEO brings its "
                    "own rate (divided by every), and this number is not used.",
                ),
                io.Int.Input(
                    "size",
                    default=576,
                    min=32,
                    max=2048,
                    step=32,
                    tooltip="Side of the square frames in pixels. The model knows 576; it needs a multiple "
                    "of 64. Smaller is faster and takes less memory, but less sharp.",
                ),
                io.Combo.Input(
                    "centering",
                    options=list(CENTERINGS),
                    default=CENTERINGS[0],
                    tooltip="global: one fixed crop around the middle of the frame, as in the official "
                    "script. smooth: the crop follows the object gently (good when it walks through the "
                    "picture). per_frame: the object is centred anew in every frame. none: the whole "
                    "frame, for clips that are prepared already.",
                ),
                io.Float.Input(
                    "object_ratio",
                    default=0.9,
                    min=0.1,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of the square the object fills where it reaches farthest. 0.9 leaves "
                    "a small margin, as the model was trained.",
                ),
                io.Boolean.Input(
                    "ignore_specks",
                    default=True,
                    tooltip="Ignore dirt: tiny parts of the mask (below 0.05 % of the frame) do not count "
                    "as object. Switch off when a small part really belongs to it.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Mask of the object, white = object: one per frame of the clip, one per used "
                    "frame, or one for all. From background removal or SAM. Note: the mask output of Load "
                    "Image is white where the image is transparent; put Invert Mask between.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="clip", tooltip="The prepared frames: square, on white, the object centred."
                ),
                io.Mask.Output(display_name="mask", tooltip="The object in the prepared frames, white."),
                io.String.Output(
                    display_name="crop",
                    tooltip="Where the frames were cut out of the source, as JSON text; connect it to SV4D2 "
                    "Save Views to be able to put results back into the source clip.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="What the clip is and what may spoil the result, one line each; connect Preview "
                    "as Text (Preview Any) to read it.",
                ),
                io.Float.Output(display_name="fps", tooltip="Frames per second of the prepared clip."),
            ],
            **shows_a_picture(),
            **aliases("stable video 4d", "crop object", "center object", "white background", "novel view"),
        )

    @classmethod
    def execute(
        cls,
        clip: Tensor | Input.Video,
        frames: int,
        start: int,
        every: int,
        fps: float,
        size: int,
        centering: str,
        object_ratio: float,
        ignore_specks: bool,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        """Pick and prepare the frames, and show some of them."""
        if isinstance(clip, Tensor):
            images = clip
        else:
            images, alpha, rate = _decoded(clip)
            fps = rate / every
            mask = alpha if mask is None else mask
        picked = Clip.from_tensors(
            images, mask, fps, name="the clip", frames=frames, start=start, every=every
        )
        prepared = prepare_clip(
            picked, size=size, centering=centering, object_ratio=object_ratio, ignore_specks=ignore_specks
        )
        source_frames = [start + every * t for t in range(prepared.n_frames)]
        crop = json.dumps({**prepared.crop.to_json(), "source_frames": source_frames})
        strip = frame_strip(prepared.images, source_frames)
        return io.NodeOutput(
            prepared.images,
            prepared.masks,
            crop,
            "\n".join(prepared.report),
            prepared.fps,
            ui=picture_preview(strip, prepared.report, cls),
        )


def _decoded(video: Input.Video) -> tuple[Tensor, Tensor | None, float]:
    """Return a video's frames [T, H, W, 3], its opacity [T, H, W] where the host has it, and its rate.

    Raises:
        ValueError: the host would decode more than fits into main memory.
    """
    width, height = video.get_dimensions()
    free = comfy.model_management.get_free_memory(torch.device("cpu"))
    # The host decodes all frames as float32, whatever is used of them, and stacks them once more.
    per_second = _COPIES * 4 * 3 * width * height * _LIKELY_RATE
    try:
        seconds = video.get_duration()
    except ValueError:
        # A live recording, for example, does not say.
        seconds = 0.0
    if seconds * per_second > free:
        raise ValueError(
            f"A video of {seconds:.0f} s at {width} x {height} needs about "
            f"{seconds * per_second / 2**30:.0f} GiB of main memory when ComfyUI decodes it; "
            f"{free / 2**30:.0f} GiB are free. Cut it to less than {free / per_second:.0f} s, or shrink it."
        )
    components = video.get_components()
    alpha = getattr(components, "alpha", None)
    # Hosts differ in whether an opacity has an axis for its one channel.
    if alpha is not None and alpha.ndim == components.images.ndim:
        alpha = alpha[..., 0]
    return components.images, alpha, float(components.frame_rate)


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
