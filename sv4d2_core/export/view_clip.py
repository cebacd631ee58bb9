"""The clip of one view on white with its masks, and the grid that the clips of all views make."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from ..cameras import Cameras
from ..video.foreground import near_white_masks, opacity_source
from ..video.frames import Clip
from ..views import ViewGrid

# Share of the border that may be darker than white before a picture without mask cannot be on white.
_LARGEST_BORDER_SHARE = 0.8
# Share of the pixels outside a mask that may be darker than white before the mask cuts the object out.
_LARGEST_OUTSIDE_SHARE = 0.5

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ViewClip:
    """All frames of one view.

    Args:
        name: where they came from, for messages.
        images: [T, H, W, 3] float32 in 0..1, on white.
        masks: [T, H, W] float32 foreground opacity in 0..1.
        fps: frames per second.
    """

    name: str
    images: Tensor
    masks: Tensor
    fps: float

    @classmethod
    def of_clip(cls, clip: Clip) -> ViewClip:
        """Return a clip on white.

        Its masks say what the object is, else its alpha unless that is opaque everywhere, else all that is
        not near white. Pictures with masks are put on white where their background is something else.

        Raises:
            ValueError: neither mask nor alpha, and no white background.
        """
        pixels = torch.from_numpy(clip.frames).float() / 255
        images, source = pixels[..., :3], opacity_source(clip)
        if source == "alpha":
            masks = pixels[..., 3]
            return cls(clip.name, _on_white(images, masks), masks, clip.fps)
        if clip.masks is None:
            return cls.of_images(images, clip.name, clip.fps)
        masks = torch.from_numpy(clip.masks).float() / 255
        outside = near_white_masks(images)[masks == 0]
        if len(outside) and float(outside.mean()) > _LARGEST_OUTSIDE_SHARE:
            _log.info("%s is not on white: its masks put it there.", clip.name)
            images = _on_white(images, masks)
        return cls(clip.name, images, masks, clip.fps)

    @classmethod
    def of_images(cls, images: Tensor, name: str, fps: float) -> ViewClip:
        """Return images [T, H, W, 3] on white with all that is not near white as mask.

        Raises:
            ValueError: the background is not white.
        """
        masks = near_white_masks(images)
        sides = (masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1])
        share = float(torch.cat([side.flatten() for side in sides]).mean())
        if share > _LARGEST_BORDER_SHARE:
            raise ValueError(
                f"Expected a near-white background in pictures without transparency or masks; got "
                f"{100 * share:.0f} % of the border darker than that in {name}. Put the pictures on white, "
                f"or save them with transparency."
            )
        return cls(name, images, masks, fps)


def grid_of_clips(clips: Iterator[ViewClip], cameras: Cameras) -> ViewGrid:
    """Return the grid of V + 1 clips, the input view first; its rate is that of the first novel view.

    The clips are taken one by one, so that only the grid and one clip are in memory.

    Raises:
        ValueError: pictures that are not square, a clip with another number of frames or another size than
            the first.
    """
    first = next(clips)
    n_frames, height, width = first.masks.shape
    if height != width:
        raise ValueError(
            f"Expected square pictures (the cameras are square); {first.name} has {width} x {height}. Crop "
            f"or pad all views."
        )
    images = torch.empty(n_frames, cameras.n_views + 1, height, width, 3)
    masks, fps = torch.empty(images.shape[:4]), first.fps
    for view, clip in zip(range(cameras.n_views + 1), chain([first], clips), strict=True):
        if clip.masks.shape != first.masks.shape:
            raise ValueError(
                f"Expected views with equal numbers of frames and sizes; {first.name} has "
                f"{_shape_text(first.masks)}, {clip.name} has {_shape_text(clip.masks)}. Cut "
                f"(--frames) or resize them alike."
            )
        images[:, view], masks[:, view] = clip.images, clip.masks
        fps = clip.fps if view == 1 else fps
    return ViewGrid(images, cameras, masks, fps)


def _on_white(images: Tensor, opacity: Tensor) -> Tensor:
    alpha = opacity[..., None]
    return images * alpha + (1 - alpha)


def _shape_text(masks: Tensor) -> str:
    n_frames, height, width = masks.shape
    return f"{n_frames} frame{'s' if n_frames != 1 else ''} of {width} x {height}"
