"""A grid of views out of a flat list of pictures: from a plain sampler, an editor, another program."""

from __future__ import annotations

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
