"""The drawings of the report: heat maps, line plots, colours."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.metrics.evaluate import NO_VALUE, REFERENCE, SceneScores, written
from sv4d2_core.metrics.report.plots import (
    heat_maps,
    plots_over_angle,
    plots_over_time,
    ramp,
    series_colour,
    series_mark,
)

NAN, INF = math.nan, math.inf


def scores(values: list[list[float]], method: str = "a", name: str = "PSNR", **cameras) -> SceneScores:
    """Return scores that hold one metric, [T][V]."""
    n = len(values[0]) + 1
    rig = Cameras(cameras.get("elevations", (0,) * n), cameras.get("azimuths", tuple(range(n))))
    table = torch.tensor(values, dtype=torch.float64)
    return SceneScores(method, "s", rig, len(values), {name: table}, {}, {})


def cells(drawn: str) -> list[str]:
    """Return the colours of the cells of all heat maps, view by view."""
    return re.findall(r'style="fill: (#\w+); stroke: #ffffff', drawn)


def points(drawn: str, colour: str = "#0072b2") -> list[tuple[float, float, str]]:
    """Return places and fillings of a line's marks."""
    marks = re.findall(rf'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: (#\w+); stroke: {colour}', drawn)
    return [(float(x), float(y), fill) for x, y, fill in marks]


def test_equal_steps_of_the_ramp_look_equally_far_apart():
    share = ramp(np.linspace(0, 1, 13)) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)
    steps = np.diff(lightness)
    assert (steps < -5).all() and (steps > -8.5).all()
    assert (ramp(-1) == ramp(0)).all() and (ramp(2) == ramp(1)).all()


def test_methods_differ_in_colour_and_mark():
    assert len({series_colour(i) for i in range(-1, 6)}) == 7 and series_colour(6) == series_colour(0)
    assert len({series_mark(i) for i in range(-1, 5)}) == 6


@pytest.mark.parametrize(("name", "order"), [("PSNR", [0.0, 0.5, 1.0]), ("tangency", [1.0, 0.5, 0.0])])
def test_worse_is_darker_whichever_way_is_better(name, order):
    ((metric, drawn),) = heat_maps([scores([[30.0], [20.0], [10.0]], name=name)])
    assert metric.name == name
    for fill, amount in zip(cells(drawn), order, strict=True):
        colour = np.frombuffer(bytes.fromhex(fill[1:]), np.uint8).astype(int)
        assert np.abs(colour - ramp(amount)).max() <= 3


def test_missing_values_are_crossed_out_and_infinite_ones_look_like_the_best():
    ((_, drawn),) = heat_maps([scores([[1.0, NAN], [3.0, NAN], [INF, 2.0]], "<b>&")])
    best = f"#{ramp(0.0).tobytes().hex()}"
    assert cells(drawn)[1:5] == [best, best, "#dddddd", "#dddddd"] and drawn.count("stroke: #888888") == 3
    assert drawn == heat_maps([scores([[1.0, NAN], [3.0, NAN], [INF, 2.0]], "<b>&")])[0][1], "the same text"
    assert "&lt;b&gt;&amp;" in drawn and "<b>" not in drawn
    # The means over time at the right: an infinite value counts as 100.
    assert ">34.67</text>" in drawn and ">2.00</text>" in drawn


def test_scales_are_shared_and_survive_having_nothing_to_show():
    ((_, drawn),) = heat_maps([scores([[1.0], [2.0]]), scores([[2.0], [3.0]], "b")])
    worst, middle, same, best = cells(drawn)
    assert middle == same and len({worst, middle, best}) == 3
    for values in ([[INF]], [[2.0]]):
        ((_, drawn),) = heat_maps([scores(values)])
        assert ("no finite value" in drawn) == (values == [[INF]])
        assert cells(drawn) == [f"#{ramp(0.0).tobytes().hex()}"]


def test_lines_go_up_with_the_value_and_break_where_there_is_none():
    drawn = plots_over_time([scores([[1.0], [2.0], [NAN], [1.0], [2.0]])], {"a": 0})
    (x0, y0, fill), (x1, y1, _), (x3, y3, _), _ = points(drawn)
    assert x0 < x1 and y1 < y0 == y3 and x3 - x0 == pytest.approx(3 * (x1 - x0), abs=0.3)
    (line,) = re.findall(r'<path d="([^"]+)"[^>]*stroke: #0072b2; stroke-width: 1', drawn)
    assert line.count("M") == 2 and line.count("L") == 2 and fill == "#0072b2"


def test_infinite_values_lie_hollow_at_the_edge():
    _, second, third = points(plots_over_time([scores([[1.0], [2.0], [INF]])], {"a": 0}))
    assert third[1] < second[1] and third[2] == "#ffffff"
    assert len(points(plots_over_time([scores([[INF]])], {"a": 0}))) == 1


def test_true_views_are_dashed_and_pairs_of_frames_stand_between_them():
    methods = [scores([[1.0], [2.0]], name, "warping") for name in (REFERENCE, "a")]
    methods = [replace(score, n_frames=3) for score in methods]
    methods.append(scores([[1.0], [2.0], [3.0]], "b", "warping"))
    drawn = plots_over_time(methods, {REFERENCE: -1, "a": 0, "b": 5})
    assert drawn.count("stroke-dasharray") == 1
    between, frames = ([x for x, _, _ in points(drawn, colour)] for colour in ("#0072b2", "#56b4e9"))
    assert between == pytest.approx([(frames[0] + frames[1]) / 2, (frames[1] + frames[2]) / 2], abs=0.01)


def test_elevations_stand_over_the_azimuths_and_not_on_each_other():
    rig = {"azimuths": (0, 20, 25, 200), "elevations": (0, 20, -10, 5)}
    drawn = plots_over_angle([scores([[1.0, 2.0, 3.0]], **rig)], {"a": 0})
    assert re.findall(r">(el [^<]+)<", drawn) == ["el +5°", "el +20°"]
    # In the order of the azimuths in -180..180: views 3, 1 and 2, whose values are 3, 1 and 2.
    (x3, y3, _), (x1, y1, _), (x2, y2, _) = points(drawn)
    assert x3 < x1 < x2 and y3 < y2 < y1


def test_numbers_are_written_for_people():
    texts = [NO_VALUE, "∞", "-∞", "1.00", "0.00", "3.00"]
    assert [written(x, 2) for x in (NAN, INF, -INF, 1.005, -0.001, 3)] == texts
