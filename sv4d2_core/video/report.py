"""What a person should know about a clip before minutes of sampling are spent on it."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

# Below this many frames a clip is called short; the released models look at 5 or 12 at once.
_FEW_FRAMES = 12
# Above this many frames a clip is called long: views of the last windows come from views of views.
_MANY_FRAMES = 60
# Below this share of the frame the object is called tiny.
_TINY_SHARE = 0.02
# Above this share a mask that also reaches all borders is rather the background's.
_LARGEST_SHARE = 0.5
# Above this enlargement the views cannot be sharp.
_LARGEST_ENLARGEMENT = 2.0
# Below this share of the crop another centring would show the object much larger.
_SMALL_IN_CROP = 0.6
# A step of the box's centre between two frames, in object sizes, that looks like a wrong mask.
_JUMP = 0.5
# Mean change of the object's pixels against the first frame, 0..1, below which it stands still.
_LITTLE_MOTION = 0.05


def describe_clip(
    source: str,
    fps: float,
    foreground: np.ndarray,  # [T, H, W] opacity, 0 is background
    boxes: np.ndarray,  # [T, 4] left, top, right, bottom; all zero where the frame is empty
    images: Tensor,  # [T, size, size, 3] prepared, 0..1
    masks: Tensor,  # [T, size, size] prepared, 0..1
    side: float,
    object_ratio: float,
) -> tuple[str, ...]:
    """Return lines for people: first what the clip is, then what may spoil the result.

    Args:
        source: what told the object from the background (mask, alpha or near-white background).
        fps: frames per second.
        side: side of the crop in source pixels.
        object_ratio: share of the side that the farthest reach of the object takes.
    """
    n_frames, height, width = foreground.shape
    present = np.flatnonzero(boxes[:, 2] > boxes[:, 0])
    extents = (boxes[present, 2:] - boxes[present, :2]).max(axis=-1)
    size = images.shape[1]
    share = float(np.mean([np.count_nonzero(foreground[t]) for t in present])) / (height * width)
    lines = [
        f"{_counted(n_frames)} of {width} x {height} at {fps:.4g} fps, object from {source}; it fills "
        f"{100 * share:.2g} % of the frame; a square of {side:.0f} pixels becomes {size}"
    ]
    lines += _borders(boxes[present], height, width, n_frames)
    if source == "mask" and share > _LARGEST_SHARE and _touches_all_borders(boxes[present], height, width):
        lines.append(
            f"the mask covers {100 * share:.0f} % of the frame up to all four borders: it looks inverted (in "
            f"ComfyUI put Invert Mask before it; Load Image's mask is white where the image is transparent)"
        )
    if len(present) < n_frames:
        empty = [str(t) for t in range(n_frames) if t not in set(present.tolist())]
        lines.append(f"{len(empty)} of {n_frames} frames are empty: {', '.join(empty)} (counted from 0)")
    if share < _TINY_SHARE:
        lines.append(f"object is tiny: {100 * share:.2g} % of the frame, {int(extents.max())} pixels large")
    if size / side > _LARGEST_ENLARGEMENT:
        lines.append(f"the crop is enlarged {size / side:.1f} times: expect soft views")
    in_crop = float(np.median(extents)) / (object_ratio * side)
    if in_crop < _SMALL_IN_CROP:
        lines.append(
            f"object takes only {100 * in_crop:.0f} % of the room in the crop, as it moves or stands off the "
            f"centre: centering smooth or per_frame shows it larger"
        )
    lines += _jumps(boxes, present, extents)
    if n_frames < _FEW_FRAMES:
        lines.append(
            f"only {_counted(n_frames)}: the sampler extends a clip that is shorter than the model's window"
        )
    if n_frames > _MANY_FRAMES:
        lines.append(_long(n_frames))
    if n_frames > 1:
        lines += _motion(images, masks, present)
    return tuple(lines)


def _long(n_frames: int) -> str:
    """Return the advice for a long clip: the smallest stride that makes it short."""
    stride = math.ceil(n_frames / _MANY_FRAMES)
    kept = math.ceil(n_frames / stride)
    return (
        f"{n_frames} frames are many: they are sampled in windows, one continuing the other, and the views "
        f"drift and lose detail on the way; take every {_ordinal(stride)} of them (every {stride} times as "
        f"large, frames {kept}) and interpolate the frames between in the finished views"
    )


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _counted(n_frames: int) -> str:
    return "1 frame" if n_frames == 1 else f"{n_frames} frames"


def _touches_all_borders(boxes: np.ndarray, height: int, width: int) -> bool:
    return bool((boxes == [0, 0, width, height]).all(axis=-1).mean() > 0.5)


def _borders(boxes: np.ndarray, height: int, width: int, n_frames: int) -> list[str]:
    touching = {
        "left": boxes[:, 0] == 0,
        "top": boxes[:, 1] == 0,
        "right": boxes[:, 2] == width,
        "bottom": boxes[:, 3] == height,
    }
    return [
        f"object touches the {border} border in {int(hits.sum())} of {n_frames} frames: what is cut off "
        f"there is missing in all views"
        for border, hits in touching.items()
        if hits.any()
    ]


def _jumps(boxes: np.ndarray, present: np.ndarray, extents: np.ndarray) -> list[str]:
    """Return a line when the box leaps between neighbouring frames, as it does where a mask fails."""
    centers = (boxes[present, :2] + boxes[present, 2:]) / 2
    steps = np.abs(np.diff(centers, axis=0)).max(axis=-1) / max(float(np.median(extents)), 1.0)
    jumps = present[1:][(steps > _JUMP) & (np.diff(present) == 1)]
    if not len(jumps):
        return []
    frames = ", ".join(map(str, jumps))
    return [f"object jumps by {100 * steps.max():.0f} % of its size at frame {frames}: check the mask there"]


def _motion(images: Tensor, masks: Tensor, present: np.ndarray) -> list[str]:
    first, others = int(present[0]), present[1:].tolist()
    changes = [
        float(
            (images[t] - images[first]).abs().mean(dim=-1).sum()
            / masks[t].maximum(masks[first]).sum().clamp(min=1)
        )
        for t in others
    ]
    if changes and max(changes) >= _LITTLE_MOTION:
        return []
    return [
        f"little motion (largest change {100 * max(changes, default=0.0):.1f} % of the grey range): SV4D 2.0 "
        f"works best on moving objects"
    ]
