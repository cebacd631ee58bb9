"""Scores one grid of views, against true views where there are some."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..cameras import Cameras
from ..views import ViewGrid
from . import epipolar, image
from . import video as steadiness
from .frechet import SHORTEST_CLIP, FrechetDistance, frechet_distance, hog3d_features
from .pairing import ORDERS, paired_views
from .video import ClipFeatures, clip_features, finite_masks, novel_masks

# The name of the true views' own scores.
REFERENCE = "reference"
# Share of each covariance that is replaced, so that a few clips give a distance at all.
DEFAULT_SHRINKAGE = 0.1
# Equal images have no finite PSNR; in a mean over images of which some are not equal they count as this, dB.
_EQUAL_IMAGES_DB = 100.0


@dataclass(frozen=True)
class SceneScores:
    """What one method scored on one scene.

    Args:
        method, scene: names.
        cameras: V + 1 cameras, view 0 the input, which is never scored.
        n_frames: T.
        values: per metric [T, V] (each image), [T - 1, V] (each pair of frames) or [V] (each view), float64;
            NaN where there is no value.
        features: per Frechet distance the features of the predicted and of the true clips, [N, D] each.
        clip_lengths: per Frechet distance the number of images in a clip.
        missing: novel views (1 to V) of the reference that the method lacks.
        notes: what was left out and why.
    """

    method: str
    scene: str
    cameras: Cameras
    n_frames: int
    values: dict[str, Tensor]
    features: dict[str, tuple[Tensor, Tensor]]
    clip_lengths: dict[str, int]
    missing: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def per_view(self, name: str) -> Tensor:
        """Return the mean over time of each novel view, [V]."""
        values = self.values[name]
        return values if values.ndim == 1 else mean_along(values, dim=0)

    def has(self, name: str) -> bool:
        """Return whether any image, or any clip, has a value of a metric."""
        return name in self.features or (name in self.values and not bool(self.values[name].isnan().all()))


@dataclass(frozen=True)
class Summary:
    """What one method scored over all scenes.

    Args:
        method: name.
        n_scenes: number of scenes.
        means: per metric the mean over scenes of the mean over what has a value; NaN where nothing has.
        distances: per Frechet distance its value over the clips of all scenes, with their number.
        clip_lengths: per Frechet distance the number of images in a clip, the shortest of all scenes.
        n_missing: number of views that were missing in all scenes together.
        notes: the scenes' notes.
    """

    method: str
    n_scenes: int
    means: dict[str, float]
    distances: dict[str, FrechetDistance]
    clip_lengths: dict[str, int]
    n_missing: int
    notes: tuple[str, ...]

    def value(self, name: str) -> float:
        """Return the number of a column, NaN where the method has none."""
        if name in self.distances:
            return self.distances[name].distance
        return self.means.get(name, math.nan)


def summarise(scores: Sequence[SceneScores], shrinkage: float = DEFAULT_SHRINKAGE) -> Summary:
    """Return one method's summary over scenes; every scene weighs the same, every clip of all scenes too.

    Raises:
        ValueError: no scene, or scenes of several methods.
    """
    methods = {score.method for score in scores}
    if len(methods) != 1:
        raise ValueError(f"Expected the scenes of one method; got those of {len(methods)}. Summarise each.")
    names = list(dict.fromkeys(name for score in scores for name in score.values))
    means = {name: _mean_over_scenes([s.values[name] for s in scores if name in s.values]) for name in names}
    distances, notes = {}, list(dict.fromkeys(note for score in scores for note in score.notes))
    for name in dict.fromkeys(name for score in scores for name in score.features):
        pairs = [score.features[name] for score in scores if name in score.features]
        predicted, reference = (torch.cat(side) for side in zip(*pairs, strict=True))
        if len(predicted) < 2:
            notes.append(f"{name} needs at least 2 clips; there is {len(predicted)}.")
            continue
        distances[name] = frechet_distance(predicted, reference, shrinkage)
    lengths = {
        name: min(score.clip_lengths[name] for score in scores if name in score.clip_lengths)
        for name in distances
    }
    n_missing = sum(len(score.missing) for score in scores)
    return Summary(methods.pop(), len(scores), means, distances, lengths, n_missing, tuple(notes))


def mean_of(values: Tensor) -> float:
    """Return the mean of what has a value; infinite (equal images) counts as 100 dB unless all is."""
    values = values[~values.isnan()]
    if not len(values):
        return math.nan
    return math.inf if values.isposinf().all() else float(values.nan_to_num(posinf=_EQUAL_IMAGES_DB).mean())


def mean_along(values: Tensor, dim: int) -> Tensor:
    """Return `mean_of` along one axis of [T, V]: per view for 0, per frame for 1."""
    return torch.tensor([mean_of(v) for v in values.unbind(1 - dim)], dtype=torch.float64)


def _mean_over_scenes(values: Sequence[Tensor]) -> float:
    return mean_of(torch.tensor([mean_of(v) for v in values], dtype=torch.float64))


NO_VALUE = "–"


def written(value: float, digits: int) -> str:
    """Return a value with so many digits after the point; a dash for NaN, the sign for infinity."""
    if math.isnan(value):
        return NO_VALUE
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    # Adding 0 to what was rounded makes a negative zero positive.
    return f"{round(value, digits) + 0.0:.{digits}f}"


@dataclass(frozen=True)
class Metric:
    """One column of the tables.

    Args:
        name: title, and key in ``report.json``.
        higher_is_better: the direction of better.
        digits: digits after the point that are printed.
        meaning: one line for people.
    """

    name: str
    higher_is_better: bool
    digits: int
    meaning: str

    @property
    def title(self) -> str:
        """The name with an arrow towards better."""
        return f"{self.name} {'↑' if self.higher_is_better else '↓'}"


LPIPS_NAME, CLIP_NAME, RESIDUAL_NAME = "LPIPS", "CLIP-S", "fit residual"
# Of each order: its Frechet distance over I3D features, and over descriptors that need no network.
FVD_NAMES = {"F": "FVD-F", "V": "FVD-V", "Diag": "FVD-Diag", "4D": "FV4D"}
FHD_NAMES = {"F": "FHD-F", "V": "FHD-V", "Diag": "FHD-Diag", "4D": "FH4D"}

_WATCHED = {
    "F": "over the frames of each view",
    "V": "over the views of each frame",
    "Diag": "along the diagonals of the grid of frames and views",
    "4D": "over the whole grid, scanned to and fro",
}

# The columns of the tables of SV4D and SV4D 2.0, in their order.
PAPER = (
    Metric(LPIPS_NAME, False, 3, "learned perceptual distance of each image to the true one"),
    Metric(CLIP_NAME, True, 3, "cosine of CLIP's embeddings of each image and the true one"),
    *(
        Metric(FVD_NAMES[order], False, 2, f"Frechet video distance (I3D) {text}")
        for order, text in _WATCHED.items()
    ),
)
WITH_REFERENCE = (
    Metric("PSNR", True, 2, "dB, whole image; white background counts"),
    Metric("SSIM", True, 3, "structural similarity, whole image"),
    Metric("PSNR fg", True, 2, "dB, inside the true mask"),
    Metric("SSIM fg", True, 3, "structural similarity inside the true mask"),
    Metric("mask IoU", True, 3, "overlap of the outline with the true one"),
    *(
        Metric(
            FHD_NAMES[order], False, 4, f"Frechet distance of HOG3D and colour descriptors {text}; not FVD"
        )
        for order, text in _WATCHED.items()
    ),
)
WITHOUT_REFERENCE = (
    Metric("flicker", False, 4, "mean change from frame to frame of the object's quietest pixels, 0..1"),
    Metric("acceleration", False, 4, "mean second difference over time of the same pixels, 0..1"),
    Metric("warping", False, 4, "what optical flow cannot explain from frame to frame, 0..1"),
    Metric(
        "tangency", False, 2, "per cent of the width by which outlines contradict each other across views"
    ),
    Metric("epipolar", False, 2, "per cent of the width by which matched corners miss their epipolar lines"),
    Metric(RESIDUAL_NAME, False, 4, "what a 4D scene fitted to all views leaves unexplained, 0..1"),
)
METRICS = (*PAPER, *WITH_REFERENCE, *WITHOUT_REFERENCE)


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
    if min(images.shape[1:3]) >= image.SSIM_WINDOW:
        both = torch.stack([torch.ones_like(true_masks), true_masks])
        columns["SSIM"], columns["SSIM fg"] = image.ssim(images, truth, both)
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
