"""The square crop around the object: where it lies in every frame, and the frames that the model sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .foreground import foreground_masks, object_boxes, opacity_source
from .prepare import describe_clip
from .read import Clip

CENTERINGS = ("global", "per_frame", "smooth", "none")

# Standard deviation of the Gaussian that smooths the path of the object's centre, frames.
_SMOOTHING_FRAMES = 2.0


@dataclass(frozen=True)
class CropPath:
    """Where the crop of every frame lies in the source: all that is needed to undo it.

    Positions are in pixels with pixel j covering [j, j + 1); one scale serves the whole clip.

    Args:
        centers: (x, y) of the crop's centre in each source frame; the crop may reach out of the frame.
        side: side of the square in source pixels that becomes ``size``.
        size: side of the prepared frames, pixels.
        source_height, source_width: size of the source frames, pixels.
        centering: ``global`` (the frame's centre is kept), ``per_frame`` or ``smooth`` (the crop follows), or
            ``none`` (the whole frame).
        object_ratio: share of the side that the object takes where it reaches farthest.
    """

    centers: tuple[tuple[float, float], ...]
    side: float
    size: int
    source_height: int
    source_width: int
    centering: str = "global"
    object_ratio: float = 0.9

    def source_from_crop(self, frame: int, xy: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return the source positions [..., 2] of positions (x, y) [..., 2] in a prepared frame."""
        return np.asarray(self.centers[frame]) + (np.asarray(xy) - self.size / 2) * (self.side / self.size)

    def crop_from_source(self, frame: int, xy: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return the positions [..., 2] in a prepared frame of source positions (x, y) [..., 2]."""
        return (np.asarray(xy) - np.asarray(self.centers[frame])) * (self.size / self.side) + self.size / 2

    def to_json(self) -> dict:
        """Return the fields as plain JSON values; `from_json` reads them back."""
        return {**asdict(self), "centers": [list(center) for center in self.centers]}

    @classmethod
    def from_json(cls, data: dict) -> CropPath:
        """Build a crop path from what `to_json` returned. Raises ValueError when fields are missing."""
        fields = cls.__dataclass_fields__
        missing = sorted(fields.keys() - data.keys())
        if missing:
            raise ValueError(f"Crop path JSON lacks {missing}; it has {sorted(data)}.")
        centers = tuple((float(x), float(y)) for x, y in data["centers"])
        return cls(**{**{key: data[key] for key in fields}, "centers": centers})


@dataclass(frozen=True)
class PreparedClip:
    """The clip as the model takes it: square, the object centred, on white.

    Args:
        images: [T, size, size, 3] float32 in 0..1, on white.
        masks: [T, size, size] float32 opacity in 0..1.
        fps: frames per second.
        crop: where the frames were cut out of the source.
        report: what a person should know about the clip, one line each.
        name: where the clip came from.
    """

    images: Tensor
    masks: Tensor
    fps: float
    crop: CropPath
    report: tuple[str, ...] = ()
    name: str = ""

    @property
    def n_frames(self) -> int:
        """T."""
        return self.images.shape[0]


def prepare_clip(
    clip: Clip,
    *,
    size: int = 576,
    centering: str = "global",
    object_ratio: float = 0.9,
    ignore_specks: bool = True,
) -> PreparedClip:
    """Return the clip cropped to a square around the object, resized and composited on white.

    One box holds the object in all frames, and one scale serves them all. Frames without foreground do not
    count for the box. A clip without mask and alpha keeps its own near-white background.

    Args:
        clip: frames of any size and aspect ratio.
        size: side of the result, pixels.
        centering: ``global`` keeps the frame's centre; ``per_frame`` puts the centre of each frame's own box
            in the middle; ``smooth`` follows the object on a path smoothed over time; ``none`` takes the
            whole frame, padded to a square, for clips that are prepared already.
        object_ratio: share of the side that the object takes where it reaches farthest, 0.1 to 1; not for
            ``none``.
        ignore_specks: parts below 0.05 % of the frame do not count for the box.

    Raises:
        ValueError: an option is out of range, or there is no foreground.
    """
    if size < 1 or int(size) != size:
        raise ValueError(f"Expected a size of at least 1 whole pixel; got {size}. The model knows 576.")
    if centering not in CENTERINGS:
        raise ValueError(f"Expected centering {' or '.join(CENTERINGS)}; got {centering!r}.")
    if not 0.1 <= object_ratio <= 1:
        raise ValueError(f"Expected an object ratio from 0.1 to 1; got {object_ratio:g}.")
    foreground = foreground_masks(clip, ignore_specks=ignore_specks)
    boxes = object_boxes(foreground)
    height, width = foreground.shape[1:]
    crop, kept = _plan_crop(boxes, height, width, int(size), centering, object_ratio)

    source = opacity_source(clip)
    opacity = {"mask": clip.masks, "alpha": clip.frames[..., -1]}.get(source)
    opaque = np.full((height, width), 255, np.uint8)
    images = torch.empty(clip.n_frames, crop.size, crop.size, 3)
    masks = torch.empty(clip.n_frames, crop.size, crop.size)
    for t, frame in enumerate(clip.frames):
        # Without mask or alpha the background stays as it is, and the mask is cut out separately.
        alpha = opaque if opacity is None else opacity[t]
        rgba = _cut_and_resize(np.dstack([frame[..., :3], alpha]), crop, t, kept[t])
        images[t] = torch.from_numpy(_on_white(rgba).astype(np.float32) / 255)
        mask = _cut_and_resize(foreground[t], crop, t, kept[t]) if opacity is None else rgba[..., 3]
        masks[t] = torch.from_numpy(mask.astype(np.float32) / 255)
    report = describe_clip(source, clip.fps, foreground, boxes, images, masks, crop.side, crop.object_ratio)
    return PreparedClip(images, masks, clip.fps, crop, report, clip.name)


def _plan_crop(
    boxes: np.ndarray,  # [T, 4] left, top, right, bottom; all zero where the frame is empty
    height: int,
    width: int,
    size: int,
    centering: str,
    object_ratio: float,
) -> tuple[CropPath, np.ndarray]:
    """Return the crop path, and for each frame the part of the source that is kept, int64 [T, 4].

    Source of ``global``: specification section 9; it counts in whole pixels. The other two modes place the
    crop between pixels, so that a smooth path is not made to tremble by rounding.
    """
    if centering == "none":
        path = ((width / 2, height / 2),) * len(boxes)
        whole = np.tile([[0, 0, width, height]], (len(boxes), 1))
        return CropPath(path, max(height, width), size, height, width, centering, object_ratio), whole
    present = np.flatnonzero(boxes[:, 2] > boxes[:, 0])
    if centering == "global":
        centers = np.tile([[width // 2, height // 2]], (len(boxes), 1)).astype(np.float64)
    else:
        own = (boxes[present, :2] + boxes[present, 2:]) / 2
        every = np.arange(len(boxes))
        centers = np.stack([np.interp(every, present, own[:, axis]) for axis in (0, 1)], axis=-1)
        if centering == "smooth":
            centers = _smooth(centers)
    reach = np.maximum(
        centers[present] - boxes[present, :2],
        boxes[present, 2:] - centers[present],
    )
    half = float(reach.max())
    kept = np.concatenate([np.floor(centers - half), np.ceil(centers + half)], axis=-1).astype(np.int64)
    kept = kept.clip(0, [width, height, width, height])
    if centering == "global":
        side = int(2 * half / object_ratio)
        centers = centers - side // 2 + side / 2
    else:
        side = 2 * half / object_ratio
    path = tuple((float(x), float(y)) for x, y in centers)
    return CropPath(path, side, size, height, width, centering, object_ratio), kept


def _smooth(path: np.ndarray) -> np.ndarray:
    """Return a path [T, 2] smoothed by a Gaussian; steady motion stays as it is, up to both ends."""
    radius = math.ceil(3 * _SMOOTHING_FRAMES)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / _SMOOTHING_FRAMES) ** 2)
    weights /= weights.sum()
    padded = np.pad(path, ((radius, radius), (0, 0)), mode="reflect", reflect_type="odd")
    return np.stack([np.convolve(padded[:, axis], weights, mode="valid") for axis in (0, 1)], axis=-1)


def _cut_and_resize(
    pixels: np.ndarray,  # uint8 [H, W] or [H, W, 4]
    crop: CropPath,
    frame: int,
    kept: np.ndarray,  # left, top, right, bottom of the source pixels that count
) -> np.ndarray:
    """Return the crop, [size, size] or [size, size, 4]; what lies beyond the frame is transparent.

    Pillow multiplies colours by alpha before it resizes, so that hidden colours do not bleed into the edges.
    """
    x, y = crop.source_from_crop(frame, (0, 0))
    left, top = math.floor(x), math.floor(y)
    columns, rows = math.ceil(x + crop.side) - left, math.ceil(y + crop.side) - top
    canvas = np.zeros((rows, columns, *pixels.shape[2:]), dtype=np.uint8)
    x0, y0 = max(kept[0], left), max(kept[1], top)
    x1, y1 = min(kept[2], left + columns), min(kept[3], top + rows)
    canvas[y0 - top : y1 - top, x0 - left : x1 - left] = pixels[y0:y1, x0:x1]
    box = (x - left, y - top, x - left + crop.side, y - top + crop.side)
    image = Image.fromarray(canvas).resize((crop.size, crop.size), Image.Resampling.LANCZOS, box=box)
    return np.asarray(image)


def _on_white(rgba: np.ndarray) -> np.ndarray:
    """Return uint8 RGB [H, W, 3] on white, in float64 and truncated as the reference does."""
    values = rgba / 255.0
    alpha = values[..., 3:]
    return (255 * (values[..., :3] * alpha + (1 - alpha))).astype(np.uint8)
