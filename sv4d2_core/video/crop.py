"""The square crop around the object: where it lies in every frame, cutting it out, and undoing it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from ..stored import Fields

CENTERINGS = ("global", "per_frame", "smooth", "none")

_SMOOTHING_FRAMES = 2.0  # standard deviation of the Gaussian that smooths the path of the object's centre


@dataclass(frozen=True)
class CropPath:
    """Where the crop of every frame lies in the source, to undo it; one scale serves the whole clip.

    Positions are in pixels, pixel j covering [j, j + 1).
    """

    centers: tuple[tuple[float, float], ...]  # (x, y) in each source frame; the crop may reach out of it
    side: float  # of the square in source pixels that becomes ``size``
    size: int  # side of the prepared frames
    source_height: int
    source_width: int
    centering: str = "global"  # see `prepare_clip`
    object_ratio: float = 0.9  # share of the side that the object takes where it reaches farthest

    def source_from_crop(self, frame: int, xy: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return the source positions [..., 2] of positions (x, y) [..., 2] in a prepared frame."""
        return np.asarray(self.centers[frame]) + (np.asarray(xy) - self.size / 2) * (self.side / self.size)

    def to_json(self) -> dict:
        """Return the fields as plain JSON values; `from_json` reads them back."""
        return {**asdict(self), "centers": [list(center) for center in self.centers]}

    @classmethod
    def from_json(cls, data: dict) -> CropPath:
        """Build a crop path from what `to_json` returned. Raises ValueError for missing or wrong fields."""
        stored = Fields.of(data, "the crop")
        return cls(
            tuple((x, y) for x, y in stored.numbers("centers", None, 2).tolist()),
            stored.number("side", least=1e-6),
            stored.count("size", 1),
            stored.count("source_height", 1),
            stored.count("source_width", 1),
            stored.text("centering"),
            stored.number("object_ratio", 0, 1),
        )


def plan_crop(
    boxes: np.ndarray,  # [T, 4] left, top, right, bottom; all zero where the frame is empty
    height: int,
    width: int,
    size: int,
    centering: str,
    object_ratio: float,
) -> tuple[CropPath, np.ndarray]:
    """Return the crop path, and for each frame the part of the source that is kept, int64 [T, 4].

    ``global`` counts in whole pixels as the released code does (docs/method.md, Clip preparation). Other
    modes place the crop between pixels, so that rounding makes no smooth path tremble.
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
    reach = np.maximum(centers[present] - boxes[present, :2], boxes[present, 2:] - centers[present])
    half = float(reach.max())
    kept = np.concatenate([np.floor(centers - half), np.ceil(centers + half)], axis=-1).astype(np.int64)
    kept = kept.clip(0, [width, height, width, height])
    side = 2 * half / object_ratio
    if centering == "global":
        side = int(side)
        centers = centers - side // 2 + side / 2
    path = tuple((float(x), float(y)) for x, y in centers)
    return CropPath(path, side, size, height, width, centering, object_ratio), kept


def _smooth(path: np.ndarray) -> np.ndarray:
    """Return a path [T, 2] smoothed by a Gaussian; steady motion stays as it is, up to both ends."""
    radius = math.ceil(3 * _SMOOTHING_FRAMES)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / _SMOOTHING_FRAMES) ** 2)
    weights /= weights.sum()
    padded = np.pad(path, ((radius, radius), (0, 0)), mode="reflect", reflect_type="odd")
    return np.stack([np.convolve(padded[:, axis], weights, mode="valid") for axis in (0, 1)], axis=-1)


def cut_out(
    pixels: np.ndarray,  # uint8 [H, W] or [H, W, 4]
    crop: CropPath,
    frame: int,
    kept: np.ndarray,  # left, top, right, bottom of the source pixels that count
) -> np.ndarray:
    """Return the crop, [size, size] or [size, size, 4]; what lies beyond the frame is transparent."""
    x, y = crop.source_from_crop(frame, (0, 0))
    left, top = math.floor(x), math.floor(y)
    columns, rows = math.ceil(x + crop.side) - left, math.ceil(y + crop.side) - top
    canvas = np.zeros((rows, columns, *pixels.shape[2:]), dtype=np.uint8)
    x0, y0 = max(kept[0], left), max(kept[1], top)
    x1, y1 = min(kept[2], left + columns), min(kept[3], top + rows)
    canvas[y0 - top : y1 - top, x0 - left : x1 - left] = pixels[y0:y1, x0:x1]
    box = (x - left, y - top, x - left + crop.side, y - top + crop.side)
    # Pillow multiplies colours by alpha before it resizes: hidden colours do not bleed into the edges.
    image = Image.fromarray(canvas).resize((crop.size, crop.size), Image.Resampling.LANCZOS, box=box)
    return np.asarray(image)
