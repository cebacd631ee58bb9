"""The report as plain values, for ``report.json``: every number, with what it belongs to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from ..catalogue import METRICS
from ..scores import SceneScores, Summary
from .comparison import SceneComparison, method_names
from .remarks import notes, untrained_warning
from .tables import lacks_data

_DIGITS = 7


def report_json(comparisons: Sequence[SceneComparison], summaries: Sequence[Summary]) -> dict[str, Any]:
    """Return values that JSON can hold: NaN is null, infinity "inf" or "-inf"; seven significant digits.

    Args:
        comparisons: the scenes.
        summaries: of the true views and the methods over all scenes (`summaries_of`).
    """
    return {
        "methods": method_names(comparisons),
        "metrics": {m.name: {"higher_is_better": m.higher_is_better, "meaning": m.meaning} for m in METRICS},
        "summary": {s.method: _summary(s, comparisons) for s in summaries},
        "scenes": {scene.scene: _scene(scene) for scene in comparisons},
        "notes": notes(comparisons, summaries),
        "warning": untrained_warning(comparisons) or None,
    }


def _summary(summary: Summary, comparisons: Sequence[SceneComparison]) -> dict[str, Any]:
    names = [*summary.means, *summary.distances]
    return {
        "n_scenes": summary.n_scenes,
        "n_missing_views": summary.n_missing,
        "values": {name: _plain(summary.value(name)) for name in names},
        "incomplete": [name for name in names if lacks_data(name, summary.method, comparisons)],
        "frechet": {
            name: {
                "distance": _plain(d.distance),
                "n": d.n_samples,
                "n_reference": d.n_reference_samples,
                "clip_length": summary.clip_lengths[name],
                "n_features": d.n_features,
                "shrinkage": d.shrinkage,
                "rank_deficient": d.rank_deficient,
            }
            for name, d in summary.distances.items()
        },
    }


def _scene(scene: SceneComparison) -> dict[str, Any]:
    return {
        "sizes": [list(size) for size in scene.sizes],
        "networks": sorted(scene.networks),
        "scores": {score.method: _scores(score, scene) for score in scene.scores},
    }


def _scores(score: SceneScores, scene: SceneComparison) -> dict[str, Any]:
    """Return one method's numbers: [frame][view] of each image or pair of frames, or [view]."""
    return {
        "n_frames": score.n_frames,
        "cameras": {key: _plain(value) for key, value in asdict(score.cameras).items()},
        "trained": score.method not in scene.untrained,
        "incomplete": score.method in scene.incomplete,
        "missing_views": list(score.missing),
        "values": {name: _plain(values) for name, values in score.values.items()},
        "notes": list(score.notes),
    }


def _plain(value: Any) -> Any:
    """Return tensors and tuples as lists and their numbers as JSON has them."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(x) for x in value]
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return float(f"{value:.{_DIGITS}g}")
