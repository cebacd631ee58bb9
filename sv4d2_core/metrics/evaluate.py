"""The catalogue of metrics, the scores of one grid of views, and their summary over scenes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..cameras import Cameras
from ..views import ViewGrid
from . import consistency, image
from .consistency import finite_masks
from .frechet import ORDERS, ClipFeatures, FrechetDistance, clip_features, frechet_distance, hog3d_features
from .i3d import SHORTEST_CLIP

REFERENCE = "reference"  # the name of the true views' own scores
DEFAULT_SHRINKAGE = 0.1  # share of each covariance that is replaced: a few clips give a distance, too
_EQUAL_IMAGES_DB = 100.0  # dB that the infinite PSNR of equal images counts as in a mean
_MATCHED_FRAMES = 8  # at most, evenly spread: matching corners is the slowest metric
_SMALLEST_SIDE = 12  # pixels; no optical flow is found in smaller images
_SAME_INPUT_DB = 24.0  # input views less alike were cut out in another way, or are of another clip


@dataclass(frozen=True)
class Metric:
    """One column of the tables."""

    name: str  # title, and key in report.json
    higher_is_better: bool
    digits: int  # digits after the point that are printed
    meaning: str  # one line for people, with the unit

    @property
    def title(self) -> str:
        """The name with an arrow towards better."""
        return f"{self.name} {'↑' if self.higher_is_better else '↓'}"


# Of each order: its Frechet distance over I3D features, and over descriptors that need no network.
FVD_NAMES = {"F": "FVD-F", "V": "FVD-V", "Diag": "FVD-Diag", "4D": "FV4D"}
FHD_NAMES = {"F": "FHD-F", "V": "FHD-V", "Diag": "FHD-Diag", "4D": "FH4D"}
_WATCHED = {
    "F": "over the frames of each view",
    "V": "over the views of each frame",
    "Diag": "along the diagonals of the grid of frames and views",
    "4D": "over the whole grid, scanned to and fro in clips as long as the video",
}
_FHD_MEANING = "Frechet distance of HOG3D and colour descriptors {}; not FVD"

# The columns of the tables of SV4D and SV4D 2.0, in their order.
PAPER = (
    Metric("LPIPS", False, 3, "learned perceptual distance of each image to the true one"),
    Metric("CLIP-S", True, 3, "cosine of CLIP's embeddings of each image and the true one"),
    *(Metric(FVD_NAMES[o], False, 2, f"Frechet video distance (I3D) {text}") for o, text in _WATCHED.items()),
)
WITH_REFERENCE = (
    Metric("PSNR", True, 2, "dB, whole image; white background counts"),
    Metric("SSIM", True, 3, "structural similarity, whole image"),
    Metric("PSNR fg", True, 2, "dB, inside the true mask"),
    Metric("PSNR union", True, 2, "dB, inside the true mask or the own one: what is too much costs, too"),
    Metric("SSIM fg", True, 3, "structural similarity inside the true mask"),
    Metric("mask IoU", True, 3, "overlap of the outline with the true one"),
    *(Metric(FHD_NAMES[o], False, 4, _FHD_MEANING.format(text)) for o, text in _WATCHED.items()),
)
WITHOUT_REFERENCE = (
    Metric("flicker", False, 4, "mean change from frame to frame of the object's quietest pixels, 0..1"),
    Metric("acceleration", False, 4, "mean second difference over time of the same pixels, 0..1"),
    Metric("warping", False, 4, "what optical flow cannot explain from frame to frame, 0..1"),
    Metric(
        "tangency", False, 2, "per cent of the width by which outlines contradict each other across views"
    ),
    Metric("epipolar", False, 2, "per cent of the width by which matched corners miss their epipolar lines"),
)
METRICS = {metric.name: metric for metric in (*PAPER, *WITH_REFERENCE, *WITHOUT_REFERENCE)}

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
class SceneScores:
    """What one method scored on one scene.

    The values of a metric are [T, V] (each image), [T - 1, V] (each pair of frames) or [V] (each view),
    float64, NaN where there is none. Frechet distances have the features of predicted and true clips instead.
    """

    method: str
    scene: str
    cameras: Cameras  # V + 1, view 0 the input, which is never scored
    n_frames: int  # T
    values: dict[str, Tensor]
    features: dict[str, tuple[Tensor, Tensor]]  # [N, D] each
    clip_lengths: dict[str, int]  # per Frechet distance the number of images in a clip
    missing: tuple[int, ...] = ()  # novel views (1 to V) of the reference that the method lacks
    notes: tuple[str, ...] = ()  # what was left out and why

    def per_view(self, name: str) -> Tensor:
        """Return the mean over time of each novel view, [V]."""
        values = self.values[name]
        return values if values.ndim == 1 else mean_along(values, dim=0)

    def has(self, name: str) -> bool:
        """Return whether any image, or any clip, has a value of a metric."""
        return name in self.features or (name in self.values and not bool(self.values[name].isnan().all()))


@dataclass(frozen=True)
class Summary:
    """What one method scored over all scenes."""

    method: str
    n_scenes: int
    means: dict[str, float]  # over scenes of the mean over what has a value; NaN where nothing has
    distances: dict[str, FrechetDistance]  # over the clips of all scenes
    clip_lengths: dict[str, int]  # images in a clip, in the scene where they are fewest
    n_missing: int  # views, in all scenes together
    notes: tuple[str, ...]

    def value(self, name: str) -> float:
        """Return the number of a column, NaN where the method has none."""
        if name in self.distances:
            return self.distances[name].distance
        return self.means.get(name, math.nan)


def summarise(scores: Sequence[SceneScores], shrinkage: float = DEFAULT_SHRINKAGE) -> Summary:
    """Return a method's summary over equally weighed scenes; ValueError for none, or several methods'."""
    methods = {score.method for score in scores}
    if len(methods) != 1:
        raise ValueError(f"Expected the scenes of one method; got those of {len(methods)}. Summarise each.")
    means = {}
    for name in dict.fromkeys(name for score in scores for name in score.values):
        of_scenes = [mean_of(score.values[name]) for score in scores if name in score.values]
        means[name] = mean_of(torch.tensor(of_scenes, dtype=torch.float64))
    distances, lengths = {}, {}
    notes = list(dict.fromkeys(note for score in scores for note in score.notes))
    for name in dict.fromkeys(name for score in scores for name in score.features):
        having = [score for score in scores if name in score.features]
        predicted, reference = map(torch.cat, zip(*(s.features[name] for s in having), strict=True))
        if len(predicted) < 2:
            notes.append(f"{name} needs at least 2 clips; there is {len(predicted)}.")
            continue
        distances[name] = frechet_distance(predicted, reference, shrinkage)
        lengths[name] = min(score.clip_lengths[name] for score in having)
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


@dataclass(frozen=True)
class Networks:
    """What needs files that are not part of this program; None where they were not given."""

    lpips: Callable[[Tensor, Tensor], Tensor] | None = None  # images, references [N, H, W, 3] to [N]
    clip: Callable[[Tensor], Tensor] | None = None  # images [N, H, W, 3] to embeddings [N, D]
    i3d: ClipFeatures | None = None


@dataclass(frozen=True)
class _Pictures:
    images: Tensor  # [T, V + 1, H, W, 3], finite
    masks: Tensor  # [T, V + 1, H, W]

    def show_an_object(self) -> Tensor:
        """Return which images of the novel views show one, [T, V]."""
        return (self.masks[:, 1:] >= 0.5).any(dim=(2, 3))


def evaluate(
    predicted: ViewGrid,
    reference: ViewGrid | None = None,  # of the same frames, in any order of cameras; None: what needs none
    networks: Networks | None = None,
    *,
    method: str = "predicted",
    scene: str = "",
    callback: Callable[[int, int], None] | None = None,  # takes (steps done, `steps_of`), may raise to cancel
) -> SceneScores:
    """Return the scores of predicted novel views; the input view is not scored.

    Images that are not finite and missing views get no score; the notes name them. Raises ValueError for
    frames, sizes or cameras unlike the reference's, values outside 0..1, images below 12 x 12.
    """
    missing: list[int] = []
    predicted = _on_cpu(predicted)
    if reference is not None:
        reference = _on_cpu(reference)
        predicted, missing = image.paired_views(predicted, reference, method)
        _check_images(reference.images[:, 1:], "reference")
        if not reference.images[:, 1:].isfinite().all():
            raise ValueError("Expected finite values in the reference; got NaN or infinite ones. Look at it.")
    _check_images(predicted.images, "images")
    counter = itertools.count(1)

    def done() -> None:
        if callback is not None:
            callback(next(counter), steps_of(predicted, reference))

    cameras = predicted.cameras
    usable = predicted.images[:, 1:].isfinite().all(dim=(2, 3, 4))  # [T, V]
    images = predicted.images if usable.all() else torch.nan_to_num(predicted.images, posinf=1, neginf=0)
    seen = _Pictures(images, finite_masks(predicted))
    shown = seen.show_an_object() | ~usable
    notes = _gaps(usable, shown, missing)
    edge = torch.ones_like(seen.masks[0, 0])
    edge[1:-1, 1:-1] = 0
    if cut := int(((seen.masks * edge) >= 0.5).any(dim=(2, 3)).sum()):
        notes.append(f"The border cuts the object off in {cut} images: outlines (tangency) disagree there.")
    values: dict[str, Tensor] = {}
    features: dict[str, tuple[Tensor, Tensor]] = {}
    lengths: dict[str, int] = {}
    truth = None
    if reference is not None:
        truth = _Pictures(reference.images, finite_masks(reference))
        values |= _against_truth(seen, truth, networks or Networks(), usable, done)
        if not truth.show_an_object().all():
            notes.append("The reference shows no object in some images: no foreground scores there.")
        notes += _input_note(seen.images[:, 0], truth.images[:, 0])
        whole = usable.all(dim=0)
        if not whole.all():
            notes.append("Frechet distances leave out views that are missing or incomplete.")
        clips = (seen.images[:, 1:][:, whole], truth.images[:, 1:][:, whole])
        features, lengths, too_short = _clips(*clips, networks or Networks())
        notes += too_short
    values |= _without_truth(seen, truth or seen, cameras, usable & shown, done)
    facts = (method, scene, cameras, predicted.n_frames)
    return SceneScores(*facts, values, features, lengths, tuple(missing), tuple(notes))


def _on_cpu(grid: ViewGrid) -> ViewGrid:
    masks = None if grid.masks is None else grid.masks.detach().cpu()
    return replace(grid, images=grid.images.detach().cpu(), masks=masks)


def steps_of(predicted: ViewGrid, reference: ViewGrid | None = None) -> int:
    """Return how many steps `evaluate` reports: frames and views, frames once more with a reference."""
    if reference is None:
        return predicted.n_frames + predicted.n_views
    return 2 * reference.n_frames + reference.n_views


def _check_images(images: Tensor, name: str) -> None:
    """Raise ValueError for images that are not square, too small or not in 0..1."""
    height, width = images.shape[2:4]
    if height != width:
        raise ValueError(
            f"Expected square images, as the cameras are square; got {width} x {height}. Crop or pad them."
        )
    if height < _SMALLEST_SIDE:
        raise ValueError(
            f"Expected images of at least {_SMALLEST_SIDE} x {_SMALLEST_SIDE} pixels; got "
            f"{width} x {height}. Use larger ones."
        )
    extremes = [torch.nan_to_num(frame, posinf=0, neginf=0).aminmax() for frame in images]
    low, high = min(float(e.min) for e in extremes), max(float(e.max) for e in extremes)
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(
            f"Expected values in 0..1 in the {name}; got {low:g} to {high:g}. Divide 8-bit values by 255."
        )


def _input_note(ours: Tensor, theirs: Tensor) -> list[str]:
    """Say so where the input views differ: then all views are of another crop, and scores mean nothing."""
    error = float((ours - theirs).nan_to_num().square().double().mean())
    if error <= 10 ** (-_SAME_INPUT_DB / 10):
        return []
    return [
        f"The input view is not the reference's ({-10 * math.log10(error):.1f} dB): cut out, scaled or "
        f"timed in another way. Scores against the reference then measure that, not the views."
    ]


def _gaps(usable: Tensor, shown: Tensor, missing: list[int]) -> list[str]:
    """Say which views are missing, how many images hold no numbers, and how many show no object."""
    notes = [f"Missing views: {', '.join(map(str, missing))}."] if missing else []
    for text, bad in (("hold NaN or infinite values", ~usable), ("show no object", ~shown)):
        for v, count in enumerate(bad.sum(dim=0).tolist(), start=1):
            if count and v not in missing:
                notes.append(f"View {v}: {count} of {len(bad)} images {text}.")
    return notes


def _against_truth(
    seen: _Pictures, truth: _Pictures, networks: Networks, usable: Tensor, done: Callable[[], None]
) -> dict[str, Tensor]:
    """Return the image metrics, each [T, V]; frame by frame, as all at once would fill the memory."""
    frames = []
    for t in range(len(usable)):
        images, masks = seen.images[t, 1:], seen.masks[t, 1:]
        true_images, true_masks = truth.images[t, 1:], truth.masks[t, 1:]
        columns = {
            "PSNR": image.psnr(images, true_images),
            "PSNR fg": image.psnr(images, true_images, true_masks),
            "PSNR union": image.psnr(images, true_images, torch.maximum(masks, true_masks)),
            "mask IoU": image.mask_iou(masks, true_masks),
        }
        if images.shape[1] >= image.SSIM_WINDOW:
            both = torch.stack([torch.ones_like(true_masks), true_masks])
            columns["SSIM"], columns["SSIM fg"] = image.ssim(images, true_images, both)
        if networks.lpips is not None:
            columns["LPIPS"] = networks.lpips(images, true_images)
        if networks.clip is not None:
            embeddings = networks.clip(images), networks.clip(true_images)
            columns["CLIP-S"] = torch.cosine_similarity(*embeddings, dim=-1)
        frames.append(columns)
        done()
    return {
        name: torch.where(usable, torch.stack([frame[name].cpu().double() for frame in frames]), math.nan)
        for name in frames[0]
    }


def _clips(
    images: Tensor, truth: Tensor, networks: Networks
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, int], list[str]]:
    """Return features per Frechet distance, the length of its clips, and notes on what was left out."""
    features, lengths, notes = {}, {}, []
    n_frames, n_views = images.shape[:2]
    kinds = ((FHD_NAMES, hog3d_features, 2), (FVD_NAMES, networks.i3d, SHORTEST_CLIP))
    for (names, describe, shortest), order in itertools.product(kinds, ORDERS):
        name, length = names[order], n_views if order == "V" else n_frames
        if describe is None or not n_views:
            continue
        if length < shortest:
            notes.append(f"{name} needs clips of at least {shortest} images; these have {length}.")
            continue
        features[name] = clip_features(images, describe, order), clip_features(truth, describe, order)
        lengths[name] = length
    return features, lengths, notes


def _without_truth(
    seen: _Pictures, still: _Pictures, cameras: Cameras, usable: Tensor, done: Callable[[], None]
) -> dict[str, Tensor]:
    """Return flicker and acceleration [V], warping [T - 1, V], tangency and epipolar [T, V].

    What stands still is taken from ``still``, the true views where there are some.
    """
    changes, warping = [], []
    for v in range(1, cameras.n_views + 1):
        static = consistency.quietest_pixels(still.images[:, v], still.masks[:, v])
        changes.append([consistency.mean_change(seen.images[:, v], static, order) for order in (1, 2)])
        warping.append(consistency.warping_errors(seen.images[:, v], seen.masks[:, v]))
        done()
    whole = usable.all(dim=0)
    flicker, acceleration = torch.where(whole, torch.tensor(changes, dtype=torch.float64).T, math.nan)
    step = max(1, math.ceil(len(usable) / _MATCHED_FRAMES))
    tangency, matched = (torch.full(usable.shape, math.nan, dtype=torch.float64) for _ in range(2))
    for t, row in enumerate(usable):
        tangency[t] = torch.where(row, consistency.tangency_errors(seen.masks[t], cameras)[1:], math.nan)
        if t % step == 0:
            matched[t] = torch.where(row, consistency.match_errors(seen.images[t], cameras)[1:], math.nan)
        done()
    return {
        "flicker": flicker,
        "acceleration": acceleration,
        "warping": torch.where(usable[:-1] & usable[1:], torch.stack(warping, dim=1), math.nan),
        "tangency": tangency,
        "epipolar": matched,
    }
