"""Reads what any other program leaves: a folder with one clip for each view."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from ..cameras import Cameras
from ..video.foreground import near_white_masks, opacity_source
from ..video.read import DEFAULT_FPS, IMAGE_SUFFIXES, Clip, load_clip, natural_key
from ..views import ViewGrid, resize_images

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


VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".webp", ".apng")

_SHOWN_NAMES = 12


def read_clips(
    folder: str | Path,
    cameras: Cameras,
    input_view: ViewGrid | Tensor | None = None,
    frames: int | None = None,
) -> ViewGrid:
    """Return the grid of views of a folder with one clip per view, in natural order of their names.

    A clip is a sub-folder of images, or a video or animation. Where a folder holds both, the sub-folders
    are taken and the videos left alone. Hidden entries, other files and sub-folders without images do not
    count. Transparent clips are put on white and their alpha is the mask; in others all that is not near
    white is the object.

    Args:
        folder: the folder, or a pattern that gives the clips, such as ``out/*_v*.mp4``.
        cameras: V + 1 cameras, the input view first, in the clips' order.
        input_view: view 0 when the folder holds only the V novel views: a grid, whose view 0 is taken, or
            images [T, H, W, 3] in 0..1 on white, resized to the clips' size. With V + 1 clips the folder's
            first clip is view 0 instead.
        frames: take only the first so many frames of every clip and of ``input_view``; None: all.

    Raises:
        FileNotFoundError: there are no clips.
        ValueError: another number of clips than V + 1 or V, V clips without ``input_view``, clips with
            different numbers of frames or sizes, pictures that are not square, a background that is not
            white.
    """
    sources = find_clips(folder)
    n_views = cameras.n_views
    if not sources:
        raise FileNotFoundError(
            f"Expected one clip per view in {folder}: sub-folders of images, or videos "
            f"({' '.join(VIDEO_SUFFIXES)}); there are none. Give the folder that holds the clips."
        )
    if len(sources) not in (n_views, n_views + 1):
        raise ValueError(
            f"Expected {n_views + 1} clips in {folder} (the input view first) or {n_views} (novel views "
            f"only), as there are {n_views} novel cameras; got {len(sources)}: {_names(sources)}. Give the "
            f"cameras of these clips, or a pattern such as 'out/*_v*.mp4' that leaves others out."
        )
    if len(sources) == n_views and input_view is None:
        raise ValueError(
            f"Expected {n_views + 1} clips in {folder}, the input view first; got {n_views}: "
            f"{_names(sources)}. Put the input clip beside them so that it comes first by name, or give the "
            f"input view."
        )
    filled = input_view if len(sources) == n_views else None
    return grid_of_clips(_clips(sources, filled, frames), cameras)


def find_clips(folder: str | Path) -> list[Path]:
    """Return the clips of a folder or of a pattern in natural order, none when there are none."""
    place = Path(folder).expanduser()
    if place.is_dir():
        found = list(place.iterdir())
    else:
        found = [Path(name) for name in glob.glob(str(place))]
    visible = sorted((entry for entry in found if not entry.name.startswith(".")), key=natural_key)
    folders = [entry for entry in visible if entry.is_dir() and _holds_images(entry)]
    return folders or [
        entry for entry in visible if entry.suffix.lower() in VIDEO_SUFFIXES and entry.is_file()
    ]


def _holds_images(folder: Path) -> bool:
    return any(
        file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") for file in folder.iterdir()
    )


def _names(sources: Sequence[Path]) -> str:
    shown = ", ".join("/".join(source.parts[-2:]) for source in sources[:_SHOWN_NAMES])
    return f"{shown} ..." if len(sources) > _SHOWN_NAMES else shown


def _clips(
    sources: Sequence[Path], input_view: ViewGrid | Tensor | None, frames: int | None
) -> Iterator[ViewClip]:
    novel = (ViewClip.of_clip(load_clip(source, frames=frames)) for source in sources)
    if input_view is None:
        yield from novel
        return
    first = next(novel)
    yield _input_clip(input_view, frames, *first.masks.shape[1:])
    yield first
    yield from novel


def _input_clip(view: ViewGrid | Tensor, frames: int | None, height: int, width: int) -> ViewClip:
    """Return view 0 of a grid, or images, at a size; the masks are made where there are none."""
    fps = view.fps if isinstance(view, ViewGrid) else DEFAULT_FPS
    images, masks = view.one_view(0) if isinstance(view, ViewGrid) else (view, None)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"Expected an input view [T, H, W, 3]; got shape {list(images.shape)}.")
    if not torch.isfinite(images).all():
        raise ValueError("Expected finite numbers in the input view; got NaN or infinite values.")
    images = resize_images(images[:frames], height, width)
    if masks is None:
        return ViewClip.of_images(images, "the input view", fps)
    masks = resize_images(masks[:frames, ..., None], height, width)[..., 0]
    return ViewClip("the input view", images, masks, fps)
