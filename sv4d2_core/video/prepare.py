"""Clip preparation: the clip as the model takes it, and what a person should know about it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..messages import listed
from .crop import CENTERINGS, CropPath, cut_out, plan_crop
from .foreground import given_opacity, object_boxes, opacity_source, part_of_object
from .read import Clip, hdr_first

_FEW_FRAMES, _MANY_FRAMES = 12, 60  # of a short and a long clip; the released models look at 5 or 12
# Shares of the frame: of a tiny object; above the second, a mask to all borders is rather the background's.
_TINY_SHARE, _LARGEST_SHARE = 0.02, 0.5
_LARGEST_ENLARGEMENT = 2.0  # above it the views cannot be sharp
_SMALL_IN_CROP = 0.6  # share of the crop below which another centring would show the object much larger
_JUMP = 0.5  # step of the box's centre between two frames, in object sizes, that looks like a wrong mask
_LITTLE_MOTION = 0.05  # mean change of the object's pixels against the first frame, 0..1


@dataclass(frozen=True)
class PreparedClip:
    """The clip as the model takes it: square, the object centred, on white."""

    images: Tensor  # [T, size, size, 3] float32 in 0..1, on white
    masks: Tensor  # [T, size, size] float32 opacity in 0..1
    fps: float
    crop: CropPath  # where the frames were cut out of the source
    report: tuple[str, ...] = ()  # what a person should know about the clip, one line each
    name: str = ""  # where the clip came from
    source_frames: tuple[int, ...] = ()  # the number of each frame in its source, counted from 0

    @property
    def n_frames(self) -> int:
        return self.images.shape[0]


def prepare_clip(
    clip: Clip,
    *,
    size: int = 576,  # side of the result, pixels
    centering: str = "global",
    object_ratio: float = 0.9,  # share of the side that the object takes at its farthest reach, 0.1 to 1
    ignore_specks: bool = True,  # parts below 0.05 % of the frame do not count for the box, haze for nothing
) -> PreparedClip:
    """Return the clip cropped to a square around the object, resized and composited on white.

    One scale serves all frames. A clip without mask and alpha keeps its own near-white background. The
    centering ``global`` keeps the frame's centre; ``per_frame`` centres each frame's own box; ``smooth``
    follows the object on a path smoothed over time; ``none`` takes the whole frame, padded to a square, for
    clips that are prepared already. Source: docs/method.md, Clip preparation.

    Raises ValueError: an option is out of range, or there is no foreground.
    """
    if size < 1 or int(size) != size:
        raise ValueError(f"Expected a size of at least 1 whole pixel; got {size}. The model knows 576.")
    if centering not in CENTERINGS:
        raise ValueError(f"Expected centering {' or '.join(CENTERINGS)}; got {centering!r}.")
    if not 0.1 <= object_ratio <= 1:
        raise ValueError(f"Expected an object ratio from 0.1 to 1; got {object_ratio:g}.")
    with hdr_first(clip.notes):
        opacity = given_opacity(clip, ignore_specks=ignore_specks)
        foreground = part_of_object(clip, opacity, ignore_specks)
    boxes = object_boxes(foreground)
    height, width = foreground.shape[1:]
    crop, kept = plan_crop(boxes, height, width, int(size), centering, object_ratio)

    opaque = np.full((height, width), 255, np.uint8)
    images = torch.empty(clip.n_frames, crop.size, crop.size, 3)
    masks = torch.empty(clip.n_frames, crop.size, crop.size)
    for t, frame in enumerate(clip.frames):
        # Without mask or alpha the background stays as it is, and the mask is cut out separately.
        alpha = opaque if opacity is None else opacity[t]
        rgba = cut_out(np.dstack([frame[..., :3], alpha]), crop, t, kept[t])
        images[t] = torch.from_numpy(_on_white(rgba).astype(np.float32) / 255)
        mask = cut_out(foreground[t], crop, t, kept[t]) if opacity is None else rgba[..., 3]
        masks[t] = torch.from_numpy(mask.astype(np.float32) / 255)
    report = _report(clip, foreground, boxes, images, masks, crop)
    return PreparedClip(images, masks, clip.fps, crop, (*clip.notes, *report), clip.name, clip.source_frames)


def _on_white(rgba: np.ndarray) -> np.ndarray:
    # In float64 and truncated, as the released code does.
    values = rgba / 255.0
    alpha = values[..., 3:]
    return (255 * (values[..., :3] * alpha + (1 - alpha))).astype(np.uint8)


def _report(
    clip: Clip,
    foreground: np.ndarray,  # [T, H, W] opacity, 0 is background
    boxes: np.ndarray,  # [T, 4] left, top, right, bottom; all zero where the frame is empty
    images: Tensor,  # [T, size, size, 3] prepared, 0..1
    masks: Tensor,  # [T, size, size] prepared, 0..1
    crop: CropPath,
) -> tuple[str, ...]:
    """Return lines for people: first what the clip is, then what may spoil the result."""
    n_frames, height, width = foreground.shape
    source = opacity_source(clip)
    present = np.flatnonzero(boxes[:, 2] > boxes[:, 0])
    extents = (boxes[present, 2:] - boxes[present, :2]).max(axis=-1)
    share = float(np.mean([np.count_nonzero(foreground[t]) for t in present])) / (height * width)
    counted = "1 frame" if n_frames == 1 else f"{n_frames} frames"
    lines = [
        f"{counted} of {width} x {height} at {clip.fps:.4g} fps, object from {source}; it fills "
        f"{100 * share:.2g} % of the frame; a square of {crop.side:.0f} pixels becomes {crop.size}"
    ]
    touching = boxes[present] == [0, 0, width, height]
    for border, count in zip(("left", "top", "right", "bottom"), touching.sum(axis=0), strict=True):
        if count:
            lines.append(
                f"object touches the {border} border in {count} of {n_frames} frames: what is cut off there "
                f"is missing in all views"
            )
    if source == "mask" and share > _LARGEST_SHARE and touching.all(axis=-1).mean() > 0.5:
        lines.append(
            f"the mask covers {100 * share:.0f} % of the frame up to all four borders: it looks inverted (in "
            f"ComfyUI put Invert Mask before it; Load Image's mask is white where the image is transparent)"
        )
    if len(present) < n_frames:
        empty = sorted(set(range(n_frames)) - set(present.tolist()))
        lines.append(f"{len(empty)} of {n_frames} frames are empty: {listed(empty)} (counted from 0)")
    if share < _TINY_SHARE:
        lines.append(f"object is tiny: {100 * share:.2g} % of the frame, {int(extents.max())} pixels large")
    if crop.size / crop.side > _LARGEST_ENLARGEMENT:
        lines.append(f"the crop is enlarged {crop.size / crop.side:.1f} times: expect soft views")
    in_crop = float(np.median(extents)) / (crop.object_ratio * crop.side)
    if in_crop < _SMALL_IN_CROP:
        lines.append(
            f"object takes only {100 * in_crop:.0f} % of the room in the crop, as it moves or stands off the "
            f"centre: centering smooth or per_frame shows it larger"
        )
    centers = (boxes[present, :2] + boxes[present, 2:]) / 2
    steps = np.abs(np.diff(centers, axis=0)).max(axis=-1) / max(float(np.median(extents)), 1.0)
    is_jump = (steps > _JUMP) & (np.diff(present) == 1)
    jumps = present[1:][is_jump]
    if len(jumps):
        lines.append(
            f"object jumps by {100 * steps[is_jump].max():.0f} % of its size at frame "
            f"{listed(jumps.tolist())}: check the mask there"
        )
    if n_frames < _FEW_FRAMES:
        lines.append(f"only {counted}: the sampler extends a clip that is shorter than the model's window")
    if n_frames > _MANY_FRAMES:
        stride = math.ceil(n_frames / _MANY_FRAMES)
        lines.append(
            f"{n_frames} frames are many: they are sampled in windows, one continuing the other, and the "
            f"views drift and lose detail on the way; take fewer of them (every {stride} times as large, "
            f"frames {math.ceil(n_frames / stride)}) and interpolate the frames between in the finished views"
        )
    if n_frames > 1 and (motion := _largest_change(images, masks, present)) < _LITTLE_MOTION:
        lines.append(
            f"little motion (largest change {100 * motion:.1f} % of the grey range): SV4D 2.0 works best on "
            f"moving objects"
        )
    return tuple(lines)


def _largest_change(images: Tensor, masks: Tensor, present: np.ndarray) -> float:
    """Return the largest mean change, 0..1, of the object's pixels against the first frame with it."""
    first, *others = present.tolist()
    largest = 0.0
    for t in others:
        difference = (images[t] - images[first]).abs().mean(dim=-1).sum()
        largest = max(largest, float(difference / masks[t].maximum(masks[first]).sum().clamp(min=1)))
    return largest
