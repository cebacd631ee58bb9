"""The report's plots and small pictures, and the one style of all plots: colours, marks, letters.

Plots are matplotlib figures without its global state: `svg` for the page, `as_image` for pictures.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ...cameras import Cameras
from ...video.pictures import pick_frames, to_bytes
from ...views import ViewGrid, resize_images
from ..evaluate import METRICS, REFERENCE, Metric, SceneScores, mean_along, mean_of
from ..evaluate import written as number
from ..image import paired_views

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

INK, FAINT, GRID = "#333333", "#767676", "#e2e2e2"
NO_VALUE_COLOUR, _CROSS_COLOUR = "#dddddd", "#888888"  # of a cell without a value, and of its cross
# Distinguishable for colour-blind people (Okabe and Ito 2008); their yellow is too pale on white.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_REFERENCE_COLOUR = "#444444"
_MARKS, _MARK_LETTERS = "osD^v", "●■◆▲▼"  # for matplotlib, and as letters; the methods take turns
# Lightness (CIELAB) falls evenly from 98 to 18, so that equal steps look equal, printed in grey as well.
RAMP = ("#fbfaeb", "#fdcb7f", "#f9965c", "#e75f60", "#b73975", "#752b75", "#362154")
_STYLE: Any = {
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": FAINT,
    "axes.grid": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    # Equal figures get equal ids.
    "svg.hashsalt": "sv4d2",
}


@contextlib.contextmanager
def _in_style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Of names in scripts that the plots' font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


styled = _in_style()  # a decorator: the style of all plots while a function makes and saves figures


def new_figure(width: int, height: int) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 100, height / 100), dpi=100)


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Return axes at a place of the figure, in pixels from its upper left corner."""
    across, down = (100 * inches for inches in figure.get_size_inches())
    return figure.add_axes((left / across, (down - top - height) / down, width / across, height / down))


def as_image(figure: Figure) -> Image.Image:
    """Return a figure as RGB picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def svg(figure: Figure) -> str:
    """Return a figure as the text of an SVG file; its texts stay texts."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def colour_map() -> Colormap:
    """Return matplotlib's form of the colours from nearly white (no error) to dark."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("errors", RAMP).with_extremes(bad=NO_VALUE_COLOUR)


def ramp(amounts: ArrayLike) -> NDArray[np.uint8]:
    """Return the colours [..., 3] of amounts from 0 (nearly white) to 1 (dark); others are clipped."""
    places = np.clip(np.asarray(amounts, dtype=float), 0, 1)
    return np.asarray(colour_map()(places, bytes=True))[..., :3]


def series_colour(index: int) -> str:
    """Return the colour of the method of that number, after six they begin again; -1: of the true views."""
    return _REFERENCE_COLOUR if index < 0 else _COLOURS[index % len(_COLOURS)]


def series_mark(index: int) -> str:
    """Return the mark of the method of that number as a letter; -1: of the true views."""
    return "┄" if index < 0 else _MARK_LETTERS[index % len(_MARK_LETTERS)]


def draw_heat_map(
    axes: Axes,
    values: Tensor,  # [T, V]
    row_labels: Sequence[str],
    limits: tuple[float, float],
    digits: int,
) -> QuadMesh:
    """Draw a row per view, a column per frame, and views' means at the right; ``limits`` are best and worst.

    Worse is darker; cells without a value are grey and crossed out, infinite ones (equal images) look best.
    """
    best, worst = (0.0, 0.0) if math.isnan(limits[0]) else limits
    n_frames, n_views = values.shape
    cells = np.where(np.isinf(values.numpy()), best, values.numpy()).T
    colours = colour_map() if best <= worst else colour_map().reversed()
    low, high = min(best, worst), max(best, worst)
    if low == high:
        # The only value there is is as good as the best one.
        low, high = (low, low + 1) if best <= worst else (low - 1, low)
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(cells), cmap=colours, vmin=low, vmax=high, edgecolor="white", linewidth=0.6
    )
    rows, columns = np.isnan(cells).nonzero()
    axes.plot(columns + 0.5, rows + 0.5, "x", color=_CROSS_COLOUR, markersize=5, markeredgewidth=0.8)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_yticks(np.arange(n_views) + 0.5, row_labels, color=INK)
    every = math.ceil(n_frames / 20)
    axes.set_xticks(np.arange(0, n_frames, every) + 0.5, [str(t) for t in range(0, n_frames, every)])
    axes.set_xlabel("frame")
    beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center", "annotation_clip": False}
    axes.annotate("mean", (1.01, -0.5), color=FAINT, **beside)
    for v in range(n_views):
        axes.annotate(number(mean_of(values[:, v]), digits), (1.01, v + 0.5), **beside)
    return mesh


# Of each group the first that has values is shown.
_FOREGROUND_PSNR = ("PSNR fg", "PSNR")
_HEAT_MAPS = (_FOREGROUND_PSNR, ("tangency",))
_LINE_PLOTS = (_FOREGROUND_PSNR, ("LPIPS",), ("mask IoU",), ("warping",), ("tangency",))
_PAGE_WIDTH, _PLOTS_IN_A_ROW, _PLOT_HEIGHT = 1140, 4, 150
_LABEL_WIDTH, _ROW_HEIGHT, _WIDEST_CELL = 125, 19, 30
_LEAST_DISTANCE_DEG = 15  # at least, between azimuths whose elevations are written


def _shown(groups: Sequence[Sequence[str]], scores: Sequence[SceneScores]) -> list[Metric]:
    methods = [score for score in scores if score.method != REFERENCE]
    found = ([name for name in group if any(score.has(name) for score in methods)] for group in groups)
    return [METRICS[names[0]] for names in found if names]


@styled
def heat_maps(scores: Sequence[SceneScores]) -> list[tuple[Metric, str]]:
    """Return heat maps as SVG: of each metric those of all methods on one scale."""
    return [(metric, _heat_maps_of(metric, scores)) for metric in _shown(_HEAT_MAPS, scores)]


def _heat_maps_of(metric: Metric, scores: Sequence[SceneScores]) -> str:
    having = [score for score in scores if metric.name in score.values]
    values = torch.cat([score.values[metric.name].flatten() for score in having])
    ends = values[values.isfinite()].aminmax() if values.isfinite().any() else (math.nan, math.nan)
    best, worst = map(float, reversed(ends) if metric.higher_is_better else ends)
    step = max(score.cameras.n_views for score in having) * _ROW_HEIGHT + 80
    height = math.ceil(len(having) / 2) * step
    figure = new_figure(_PAGE_WIDTH, height + 55)
    for i, score in enumerate(having):
        cells = score.values[metric.name]
        labels = [view_label(score.cameras, v) for v in range(1, score.cameras.n_views + 1)]
        left, top = i % 2 * _PAGE_WIDTH / 2 + _LABEL_WIDTH, i // 2 * step + 40
        width = min(_PAGE_WIDTH / 2 - _LABEL_WIDTH - 60, _WIDEST_CELL * len(cells))
        axes = axes_at(figure, left, top, width, _ROW_HEIGHT * len(labels))
        mesh = draw_heat_map(axes, cells, labels, (best, worst), metric.digits)
        axes.set_title(score.method, pad=16)
        if i == 0:
            place = axes_at(figure, _LABEL_WIDTH, height, 240, 12)
            bar = figure.colorbar(mesh, cax=place, orientation="horizontal")
            bar.set_label("no finite value" if math.isnan(best) else "darker is worse, x: no value")
            if metric.higher_is_better:
                bar.ax.invert_xaxis()
    return svg(figure)


@styled
def plots_over_time(scores: Sequence[SceneScores], numbers: Mapping[str, int]) -> str:
    """Return means over one scene's views against the frame as SVG; pairs of frames stand between them.

    ``numbers`` choose each method's colour and mark, -1: the true views'.
    """

    def points(score: SceneScores, name: str) -> tuple[list[float], list[float]]:
        means = mean_along(score.values[name], dim=1).tolist()
        return [t + (score.n_frames - len(means)) / 2 for t in range(len(means))], means

    return _line_plots(scores, numbers, points, "frame")


@styled
def plots_over_angle(scores: Sequence[SceneScores], numbers: Mapping[str, int]) -> str:
    """Return the means over the frames against the azimuth as SVG; elevations are written above."""

    def azimuths(score: SceneScores) -> list[float]:
        return [180 - (180 - azimuth) % 360 for azimuth in score.cameras.azimuths_deg[1:]]

    def points(score: SceneScores, name: str) -> tuple[list[float], list[float]]:
        pairs = sorted(zip(azimuths(score), score.per_view(name).tolist(), strict=True))
        return [azimuth for azimuth, _ in pairs], [value for _, value in pairs]

    angles = [pair for s in scores for pair in zip(azimuths(s), s.cameras.elevations_deg[1:], strict=True)]
    elevations: dict[float, str] = {}
    for azimuth, elevation in sorted(angles):
        if elevation and azimuth - max(elevations, default=-math.inf) >= _LEAST_DISTANCE_DEG:
            elevations[azimuth] = f"el {elevation:+.3g}°"
    label = "azimuth to the input view, degrees"
    return _line_plots(scores, numbers, points, label, (-180, -90, 0, 90, 180), elevations)


def _line_plots(
    scores: Sequence[SceneScores],
    numbers: Mapping[str, int],
    points: Callable[[SceneScores, str], tuple[list[float], list[float]]],
    x_label: str,
    x_ticks: Sequence[float] = (),
    above: Mapping[float, str] | None = None,
) -> str:
    """Return a plot per metric, a line per method that has it."""
    from matplotlib.ticker import MaxNLocator

    metrics = _shown(_LINE_PLOTS, scores)
    top_margin, width = (68 if above else 24), _PAGE_WIDTH / _PLOTS_IN_A_ROW
    step = top_margin + _PLOT_HEIGHT + 45
    figure = new_figure(_PAGE_WIDTH, max(1, math.ceil(len(metrics) / _PLOTS_IN_A_ROW)) * step)
    for i, metric in enumerate(metrics):
        row, column = divmod(i, _PLOTS_IN_A_ROW)
        axes = axes_at(figure, column * width + 45, row * step + top_margin, width - 55, _PLOT_HEIGHT)
        lines = {s.method: points(s, metric.name) for s in scores if metric.name in s.values}
        finite = [y for _, ys in lines.values() for y in ys if math.isfinite(y)] or [0.0, 1.0]
        # Infinite values lie hollow at the upper edge.
        edge = max(finite) + (0.08 * (max(finite) - min(finite)) or 0.05 * abs(max(finite)) or 0.5)
        for method, (x, y) in lines.items():
            _draw_line(axes, numbers[method], x, y, edge)
        axes.set_title(metric.title)
        axes.set_xlabel(x_label)
        axes.grid(axis="y")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if x_ticks:
            axes.set_xticks(x_ticks)
        if min(finite) >= 0:
            # What cannot be negative is not given an axis that is.
            axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
        if above:
            upper = axes.secondary_xaxis("top")
            upper.set_xticks(list(above), list(above.values()), rotation=90, fontsize=6.5)
            upper.tick_params(length=2)
            upper.spines["top"].set_visible(False)
    return svg(figure)


def _draw_line(axes: Axes, index: int, x: list[float], y: list[float], edge: float) -> None:
    """Draw a method's line and marks, infinite values hollow at ``edge``."""
    colour, heights = series_colour(index), np.minimum(y, edge)
    axes.plot(x, heights, "--" if index < 0 else "-", color=colour)
    axes.scatter(
        x,
        heights,
        s=6 if index < 0 else 16,
        marker="o" if index < 0 else _MARKS[index % len(_MARKS)],
        c=["white" if math.isinf(value) else colour for value in y],
        edgecolors=colour,
        linewidths=0.8,
        zorder=3,
    )


_THUMBNAIL = 160  # pixels of a scene's picture
_COLUMNS = 4
_BRIGHTEST_SHARE, _DIMMEST = 0.01, 0.05  # of the pixels beyond the colours of errors; their least end
_TELLING = ("PSNR fg", "PSNR", "tangency", "warping")  # what shows best where a method fails, in order


@dataclass(frozen=True)
class Picture:
    """One cell of a strip: a view or frame, or why it could not be scored."""

    caption: str
    image: NDArray | None  # [h, w, 3] uint8
    error: NDArray | None = None  # [h, w] uint8: mean absolute difference of the channels to the truth
    gap: str = ""


@dataclass(frozen=True)
class Strip:
    """Pictures side by side: one row per method, the true views first."""

    title: str  # what all pictures share
    rows: tuple[tuple[str, tuple[Picture, ...], str], ...]  # method, pictures, what else they show


def error_scale(strips: Sequence[Strip]) -> float:
    """Return the error, 0..1, at which the colours of the error pictures end: a multiple of 0.05."""
    errors = [p.error.ravel() for s in strips for _, row, _ in s.rows for p in row if p.error is not None]
    if not errors:
        return _DIMMEST
    bright = float(np.quantile(np.concatenate(errors), 1 - _BRIGHTEST_SHARE)) / 255
    return max(_DIMMEST, math.ceil(bright / 0.05 - 1e-9) * 0.05)


def view_label(cameras: Cameras, view: int) -> str:
    """Return number, azimuth and, where it is not 0, elevation of a view, relative to the input view."""
    azimuth, elevation = cameras.azimuths_deg[view], cameras.elevations_deg[view]
    return f"view {view} · {azimuth:.4g}°" + (f" / {elevation:+.3g}°" if elevation else "")


def scene_pictures(
    predictions: Mapping[str, ViewGrid], reference: ViewGrid | None, scores: Sequence[SceneScores]
) -> tuple[Strip, Strip]:
    """Return a few views of the middle frame, and a few frames of the view that is worst by the ``scores``.

    Without a reference every method shows the views nearest to the first method's.
    """
    grids = dict(predictions) if reference is None else {REFERENCE: reference, **predictions}
    lead = next(iter(grids.values()))
    worst, why = _worst_view([score for score in scores if score.method != REFERENCE], lead.n_views)
    few = [1 + i for i in pick_frames(lead.n_views, _COLUMNS)]
    middle, worst_label = (lead.n_frames - 1) // 2, view_label(lead.cameras, worst)
    across, along = [], []
    for name, grid in grids.items():
        cameras = grid.cameras if reference is None else lead.cameras
        *views, view = (_nearest(cameras, lead.cameras, v) for v in (*few, worst))
        centre, frames = (grid.n_frames - 1) // 2, pick_frames(grid.n_frames, _COLUMNS)
        captions, label = [view_label(cameras, v) for v in views], view_label(cameras, view)
        pictures = _pictures(name, grid, reference, [centre], views, captions)
        across.append((name, pictures, "" if centre == middle else f"frame {centre}"))
        pictures = _pictures(name, grid, reference, frames, [view], [f"frame {t}" for t in frames])
        along.append((name, pictures, "" if label == worst_label else label))
    title = f"{worst_label.capitalize()}{why}, over time"
    return Strip(f"Frame {middle}, the middle one", tuple(across)), Strip(title, tuple(along))


def _worst_view(scores: Sequence[SceneScores], n_views: int) -> tuple[int, str]:
    """Return the novel view that is worst on the methods' average, and a word on why it was chosen."""
    for name in _TELLING:
        columns = [s.per_view(name) for s in scores if name in s.values and len(s.per_view(name)) == n_views]
        if not columns:
            continue
        means = mean_along(torch.stack(columns), dim=0)
        if not means.isnan().all():
            badness = -means if METRICS[name].higher_is_better else means
            worst = badness.nan_to_num(nan=-torch.inf, neginf=-1e9).argmax()
            return 1 + int(worst), f" (worst {name})"
    return 1, ""


def _nearest(cameras: Cameras, wanted: Cameras, view: int) -> int:
    """Return which novel view looks most alike to view ``view`` of ``wanted``."""
    if cameras == wanted:
        return view
    alike = (replace(x, input_azimuth_deg=None) for x in (cameras, wanted))
    directions, direction = (F.normalize(x.eyes(), dim=-1) for x in alike)
    return 1 + int((directions[1:] @ direction[view]).argmax())


def _pictures(
    name: str,
    grid: ViewGrid,
    reference: ViewGrid | None,
    frames: list[int],
    views: list[int],
    captions: list[str],
) -> tuple[Picture, ...]:
    """Return the pictures of all pairs of the frames and views."""
    grid, missing, truth = grid.at_frames(frames), [], None
    if reference is not None and name != REFERENCE:
        truth = reference.at_frames(frames)
        grid, missing = paired_views(grid, truth, name)
    pictures = []
    places = [(t, v) for t in range(len(frames)) for v in views]
    for caption, (t, v) in zip(captions, places, strict=True):
        image = grid.images[t, v].detach().float().cpu()
        if not image.isfinite().all():
            gap = "missing" if v in missing else "holds NaN or infinite values"
            pictures.append(Picture(caption, None, gap=gap))
            continue
        error = None
        if truth is not None:
            difference = (image - truth.images[t, v].float().cpu()).abs().mean(dim=-1, keepdim=True)
            error = _small(difference)[..., 0]
        pictures.append(Picture(caption, _small(image), error))
    return tuple(pictures)


def _small(picture: Tensor) -> NDArray:
    """Return [H, W, C] as bytes [h, w, C], reduced to thumbnail size."""
    scale = min(1.0, _THUMBNAIL / max(picture.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    return to_bytes(resize_images(picture[None], height, width))[0]
