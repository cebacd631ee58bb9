"""Preparation of a clip: square frames on white; and the sample clip."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import Input, InputImpl, Types, io, ui
from torch import Tensor
from torch.nn import functional as F

from ..sv4d2_core.files import scratch_folder
from ..sv4d2_core.shipped import SAMPLE_CLIP
from ..sv4d2_core.video.crop import CENTERINGS
from ..sv4d2_core.video.decode import REORIENTED, WHOLE, Pick, resampled
from ..sv4d2_core.video.pictures import frame_strip, on_white
from ..sv4d2_core.video.prepare import prepare_clip
from ..sv4d2_core.video.read import ALPHAS, Clip, count_pictures, load_clip, mask_levels
from ..sv4d2_core.views import playable
from .host import advanced, aliases, choice, described, number, outputs, shows_a_picture
from .preview import picture_preview

_LIKELY_RATE, _COPIES = 30, 2  # frames per second, assumed before decoding; copies of frames alive at once
_BY_THE_HOST = (
    "the mask fits ComfyUI's own frames, which are used: HDR, pixels that are not square and turns are as "
    "ComfyUI shows them"
)


class SV4D2PrepareClip(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2PrepareClip",
            category="SV4D2/prepare",
            inputs=[
                io.MultiType.Input("clip", [io.Image, io.Video]),
                number("frames", 21, (1, 10000)),
                number("start", 0, (0, 1000000)),
                number("every", 1, (1, 1000)),
                number("fps", 8.0, (0.1, 1000, 0.01)),
                number("size", 576, (32, 2048, 32)),
                choice("centering", CENTERINGS),
                number("object_ratio", 0.9, (0.1, 1, 0.01)),
                io.Boolean.Input("ignore_specks", default=True),
                io.Mask.Input("mask", optional=True),
                io.Boolean.Input("resample", default=False, optional=True, **advanced()),
                choice("alpha", ALPHAS, optional=True, **advanced()),
            ],
            outputs=outputs(clip=io.Image, mask=io.Mask, crop=io.String, report=io.String, fps=io.Float),
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
        resample: bool = False,
        alpha: str = "auto",
    ) -> io.NodeOutput:
        if isinstance(clip, Tensor):
            choice = {"frames": frames, "start": start, "every": every, "alpha": alpha}
            picked = Clip.from_tensors(clip, mask, fps, name="the clip", **choice)
        else:
            picked = _of_video(clip, mask, Pick(start, every, frames, fps if resample else None), alpha)
        prepared = prepare_clip(
            picked, size=size, centering=centering, object_ratio=object_ratio, ignore_specks=ignore_specks
        )
        crop = json.dumps({**prepared.crop.to_json(), "source_frames": prepared.source_frames})
        strip = frame_strip(prepared.images, prepared.source_frames)
        return io.NodeOutput(
            prepared.images,
            prepared.masks,
            crop,
            "\n".join(prepared.report),
            prepared.fps,
            ui=picture_preview(strip, prepared.report, cls),
        )


def _of_video(video: Input.Video, mask: Tensor | None, pick: Pick, alpha: str) -> Clip:
    """Return the clip in a video's file; the host's own frames where only these will do.

    These are pictures in memory, and those of an orientation or size of their own that a mask was made from.
    """
    clip, said = None, list[str]()
    if isinstance(video, InputImpl.VideoFromFile):
        with _file_of(video) as place:
            # Older hosts cut no videos.
            start, duration = getattr(video, "get_active_trim_window", lambda: (0, 0))()
            window = (start, start + duration) if duration else (start or WHOLE[0], WHOLE[1])
            choice = {"frames": pick.count, "start": pick.start, "every": pick.every, "fps": pick.fps}
            clip = load_clip(place, **choice, alpha=alpha, window=window)
            if mask is None:
                return clip
            masked = _masked(clip, mask, video, partial(count_pictures, place, window))
        if masked is not None:
            return masked
        said.append(_BY_THE_HOST)
    images, rate = _decoded(video)
    numbers, fps = pick.among(len(images), rate), pick.fps or playable(rate / pick.every)
    if clip is not None and clip.source_frames[-1] < len(images):  # the file knows its frames' times
        numbers, fps = clip.source_frames, clip.fps
    made = Clip.from_tensors(images, mask, fps, "the clip", start=pick.start, alpha=alpha, numbers=numbers)
    if pick.fps is not None:
        said.append(resampled(fps, numbers))
    return replace(made, notes=(*said, *made.notes))


def _masked(clip: Clip, mask: Tensor, video: Input.Video, count: Callable[[], int]) -> Clip | None:
    """Return a file's clip with a mask, of which there may be one for each of all ``count()`` frames.

    None for a mask that only fits the frames as the host shows them.
    """
    mask = mask[None] if mask.ndim == 2 else mask
    shown = clip.frames.shape[1:3]
    fits = mask.shape[1:] == shown
    if any(note.startswith(REORIENTED) for note in clip.notes):
        # Whether the host turns pictures shows in their sides, but of half turns and mirror images.
        fits = fits and video.get_dimensions()[::-1] != shown
    elif not fits and video.get_dimensions()[::-1] == mask.shape[1:]:  # pixels that are not square
        mask = F.interpolate(mask[:, None].float(), shown, mode="bilinear", antialias=True)[:, 0]
        fits = True
    if not fits:
        return None
    if len(mask) > 1 and clip.source_frames != tuple(range(len(mask))) and len(mask) == count():
        mask = mask[list(clip.source_frames)]
    return replace(clip, masks=mask_levels(mask, clip.n_frames))


@contextmanager
def _file_of(video: Any) -> Iterator[str]:
    """Yield the place of a video's file; one in memory is written for as long as the block runs."""
    if isinstance(source := video.get_stream_source(), str):
        yield source
        return
    with scratch_folder() as folder:
        source.seek(0)
        place = folder / "video.mp4"  # whatever it is: programs look inside
        with place.open("wb") as file:
            shutil.copyfileobj(source, file)
        yield str(place)


def _decoded(video: Input.Video) -> tuple[Tensor, float]:
    """Return a video's frames [T, H, W, 3 or, where the host has their opacity, 4], and its rate."""
    width, height = video.get_dimensions()
    free = comfy.model_management.get_free_memory(torch.device("cpu"))
    # The host decodes all frames as float32, whatever is used of them, and stacks them once more.
    per_second = _COPIES * 4 * 3 * width * height * _LIKELY_RATE
    try:
        seconds = video.get_duration()
    except ValueError:
        seconds = 0.0  # unknown, as of a live recording
    if seconds * per_second > free:
        raise ValueError(
            f"A video of {seconds:.0f} s at {width} x {height} needs about "
            f"{seconds * per_second / 2**30:.0f} GiB of main memory when ComfyUI decodes it; "
            f"{free / 2**30:.0f} GiB are free. Cut it to less than {free / per_second:.0f} s, or shrink it."
        )
    components = video.get_components()
    alpha = getattr(components, "alpha", None)
    images, rate = components.images, float(components.frame_rate)
    if alpha is None:
        return images, rate
    # Hosts differ in whether an opacity has an axis for its one channel.
    alpha = alpha if alpha.ndim == images.ndim else alpha[..., None]
    return torch.cat([images[..., :3], alpha], dim=-1), rate


class SV4D2SampleClip(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2SampleClip",
            category="SV4D2/prepare",
            inputs=[],
            outputs=outputs(video=io.Video, mask=io.Mask),
            **shows_a_picture(),
            **aliases("stable video 4d", "example", "demo", "test video"),
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Return the clip, and play it on the node, from the host's temporary folder."""
        clip = load_clip(SAMPLE_CLIP, frames=None)
        pixels = torch.from_numpy(clip.frames).float() / 255
        opacity = pixels[..., 3]
        rate = Fraction(clip.fps).limit_denominator(1001)
        shown = on_white(pixels[..., :3], opacity)
        video = InputImpl.VideoFromComponents(Types.VideoComponents(images=shown, frame_rate=rate))
        name, folder = f"sv4d2_{SAMPLE_CLIP.name}", Path(folder_paths.get_temp_directory())
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(SAMPLE_CLIP, folder / name)
        played = {"images": [ui.SavedResult(name, "", io.FolderType.temp)], "animated": (True,)}
        return io.NodeOutput(video, opacity, ui=played)
