"""Scores one grid of views, against true views where there are some."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..views import ViewGrid
from . import epipolar, image, steadiness
from .catalogue import CLIP_NAME, FHD_NAMES, FVD_NAMES, LPIPS_NAME, RESIDUAL_NAME
from .descriptors import hog3d_features
from .i3d import SHORTEST_CLIP
from .orders import ORDERS
from .pairing import paired_views
from .residuals import finite_masks, novel_masks
from .scores import SceneScores
from .video import ClipFeatures, clip_features

# Corners are matched in at most this many frames, evenly spread: it is the slowest metric.
_MATCHED_FRAMES = 8
# Nothing can be measured on smaller images.
_SMALLEST_SIDE = 8
# Input views that are less alike than this, dB, were cut out in another way, or are of another clip.
_SAME_INPUT_DB = 24.0


@dataclass(frozen=True)
class Networks:
    """What needs files that are not part of this program; None where they are not at hand.

    Args:
        lpips: images and references [N, H, W, 3] to distances [N].
        clip: images [N, H, W, 3] to embeddings [N, D].
        i3d: clips [N, T, H, W, 3] to features [N, D].
    """

    lpips: Callable[[Tensor, Tensor], Tensor] | None = None
    clip: Callable[[Tensor], Tensor] | None = None
    i3d: ClipFeatures | None = None


def evaluate(
    predicted: ViewGrid,
    reference: ViewGrid | None = None,
    networks: Networks | None = None,
    *,
    method: str = "predicted",
    scene: str = "",
    residuals: Tensor | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> SceneScores:
    """Return the scores of predicted novel views.

    Images that hold NaN or infinite values, and views that are missing, get no score; the notes name them.

    Args:
        predicted: the views; their input view is not scored.
        reference: true views of the same frames, in any order of cameras; None: only what needs none.
        networks: for LPIPS, CLIP-S and FVD.
        method, scene: names.
        residuals: [T, V] what a fitted 4D scene leaves unexplained of each image (`residuals.fit_residuals`).
        callback: called with (steps done, `steps_of`) between frames and views; may raise to cancel.

    Raises:
        ValueError: frames, sizes or cameras that do not fit the reference's, values outside 0..1, images
            below 8 x 8 pixels, residuals of another shape.
    """
    missing: list[int] = []
    if reference is not None:
        predicted, missing = paired_views(predicted, reference, method)
    height, width = predicted.images.shape[2:4]
    if height != width:
        raise ValueError(
            f"Expected square images, as the cameras are square; got {width} x {height}. Crop or pad them."
        )
    _check_values(predicted, residuals)
    usable = predicted.images[:, 1:].isfinite().all(dim=(2, 3, 4))  # [T, V]
    grid = replace(predicted, masks=finite_masks(predicted))
    if not usable.all():
        grid = replace(grid, images=torch.nan_to_num(predicted.images, posinf=1, neginf=0))
    shown = (novel_masks(grid) >= 0.5).any(dim=(2, 3)) | ~usable
    notes = list(_gaps(usable, shown, missing))
    counter = itertools.count(1)

    def done() -> None:
        if callback is not None:
            callback(next(counter), steps_of(predicted, reference))

    values: dict[str, Tensor] = {}
    features: dict[str, tuple[Tensor, Tensor]] = {}
    lengths: dict[str, int] = {}
    if reference is not None:
        reference = replace(reference, masks=finite_masks(reference))
        values |= _against_reference(grid, reference, networks or Networks(), usable, done)
        if not (novel_masks(reference) >= 0.5).any(dim=(2, 3)).all():
            notes.append("The reference shows no object in some images: no foreground scores there.")
        notes += _input_note(grid, reference)
        seen = usable.all(dim=0)
        if int(seen.sum()) < len(seen):
            notes.append("Frechet distances leave out views that are missing or incomplete.")
        features, lengths, skipped = _clips(grid, reference, networks or Networks(), seen)
        notes += skipped
    values |= _without_reference(grid, reference, usable & shown, done)
    if residuals is not None:
        values[RESIDUAL_NAME] = torch.where(usable, residuals.detach().cpu().double(), math.nan)
    return SceneScores(
        method, scene, grid.cameras, grid.n_frames, values, features, lengths, tuple(missing), tuple(notes)
    )


def _check_values(grid: ViewGrid, residuals: Tensor | None) -> None:
    """Raise ValueError for images that are too small or not in 0..1, and residuals of another shape."""
    if grid.images.shape[2] < _SMALLEST_SIDE:
        raise ValueError(
            f"Expected images of at least {_SMALLEST_SIDE} x {_SMALLEST_SIDE} pixels; got "
            f"{grid.images.shape[3]} x {grid.images.shape[2]}. Use larger ones."
        )
    extremes = [torch.nan_to_num(frame, posinf=0, neginf=0).aminmax() for frame in grid.images]
    low, high = min(float(e.min) for e in extremes), max(float(e.max) for e in extremes)
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(
            f"Expected values in 0..1 in the images; got {low:g} to {high:g}. Divide 8-bit values by 255."
        )
    if residuals is not None and tuple(residuals.shape) != (grid.n_frames, grid.n_views):
        raise ValueError(
            f"Expected residuals [T, V] = {[grid.n_frames, grid.n_views]}; got {list(residuals.shape)}."
        )


def _input_note(grid: ViewGrid, reference: ViewGrid) -> Iterable[str]:
    """Say so where the input views differ: then all views are of another crop, and scores mean nothing."""
    ours, theirs = (x.images[:, 0] for x in (grid, reference))
    error = float((ours - theirs).nan_to_num().square().double().mean())
    if error > 10 ** (-_SAME_INPUT_DB / 10):
        yield (
            f"The input view is not the reference's ({-10 * math.log10(error):.1f} dB): cut out, scaled or "
            f"timed in another way. Scores against the reference then measure that, not the views."
        )


def steps_of(predicted: ViewGrid, reference: ViewGrid | None = None) -> int:
    """Return how many steps `evaluate` reports: frames and views, frames once more with a reference."""
    if reference is None:
        return predicted.n_frames + predicted.n_views
    return 2 * reference.n_frames + reference.n_views


def _gaps(usable: Tensor, shown: Tensor, missing: list[int]) -> Iterable[str]:
    """Say which views are missing, how many images hold no numbers, and how many show no object."""
    if missing:
        yield f"Missing views: {', '.join(map(str, missing))}."
    for text, bad in (("hold NaN or infinite values", ~usable), ("show no object", ~shown)):
        for v, count in enumerate(bad.sum(dim=0).tolist(), start=1):
            if count and v not in missing:
                yield f"View {v}: {count} of {len(bad)} images {text}."


def _against_reference(
    grid: ViewGrid, reference: ViewGrid, networks: Networks, usable: Tensor, done: Callable[[], None]
) -> dict[str, Tensor]:
    """Return the image metrics, each [T, V]; frame by frame, as all at once would fill the memory."""
    frames = []
    for t in range(grid.n_frames):
        (images, masks), (truth, true_masks) = (
            x.one_frame(t, include_input=False) for x in (grid, reference)
        )
        frames.append(_image_metrics(images, truth, _given(masks), _given(true_masks), networks))
        done()
    return {
        name: torch.where(usable, torch.stack([frame[name].double().cpu() for frame in frames]), math.nan)
        for name in frames[0]
    }


def _image_metrics(
    images: Tensor, truth: Tensor, masks: Tensor, true_masks: Tensor, networks: Networks
) -> dict[str, Tensor]:
    """Return the image metrics of images [V, H, W, 3] and masks [V, H, W], each [V]."""
    columns = {
        "PSNR": image.psnr(images, truth),
        "PSNR fg": image.psnr(images, truth, true_masks),
        "mask IoU": image.mask_iou(masks, true_masks),
    }
    if image.ms_ssim_scales(*images.shape[1:3]):
        whole, foreground = image.structural_similarities(images, truth, None, true_masks)
        columns |= {"SSIM": whole[0], "MS-SSIM": whole[1]}
        columns |= {"SSIM fg": foreground[0], "MS-SSIM fg": foreground[1]}
    if networks.lpips is not None:
        columns[LPIPS_NAME] = networks.lpips(images, truth)
    if networks.clip is not None:
        columns[CLIP_NAME] = torch.cosine_similarity(networks.clip(images), networks.clip(truth), dim=-1)
    return columns


def _clips(
    grid: ViewGrid, reference: ViewGrid, networks: Networks, seen: Tensor
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, int], list[str]]:
    """Return features per Frechet distance, the length of its clips, and notes on what was left out."""
    images, truth = (x.images[:, 1:][:, seen] for x in (grid, reference))
    lengths = {name: len(order(*images.shape[:2])[0]) for name, order in ORDERS.items() if seen.any()}
    described: list[tuple[dict[str, str], ClipFeatures, int]] = [(FHD_NAMES, hog3d_features, 2)]
    if networks.i3d is not None:
        described.append((FVD_NAMES, networks.i3d, SHORTEST_CLIP))
    features, used, notes = {}, {}, []
    for names, describe, shortest in described:
        orders = [order for order, length in lengths.items() if length >= shortest]
        notes += [
            f"{names[order]} needs clips of at least {shortest} images; these have {length}."
            for order, length in lengths.items()
            if length < shortest
        ]
        ours, theirs = (clip_features(x, describe, orders) for x in (images, truth))
        features |= {names[order]: (ours[order], theirs[order]) for order in orders}
        used |= {names[order]: lengths[order] for order in orders}
    return features, used, notes


def _without_reference(
    grid: ViewGrid, reference: ViewGrid | None, usable: Tensor, done: Callable[[], None]
) -> dict[str, Tensor]:
    """Return flicker and acceleration [V], warping [T - 1, V], tangency and epipolar [T, V]."""
    still = grid if reference is None else reference
    steady: list[tuple[float, float]] = []
    warping = []
    for v in range(1, grid.n_views + 1):
        (images, masks), (still_images, still_masks) = (x.one_view(v) for x in (grid, still))
        static = steadiness.quietest_pixels(still_images, _given(still_masks))
        steady.append((steadiness.flicker(images, static), steadiness.acceleration(images, static)))
        warping.append(steadiness.warping_errors(images, _given(masks)))
        done()
    whole = usable.all(dim=0)
    flicker, acceleration = torch.where(whole, torch.tensor(steady, dtype=torch.float64).T, math.nan)
    step = max(1, math.ceil(grid.n_frames / _MATCHED_FRAMES))
    tangency, matched = (torch.full(usable.shape, math.nan, dtype=torch.float64) for _ in range(2))
    for t, row in enumerate(usable):
        images, masks = grid.one_frame(t)
        tangency[t] = torch.where(row, epipolar.tangency_errors(_given(masks), grid.cameras)[1:], math.nan)
        if t % step == 0:
            matched[t] = torch.where(row, epipolar.match_errors(images, grid.cameras)[1:], math.nan)
        done()
    return {
        "flicker": flicker,
        "acceleration": acceleration,
        "warping": torch.where(usable[:-1] & usable[1:], torch.stack(warping, dim=1), math.nan),
        "tangency": tangency,
        "epipolar": matched,
    }


def _given(masks: Tensor | None) -> Tensor:
    """Return masks that `evaluate` has made sure of."""
    if masks is None:
        raise RuntimeError("The grid has no masks.")
    return masks
