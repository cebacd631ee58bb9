"""The report as one self-contained HTML page, with nothing that runs or loads, and as JSON."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..evaluate import METRICS, REFERENCE, SceneScores, Summary
from .plots import (
    RAMP,
    error_scale,
    heat_maps,
    plots_over_angle,
    plots_over_time,
    ramp,
    series_colour,
    series_mark,
)
from .tables import (
    SceneComparison,
    lacks_data,
    method_names,
    notes,
    report_tables,
    untrained_warning,
    what_was_compared,
)

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = Path(__file__).parent
STYLE = (_FOLDER / "page.css").read_text(encoding="utf-8")


def templates(folder: Path) -> Environment:
    """Return the pages' templates in a folder; what is filled in is escaped, and nothing may be missing."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(folder)
    return Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )


def report_page(
    comparisons: Sequence[SceneComparison], summaries: Sequence[Summary], run: Mapping[str, Any] | None = None
) -> str:
    """Return the page: facts, tables, notes, pictures, plots; ``run`` says in JSON values how it was made."""
    environment = templates(_FOLDER)
    drawing = (error_scale, heat_maps, plots_over_time, plots_over_angle)
    environment.globals.update({function.__name__: function for function in drawing})
    numbers = {REFERENCE: -1, **{name: i for i, name in enumerate(method_names(comparisons))}}
    return environment.get_template("page.html.jinja").render(
        title="Evaluation of novel views",
        style=STYLE,
        facts=what_was_compared(comparisons),
        warning=untrained_warning(comparisons),
        tables=report_tables(comparisons, summaries),
        notes=notes(comparisons, summaries),
        scenes=comparisons,
        run=run or {},
        numbers=numbers,
        marks={name: (series_mark(i), series_colour(i)) for name, i in numbers.items()},
        ramp=RAMP,
        png=_png,
        error_png=lambda errors, scale: _png(ramp(errors / (255 * scale))),
        svg=lambda text: _address(text.encode(), "svg+xml"),
    )


def _png(picture: NDArray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return _address(buffer.getvalue(), "png")


def _address(file: bytes, kind: str) -> str:
    """Return the address of an image file that holds the whole file."""
    return f"data:image/{kind};base64,{base64.b64encode(file).decode('ascii')}"


_DIGITS = 7


def report_json(comparisons: Sequence[SceneComparison], summaries: Sequence[Summary]) -> dict[str, Any]:
    """Return values that JSON can hold: NaN is null, infinity "inf" or "-inf"; seven significant digits.

    A scene's values are [frame][view] of each image or pair of frames, or [view].
    """
    record = {
        "methods": method_names(comparisons),
        "metrics": {
            name: {"higher_is_better": m.higher_is_better, "meaning": m.meaning}
            for name, m in METRICS.items()
        },
        "summary": {summary.method: _summary(summary, comparisons) for summary in summaries},
        "scenes": {
            scene.scene: {
                "sizes": scene.sizes,
                "networks": sorted(scene.networks),
                "scores": {score.method: _scores(score, scene) for score in scene.scores},
            }
            for scene in comparisons
        },
        "notes": notes(comparisons, summaries),
        "warning": untrained_warning(comparisons) or None,
    }
    return _plain(record)


def _summary(summary: Summary, comparisons: Sequence[SceneComparison]) -> dict[str, Any]:
    names = [*summary.means, *summary.distances]
    return {
        "n_scenes": summary.n_scenes,
        "n_missing_views": summary.n_missing,
        "values": {name: summary.value(name) for name in names},
        "incomplete": [name for name in names if lacks_data(name, summary.method, comparisons)],
        "frechet": {
            name: {
                "distance": d.distance,
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


def _scores(score: SceneScores, scene: SceneComparison) -> dict[str, Any]:
    return {
        "n_frames": score.n_frames,
        "cameras": asdict(score.cameras),
        "trained": score.method not in scene.untrained,
        "incomplete": score.method in scene.incomplete,
        "missing_views": score.missing,
        "values": score.values,
        "notes": score.notes,
    }


def _plain(value: Any) -> Any:
    """Return tensors and tuples as lists, and numbers as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(x) for key, x in value.items()}
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(x) for x in value]
    if not isinstance(value, float):
        return value
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return float(f"{value:.{_DIGITS}g}")
