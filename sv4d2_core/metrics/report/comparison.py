"""Scores several methods on one scene, side by side, and keeps what the report shows of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...views import ViewGrid
from ..evaluate import Networks, evaluate, steps_of
from ..scores import DEFAULT_SHRINKAGE, SceneScores, Summary, summarise
from .pictures import REFERENCE, Strip, scene_pictures


@dataclass(frozen=True)
class SceneComparison:
    """What several methods scored on one scene. Holds no full-size image.

    Args:
        scene: name.
        scores: the true views' own first where there are some, then the methods in their order.
        pictures: strips of small pictures.
        sizes: widths and heights of the views in pixels, one where all are alike.
        incomplete: methods that lack views, or images of which hold NaN or infinite values.
        untrained: methods whose views come from weights that were never trained.
        networks: which of "lpips", "clip" and "i3d" were at hand.
    """

    scene: str
    scores: tuple[SceneScores, ...]
    pictures: tuple[Strip, ...]
    sizes: tuple[tuple[int, int], ...]
    incomplete: frozenset[str] = frozenset()
    untrained: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()

    @property
    def has_reference(self) -> bool:
        """Whether there are true views."""
        return self.scores[0].method == REFERENCE

    @property
    def of_methods(self) -> tuple[SceneScores, ...]:
        """The scores of the methods alone."""
        return self.scores[1:] if self.has_reference else self.scores


def compare(
    scene: str,
    predictions: Mapping[str, ViewGrid],
    reference: ViewGrid | None,
    networks: Networks | None = None,
    *,
    residuals: Mapping[str, Tensor] | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> SceneComparison:
    """Return the scores of all methods on one scene, and of the true views by what needs no truth.

    Args:
        scene: name.
        predictions: the views of every method, by its name.
        reference: true views, or None.
        networks: for LPIPS, CLIP-S and FVD.
        residuals: per method [T, V] what a fitted 4D scene leaves unexplained (`fit_residuals`).
        callback: called with (steps done, all steps); may raise to cancel.

    Raises:
        ValueError: no method, a method without a name or with the name of the true views, residuals of no
            method, or views that do not fit the reference's.
    """
    _check_names(predictions, residuals or {})
    total = sum(steps_of(grid, reference) for grid in predictions.values())
    total += 0 if reference is None else steps_of(reference)
    counter = itertools.count(1)

    def step(_done: int, _steps: int) -> None:
        if callback is not None:
            callback(next(counter), total)

    scores = []
    if reference is not None:
        scores.append(evaluate(reference, method=REFERENCE, scene=scene, callback=step))
    for name, grid in predictions.items():
        found = (residuals or {}).get(name)
        options = {"method": name, "scene": scene, "residuals": found, "callback": step}
        scores.append(evaluate(grid, reference, networks, **options))
    sizes = dict.fromkeys((grid.images.shape[3], grid.images.shape[2]) for grid in predictions.values())
    given = networks or Networks()
    return SceneComparison(
        scene,
        tuple(scores),
        scene_pictures(predictions, reference, scores),
        tuple(sizes),
        frozenset(s.method for s in scores if s.missing or _has_gaps(predictions.get(s.method))),
        frozenset(name for name, grid in predictions.items() if not grid.trained),
        frozenset(name for name in ("lpips", "clip", "i3d") if getattr(given, name) is not None),
    )


def method_names(comparisons: Sequence[SceneComparison]) -> list[str]:
    """Return the methods of all scenes in their order, without the true views."""
    return list(dict.fromkeys(score.method for scene in comparisons for score in scene.of_methods))


def summaries_of(
    comparisons: Sequence[SceneComparison], shrinkage: float = DEFAULT_SHRINKAGE
) -> tuple[Summary, ...]:
    """Return the summary over all scenes of the true views, where there are some, and of every method.

    Raises:
        ValueError: no scene, or two scenes of one name.
    """
    names = [scene.scene for scene in comparisons]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"Expected at least one scene, each with its own name; got {', '.join(names) or 'none'}. Rename "
            f"or leave out what is there twice."
        )
    scores = [score for scene in comparisons for score in scene.scores]
    with_reference = any(scene.has_reference for scene in comparisons)
    methods = [*([REFERENCE] if with_reference else []), *method_names(comparisons)]
    return tuple(summarise([s for s in scores if s.method == m], shrinkage) for m in methods)


def _check_names(predictions: Mapping[str, ViewGrid], residuals: Mapping[str, Tensor]) -> None:
    if not predictions:
        raise ValueError("Expected the views of at least one method; got none. Give some.")
    for name in predictions:
        if not name.strip() or name.strip().lower() == REFERENCE:
            raise ValueError(
                f"Expected a method's name; got {name!r}, and {REFERENCE!r} is what the true views are "
                f"called. Choose another name."
            )
    if unknown := [name for name in residuals if name not in predictions]:
        raise ValueError(
            f"Expected residuals of {', '.join(predictions)}; got some of {unknown[0]!r}. Use the methods' "
            f"names."
        )


def _has_gaps(grid: ViewGrid | None) -> bool:
    return grid is not None and not bool(grid.images[:, 1:].isfinite().all())
