"""Small pictures of the compared views and of their errors, for the page of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ...cameras import Cameras
from ...views import ViewGrid
from ..pairing import paired_views
from ..scores import SceneScores, mean_along

# Name of the true views' own row.
REFERENCE = "reference"

_THUMBNAIL = 160
_COLUMNS = 4
# What shows best where a method fails, in this order, and whether more of it is better.
_TELLING = (("PSNR fg", True), ("PSNR", True), ("tangency", False), ("warping", False))


@dataclass(frozen=True)
class Picture:
    """One cell of a strip.

    Args:
        caption: which view or frame.
        image: [h, w, 3] uint8, or None where the method has none that could be scored.
        error: [h, w] uint8, the mean absolute difference of the channels to the truth, 255: full scale; None
            where there is no truth or no image.
        gap: why there is no image.
    """

    caption: str
    image: NDArray | None
    error: NDArray | None = None
    gap: str = ""


@dataclass(frozen=True)
class Strip:
    """Pictures side by side: one row per method, the true views first.

    Args:
        title: what all pictures share.
        rows: per row the method, its pictures, and what its pictures show where that is not the title's.
    """

    title: str
    rows: tuple[tuple[str, tuple[Picture, ...], str], ...]


def view_label(cameras: Cameras, view: int) -> str:
    """Return number, azimuth and, where it is not 0, elevation of a view, relative to the input view."""
    azimuth, elevation = cameras.azimuths_deg[view], cameras.elevations_deg[view]
    return f"view {view} · {azimuth:.4g}°" + (f" / {elevation:+.3g}°" if elevation else "")


def scene_pictures(
    predictions: Mapping[str, ViewGrid], reference: ViewGrid | None, scores: Sequence[SceneScores]
) -> tuple[Strip, Strip]:
    """Return a few views of the middle frame, and a few frames of the view that is worst.

    Args:
        predictions: the methods' views.
        reference: true views, or None; then every method shows the view nearest to the first method's.
        scores: of the reference and the methods, as in `SceneComparison`.
    """
    grids = dict(predictions) if reference is None else {REFERENCE: reference, **predictions}
    lead = next(iter(grids.values()))
    worst, why = _worst_view([score for score in scores if score.method != REFERENCE], lead.n_views)
    few = [1 + i for i in _spread(lead.n_views, _COLUMNS)]
    middle = (lead.n_frames - 1) // 2
    across, along = [], []
    for name, grid in grids.items():
        cameras = grid.cameras if reference is None else lead.cameras
        views, view = (
            [_nearest(cameras, lead.cameras, v) for v in few],
            _nearest(cameras, lead.cameras, worst),
        )
        centre, frames = (grid.n_frames - 1) // 2, _spread(grid.n_frames, _COLUMNS)
        pictures = _pictures(name, grid, reference, [centre], views)
        note = "" if centre == middle else f"frame {centre}"
        across.append((name, _captioned(pictures, [view_label(cameras, v) for v in views]), note))
        pictures, label = _pictures(name, grid, reference, frames, [view]), view_label(cameras, view)
        note = "" if label == view_label(lead.cameras, worst) else label
        along.append((name, _captioned(pictures, [f"frame {t}" for t in frames]), note))
    title = f"{view_label(lead.cameras, worst).capitalize()}{why}, over time"
    return Strip(f"Frame {middle}, the middle one", tuple(across)), Strip(title, tuple(along))


def _captioned(pictures: Sequence[Picture], captions: Sequence[str]) -> tuple[Picture, ...]:
    return tuple(replace(p, caption=caption) for p, caption in zip(pictures, captions, strict=True))


def _spread(count: int, at_most: int) -> list[int]:
    """Return up to ``at_most`` indices below ``count``, evenly spread from the first to the last."""
    n = min(count, at_most)
    return [round(i * (count - 1) / max(n - 1, 1)) for i in range(n)]


def _worst_view(scores: Sequence[SceneScores], n_views: int) -> tuple[int, str]:
    """Return the novel view that is worst on the methods' average, and a word on why it was chosen."""
    for name, higher_is_better in _TELLING:
        columns = [s.per_view(name) for s in scores if name in s.values and len(s.per_view(name)) == n_views]
        if not columns:
            continue
        means = mean_along(torch.stack(columns), dim=0)
        if not means.isnan().all():
            badness = (-means if higher_is_better else means).nan_to_num(nan=-torch.inf, neginf=-1e9)
            return 1 + int(badness.argmax()), f" (worst {name})"
    return 1, ""


def _nearest(cameras: Cameras, wanted: Cameras, view: int) -> int:
    """Return which novel view looks most alike to view ``view`` of ``wanted``."""
    if cameras == wanted:
        return view
    directions, direction = (F.normalize(x.eyes(), dim=-1) for x in (cameras, wanted))
    return 1 + int((directions[1:] @ direction[view]).argmax())


def _pictures(
    name: str, grid: ViewGrid, reference: ViewGrid | None, frames: list[int], views: list[int]
) -> list[Picture]:
    """Return the pictures of all pairs of the frames and views, captions left empty."""
    grid, missing, truth = grid.at_frames(frames), [], None
    if reference is not None and name != REFERENCE:
        truth = reference.at_frames(frames)
        grid, missing = paired_views(grid, truth, name)
    pictures = []
    for t in range(len(frames)):
        for v in views:
            image = grid.images[t, v].detach().float().cpu()
            if not image.isfinite().all():
                gap = "missing" if v in missing else "holds NaN or infinite values"
                pictures.append(Picture("", None, gap=gap))
                continue
            error = None if truth is None else (image - truth.images[t, v].float().cpu()).abs().mean(dim=-1)
            pictures.append(Picture("", _small(image), None if error is None else _small(error[..., None])))
    return pictures


def _small(picture: Tensor) -> NDArray:
    """Return [H, W, 3] as bytes [h, w, 3], or [H, W, 1] as [h, w], reduced to thumbnail size."""
    scale = _THUMBNAIL / max(picture.shape[:2])
    planes = picture.permute(2, 0, 1)[None]
    if scale < 1:
        size = [max(1, round(side * scale)) for side in picture.shape[:2]]
        planes = F.interpolate(planes, size, mode="bilinear", antialias=True, align_corners=False)
    levels = (planes[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return levels.squeeze(-1).numpy()
