"""Scores of one method on one scene, and their summary over scenes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import Cameras
from .frechet import FrechetDistance, frechet_distance

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
