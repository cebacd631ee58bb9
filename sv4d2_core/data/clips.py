"""Views from other programs: a folder with one clip per view, or a flat list of pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from ..cameras import Cameras
from ..messages import listed
from ..video.colour import check_unit
from ..video.foreground import check_white_border, near_white_masks, opacity_source
from ..video.pictures import on_white
from ..video.places import IMAGE_SUFFIXES, matches, natural_key
from ..video.read import DEFAULT_FPS, Clip, load_clip
from ..views import ViewGrid, resize_images

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".webp", ".apng")
# How a flat list of pictures is ordered: the views of frame 0 first, or the frames of the first view.
BY_FRAME, BY_VIEW = "frame by frame", "view by view"
_PATTERNS = {BY_FRAME: "(t v) h w c -> t v h w c", BY_VIEW: "(v t) h w c -> t v h w c"}
_LARGEST_OUTSIDE_SHARE = 0.5  # of the pixels outside a mask may be dark before the mask cuts the object out
_TRANSPARENT = 1 / 255  # opacity below which a pixel shows only the background: one grey level
_LARGEST_DARK_SHARE = 0.01  # of the background of renders that may be darker than near white

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ViewClip:
    """All frames of one view."""

    name: str  # where they came from, for messages
    images: Tensor  # [T, H, W, 3] float32 in 0..1, on white
    masks: Tensor  # [T, H, W] float32 foreground opacity in 0..1
    fps: float

    @classmethod
    def of_clip(cls, clip: Clip) -> ViewClip:
        """Return a clip on white with its masks, else its alpha, else all that is not near white."""
        pixels = torch.from_numpy(clip.frames).float() / 255
        images, source = pixels[..., :3], opacity_source(clip)
        if source == "alpha":
            masks = pixels[..., 3]
            return cls(clip.name, on_white(images, masks), masks, clip.fps)
        if clip.masks is None:
            return cls.of_images(images, clip.name, clip.fps)
        masks = torch.from_numpy(clip.masks).float() / 255
        outside = near_white_masks(images)[masks == 0]
        if len(outside) and float(outside.mean()) > _LARGEST_OUTSIDE_SHARE:
            _log.info("%s is not on white: its masks put it there.", clip.name)
            images = on_white(images, masks)
        return cls(clip.name, images, masks, clip.fps)

    @classmethod
    def of_images(cls, images: Tensor, name: str, fps: float) -> ViewClip:
        """Return images [T, H, W, 3] with all that is not near white as mask; ValueError: not on white."""
        masks = near_white_masks(images)
        check_white_border(masks.cpu().numpy(), name)
        return cls(name, images, masks, fps)


def grid_of_clips(clips: Iterator[ViewClip], cameras: Cameras) -> ViewGrid:
    """Return the grid of V + 1 clips, read one by one to save memory, at the rate of the first novel view."""
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
            other_frames, other_height, other_width = clip.masks.shape
            raise ValueError(
                f"Expected views with equal numbers of frames and sizes; {first.name} has {n_frames} frames "
                f"of {width} x {height}, {clip.name} has {other_frames} of {other_width} x {other_height}. "
                f"Cut (--frames) or resize them alike."
            )
        images[:, view], masks[:, view] = clip.images, clip.masks
        fps = clip.fps if view == 1 else fps
    return ViewGrid(images, cameras, masks, fps)


def read_clips(
    folder: str | Path,  # or a pattern that gives the clips, such as ``out/*_v*.mp4``
    cameras: Cameras,  # V + 1, the input view first, in the clips' order
    input_view: ViewGrid | None = None,  # whose view 0 joins a folder of only the V novel views
    frames: int | None = None,  # take only the first so many; None: all
) -> ViewGrid:
    """Return the grid of views of a folder with one clip per view, in natural order of their names.

    A clip is a sub-folder of images, or a video or animation; sub-folders win, hidden entries do not count.
    Raises ValueError: other than V + 1 clips (V beside ``input_view``); clips that are not square, differ in
    size or length, or tell no object from a background that is not white.
    """
    sources, n_views = find_clips(folder), cameras.n_views
    fill_in = input_view is not None and len(sources) == n_views
    if not fill_in and len(sources) != n_views + 1:
        shown = listed(["/".join(source.parts[-2:]) for source in sources])
        raise ValueError(
            f"Expected {n_views + 1} clips in {folder}, the input view first, or {n_views} where the input "
            f"view is given; got {len(sources)}: {shown}. Give the cameras of these clips, or a pattern such "
            f"as 'out/*_v*.mp4' that leaves others out."
        )
    clips = (ViewClip.of_clip(load_clip(source, frames=frames)) for source in sources)
    if input_view is not None and fill_in:
        first = next(clips)
        clips = chain([_input_clip(input_view, frames, *first.masks.shape[1:]), first], clips)
    return grid_of_clips(iter(clips), cameras)


def find_clips(folder: str | Path) -> list[Path]:
    """Return the clips of a folder or of a pattern in natural order, none when there are none."""
    place = Path(folder).expanduser()
    found = place.iterdir() if place.is_dir() else matches(place)
    visible = sorted((entry for entry in found if not entry.name.startswith(".")), key=natural_key)
    folders = [entry for entry in visible if entry.is_dir() and any(map(_is_image, entry.iterdir()))]
    videos = [entry for entry in visible if entry.suffix.lower() in VIDEO_SUFFIXES and entry.is_file()]
    return folders or videos


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")


def _input_clip(grid: ViewGrid, frames: int | None, height: int, width: int) -> ViewClip:
    images, masks = grid.one_view(0)
    images = resize_images(images[:frames], height, width)
    if masks is None:
        return ViewClip.of_images(images, "the input view", grid.fps)
    masks = resize_images(masks[:frames, ..., None], height, width)[..., 0]
    return ViewClip("the input view", images, masks, grid.fps)


def assemble_views(
    clip: Tensor,  # [T, S, S, 3] in 0..1, on white
    novel_views: Tensor,  # [T * V, S, S, 3] in 0..1, on white
    cameras: Cameras,
    *,
    order: str = BY_FRAME,
    fps: float = DEFAULT_FPS,
    clip_masks: Tensor | None = None,  # [T, S, S], [1, S, S] or [S, S]
) -> ViewGrid:
    """Return the grid of a clip, the input view, and its novel views, listed in ``order``.

    What is not near white is the object, in the clip where it has no ``clip_masks``. Raises ValueError for
    counts, sizes or values that do not fit.
    """
    pattern = _pattern(order)
    clip, novel_views = _checked("clip", clip), _checked("novel views", novel_views)
    _check_count(len(clip), len(novel_views), cameras.n_views)
    if clip.shape[1:] != novel_views.shape[1:]:
        raise ValueError(
            f"Expected clip and novel views of one size; got {_size_text(clip)} and "
            f"{_size_text(novel_views)}. Resize the one to the other."
        )
    novel = rearrange(novel_views, pattern, t=len(clip))
    masks = near_white_masks(clip)
    if clip_masks is not None:
        masks = clip_masks[None] if clip_masks.ndim == 2 else clip_masks
        if masks.shape not in ((1, *clip.shape[1:3]), clip.shape[:3]):
            raise ValueError(
                f"Expected {len(clip)} masks of the clip (or one) of {_size_text(clip)}, [T, H, W]; got "
                f"{list(masks.shape)}. Take the mask that came with the clip."
            )
        masks = _unit("masks", masks).expand(clip.shape[:3])
    images = torch.cat([clip[:, None], novel], dim=1)
    return ViewGrid(images, cameras, torch.cat([masks[:, None], near_white_masks(novel)], dim=1), fps)


def assemble_renders(
    images: Tensor,  # [T * (V + 1), S, S, 3] in 0..1, on white
    cameras: Cameras,
    *,
    order: str = BY_VIEW,
    fps: float = DEFAULT_FPS,
    masks: Tensor | None = None,  # [T * (V + 1), S, S]; None: what is not near white
) -> ViewGrid:
    """Return the grid of pictures rendered from all V + 1 cameras, the input's first.

    Raises ValueError for counts, sizes or values that do not fit, or a background that is not white.
    """
    pattern = _pattern(order)
    images = _checked("renders", images)
    n_cameras = cameras.n_views + 1
    if len(images) % n_cameras:
        raise ValueError(
            f"Expected pictures from all {n_cameras} cameras, the input's first: {n_cameras}, or a multiple "
            f"for several frames; got {len(images)}. Give the cameras that the pictures were rendered from."
        )
    opacity = dark = near_white_masks(images)
    if masks is not None:
        if masks.shape != images.shape[:3]:
            raise ValueError(
                f"Expected one mask per picture, {list(images.shape[:3])}; got {list(masks.shape)}. Take the "
                f"masks of the node that rendered the pictures."
            )
        opacity = _unit("masks", masks)
    background = opacity < _TRANSPARENT
    # Without masks a picture that is dark everywhere has no background: all of it is on trial.
    wrong = (dark > 0) & background if masks is not None or background.any() else dark > 0
    if wrong.sum() > _LARGEST_DARK_SHARE * background.sum():
        colour = ", ".join(str(round(255 * x)) for x in images[wrong].median(dim=0).values.tolist())
        raise ValueError(
            f"Expected pictures on white; what is not the object has mostly the colour ({colour}) of 255. "
            f"Set the background to #FFFFFF in the node that renders them."
        )
    n_frames = len(images) // n_cameras
    grid = rearrange(images, pattern, t=n_frames).contiguous()
    opacity = rearrange(opacity[..., None], pattern, t=n_frames).contiguous()[..., 0]
    return ViewGrid(grid, cameras, opacity, fps)


def _pattern(order: str) -> str:
    if order not in _PATTERNS:
        raise ValueError(f"Expected the order {' or '.join(map(repr, _PATTERNS))}; got {order!r}.")
    return _PATTERNS[order]


def _checked(name: str, images: Tensor) -> Tensor:
    """Return square RGB images as float32 on the CPU; overshoot over 0..1 from a resize is cut."""
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape or images.shape[1] != images.shape[2]:
        raise ValueError(
            f"Expected square {name} (the cameras are square); got {list(images.shape)} instead of "
            f"[N, S, S, 3]. Crop or pad them, put RGBA on white; SV4D2 Prepare Clip does that for a clip."
        )
    return _unit(name, images)


def _unit(name: str, values: Tensor) -> Tensor:
    """Return values in 0..1 as float32 on the CPU; raise as `check_unit`."""
    values = values.detach().float().cpu()
    check_unit(values.numpy(), name)
    return values.clamp(0, 1)


def _check_count(n_frames: int, n_images: int, n_views: int) -> None:
    expected = n_frames * n_views
    if n_images == expected:
        return
    advice = "Give the clip and the cameras that the views were made with."
    if n_images == n_frames * (n_views + 1):
        advice = "They seem to hold the input view, too: leave it out."
    elif n_images > expected and n_images % n_views == 0:
        advice += f" Of a clip that the sampler played back and forth keep the first {expected}."
    raise ValueError(
        f"Expected {n_frames} frames x {n_views} views = {expected} novel views; got {n_images}. {advice}"
    )


def _size_text(images: Tensor) -> str:
    return f"{images.shape[2]} x {images.shape[1]}"
