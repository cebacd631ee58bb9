"""A grid of views out of a flat list of pictures: from a plain sampler, an editor, another program."""

from __future__ import annotations

import math

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..cameras import Cameras
from ..views import ViewGrid
from .foreground import near_white_masks

# How a flat list of novel views is ordered: the views of frame 0 first, or the frames of view 1 first.
BY_FRAME, BY_VIEW = "frame by frame", "view by view"
# Opacity below which a pixel shows nothing but the background: one grey level.
_TRANSPARENT = 1 / 255
# Share of the background that may be darker than near white.
_LARGEST_DARK_SHARE = 0.01
_PATTERNS = {
    BY_FRAME: "(t v) h w c -> t v h w c",
    BY_VIEW: "(v t) h w c -> t v h w c",
}


def assemble_views(
    clip: Tensor,  # [T, S, S, 3] in 0..1, on white
    novel_views: Tensor,  # [T * V, S, S, 3] in 0..1, on white
    cameras: Cameras,
    *,
    order: str = BY_FRAME,
    fps: float = 8.0,
    clip_masks: Tensor | None = None,  # [T, S, S], [1, S, S] or [S, S]
) -> ViewGrid:
    """Return the grid of a clip and its novel views; what is not near white in a novel view is the object.

    Args:
        clip: the input view.
        novel_views: all frames of all novel views, in ``order``.
        cameras: the V novel cameras and the input's.
        order: ``frame by frame`` or ``view by view``.
        fps: frames per second.
        clip_masks: opacity of the input view; None: what is not near white.

    Raises:
        ValueError: counts, sizes or values that do not fit.
    """
    _check_order(order)
    clip, novel_views = _checked("clip", clip), _checked("novel views", novel_views)
    _check_count(len(clip), len(novel_views), cameras.n_views)
    if clip.shape[1:] != novel_views.shape[1:]:
        raise ValueError(
            f"Expected clip and novel views of one size; got {_size_text(clip)} and "
            f"{_size_text(novel_views)}. Resize the one to the other."
        )
    novel = rearrange(novel_views, _PATTERNS[order], t=len(clip))
    input_masks = near_white_masks(clip) if clip_masks is None else _input_masks(clip_masks, clip)
    images = torch.cat([clip[:, None], novel], dim=1)
    masks = torch.cat([input_masks.expand(clip.shape[:3])[:, None], near_white_masks(novel)], dim=1)
    return ViewGrid(images, cameras, masks, fps)


def assemble_renders(
    images: Tensor,  # [T * (V + 1), S, S, 3] in 0..1, on white
    cameras: Cameras,
    *,
    order: str = BY_VIEW,
    fps: float = 8.0,
    masks: Tensor | None = None,  # [T * (V + 1), S, S]
) -> ViewGrid:
    """Return the grid of pictures that were rendered from all V + 1 cameras, the input's first.

    Args:
        images: all frames of all views, in ``order``.
        cameras: the cameras they were rendered from.
        order: ``frame by frame`` or ``view by view``.
        fps: frames per second.
        masks: opacity of the object; None: what is not near white.

    Raises:
        ValueError: counts, sizes or values that do not fit, a background that is not white.
    """
    _check_order(order)
    images = _checked("renders", images)
    views = cameras.n_views + 1
    if len(images) % views:
        raise ValueError(
            f"Expected pictures from all {views} cameras, the input's first: {views}, or a multiple for "
            f"several frames; got {len(images)}. Give the cameras that the pictures were rendered from."
        )
    opacity = near_white_masks(images) if masks is None else _render_masks(masks, images)
    _check_white(images, opacity, given=masks is not None)
    grid, opacity = (
        rearrange(maps, _PATTERNS[order], t=len(images) // views).contiguous()
        for maps in (images, opacity[..., None])
    )
    return ViewGrid(grid, cameras, opacity[..., 0], fps)


def _check_order(order: str) -> None:
    if order not in _PATTERNS:
        raise ValueError(f"Expected the order {' or '.join(map(repr, _PATTERNS))}; got {order!r}.")


def _render_masks(masks: Tensor, images: Tensor) -> Tensor:
    if masks.shape != images.shape[:3]:
        raise ValueError(
            f"Expected one mask per picture, {list(images.shape[:3])}; got {list(masks.shape)}. Take the "
            f"masks of the node that rendered the pictures."
        )
    return masks.detach().float().cpu().clamp(0, 1)


def _check_white(images: Tensor, masks: Tensor, *, given: bool) -> None:
    """Raise ValueError unless the background is white; masks are ``given``, else what is not near white."""
    behind, dark = masks < _TRANSPARENT, near_white_masks(images) > 0
    if given or behind.any():
        dark &= behind
    if dark.sum() <= _LARGEST_DARK_SHARE * behind.sum():
        return
    colour = ", ".join(str(round(255 * x)) for x in images[dark].median(dim=0).values.tolist())
    raise ValueError(
        f"Expected pictures on white; what is not the object has mostly the colour ({colour}) of 255. Set "
        f"the background to #FFFFFF in the node that renders them."
    )


def _checked(name: str, images: Tensor) -> Tensor:
    """Return square RGB images as float32 on the CPU in 0..1; what overshoots after a resize is cut."""
    if images.ndim == 4 and images.shape[-1] == 4:
        raise ValueError(
            f"Expected {name} without transparency (3 channels); got RGBA (4 channels). Composite them on "
            f"white first; SV4D2 Prepare Clip does that for a clip."
        )
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise ValueError(f"Expected {name} [N, H, W, 3] with at least one image; got {list(images.shape)}.")
    if images.shape[1] != images.shape[2]:
        raise ValueError(
            f"Expected square {name} (the cameras are square); got {_size_text(images)}. Crop or pad them; "
            f"SV4D2 Prepare Clip does that for a clip."
        )
    images = images.detach().float().cpu()
    bad = int((~images.isfinite()).sum())
    if bad:
        raise ValueError(
            f"Expected finite numbers in {name}; got {bad} NaN or infinite values of {images.numel()}. Check "
            f"the step that made them."
        )
    return images.clamp(0, 1)


def _check_count(n_frames: int, n_images: int, n_views: int) -> None:
    expected = n_frames * n_views
    if n_images == expected:
        return
    if n_images == n_frames * (n_views + 1):
        advice = "They seem to hold the input view, too: leave it out."
    elif n_images % n_views == 0:
        advice = f"They are {n_images // n_views} for each of {n_views} views: give a clip of as many frames."
        if n_images > expected:
            advice += (
                f" A clip shorter than the model's window was played back and forth: then keep the first "
                f"{expected}."
            )
    elif n_images % n_frames == 0:
        advice = f"They are {n_images // n_frames} for each of {n_frames} frames: give as many cameras."
    else:
        advice = "Give the clip and the cameras that the views were made with."
    raise ValueError(
        f"Expected {n_frames} frames x {n_views} views = {expected} novel views; got {n_images}. {advice}"
    )


def _input_masks(masks: Tensor, clip: Tensor) -> Tensor:
    masks = masks[None] if masks.ndim == 2 else masks
    if masks.ndim != 3 or len(masks) not in (1, len(clip)) or masks.shape[1:] != clip.shape[1:3]:
        raise ValueError(
            f"Expected {len(clip)} masks of the clip (or one) of {_size_text(clip)}, [T, H, W]; got "
            f"{list(masks.shape)}. Take the mask that came with the clip."
        )
    return masks.detach().float().cpu().clamp(0, 1)


def _size_text(images: Tensor) -> str:
    return f"{images.shape[2]} x {images.shape[1]}"


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
