"""The drawings of the report: heat maps, line plots, colours."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.metrics.evaluate import NO_VALUE, REFERENCE, SceneScores, written
from sv4d2_core.metrics.report.plots import (
    heat_maps,
    limits_of,
    plots_over_angle,
    plots_over_time,
    ramp,
    series_colour,
    series_mark,
)

torch.set_num_threads(1)

NAN, INF = math.nan, math.inf


def scores(values: list[list[float]], method: str = "a", name: str = "PSNR", **cameras) -> SceneScores:
    """Return scores that hold one metric, [T][V]."""
    n = len(values[0]) + 1
    rig = Cameras(cameras.get("elevations", (0,) * n), cameras.get("azimuths", tuple(range(n))))
    table = torch.tensor(values, dtype=torch.float64)
    return SceneScores(method, "s", rig, len(values), {name: table}, {}, {})


def titles(drawn: str) -> list[str]:
    return re.findall(r"<title>([^<]*)</title>", drawn)


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
    assert metric.name == name and titles(drawn)[0].startswith("view 1 · 1°, frame 0: 30.0")
    fills = re.findall(r"fill: (#\w+)", drawn[drawn.index('id="cells0"') :])[:3]
    for fill, amount in zip(fills, order, strict=True):
        colour = np.frombuffer(bytes.fromhex(fill[1:]), np.uint8).astype(int)
        assert np.abs(colour - ramp(amount)).max() <= 3


def test_cells_tell_their_value_and_missing_ones_are_crossed_out():
    ((_, drawn),) = heat_maps([scores([[1.0, NAN], [3.0, NAN], [INF, 2.0]], "<b>&")])
    view_1 = [f"view 1 · 1°, frame {t}: {text}" for t, text in enumerate(("1.00", "3.00", "∞"))]
    view_2 = [f"view 2 · 2°, frame {t}: {text}" for t, text in enumerate(("no value", "no value", "2.00"))]
    assert titles(drawn) == view_1 + view_2
    assert drawn == heat_maps([scores([[1.0, NAN], [3.0, NAN], [INF, 2.0]], "<b>&")])[0][1], "the same text"
    assert "&lt;b&gt;&amp;" in drawn and "<b>" not in drawn
    assert drawn.count("fill: #dddddd") == 2
    # The means over time at the right: an infinite value counts as 100.
    assert ">34.67</text>" in drawn and ">2.00</text>" in drawn


def test_scales_are_shared_and_survive_having_nothing_to_show():
    both = [torch.tensor([[1.0, NAN]]), torch.tensor([[INF, -4.0]])]
    assert limits_of(both, higher_is_better=True) == (1.0, -4.0)
    assert limits_of(both, higher_is_better=False) == (-4.0, 1.0)
    ((_, drawn),) = heat_maps([scores([[1.0], [2.0]]), scores([[2.0], [3.0]], "b")])
    fills = {title: fill for fill, title in re.findall(r"fill: (#\w+)[^>]*><title>([^<]*)<", drawn)}
    assert fills["view 1 · 1°, frame 1: 2.00"] == fills["view 1 · 1°, frame 0: 2.00"], "one scale for both"
    assert len(set(fills.values())) == 3
    assert all(map(math.isnan, limits_of([torch.tensor([[NAN, INF]])], True)))
    for values in ([[INF]], [[2.0]]):
        ((_, drawn),) = heat_maps([scores(values)])
        assert ("no finite value" in drawn) == (values == [[INF]])
        assert f"fill: #{ramp(0.0).tobytes().hex()}" in drawn


def points(drawn: str) -> list[tuple[float, float]]:
    places = re.findall(r'<use[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*><title>', drawn)
    return [(float(x), float(y)) for x, y in places]


def test_lines_go_up_with_the_value_and_break_where_there_is_none():
    drawn = plots_over_time([scores([[1.0], [2.0], [NAN], [1.0], [2.0]])], {"a": 0})
    (x0, y0), (x1, y1), (x3, y3), _ = points(drawn)
    assert x0 < x1 and y1 < y0 == y3 and x3 - x0 == pytest.approx(3 * (x1 - x0), abs=0.3)
    (line,) = re.findall(r'<path d="([^"]+)"[^>]*stroke: #0072b2; stroke-width: 1', drawn)
    assert line.count("M") == 2 and line.count("L") == 2
    assert titles(drawn) == ["a, 0: 1.00", "a, 1: 2.00", "a, 3: 1.00", "a, 4: 2.00"]


def test_infinite_values_lie_hollow_at_the_edge():
    drawn = plots_over_time([scores([[1.0], [2.0], [INF]])], {"a": 0})
    assert points(drawn)[2][1] < points(drawn)[1][1]
    hollow = re.findall(r"fill: #ffffff; stroke: #0072b2[^>]*><title>([^<]*)<", drawn)
    assert hollow == ["a, 2: ∞"]
    assert len(points(plots_over_time([scores([[INF]])], {"a": 0}))) == 1


def test_true_views_are_dashed_and_pairs_of_frames_stand_between_them():
    methods = [scores([[1.0], [2.0]], name, "warping") for name in (REFERENCE, "a", "b")]
    longer = [SceneScores(s.method, "s", s.cameras, 3, s.values, {}, {}) for s in methods]
    drawn = plots_over_time(longer, {REFERENCE: -1, "a": 0, "b": 1})
    assert drawn.count("stroke-dasharray") == 1
    assert [title.split(": ")[0] for title in titles(drawn)[2:4]] == ["a, 0.5", "a, 1.5"]


def test_elevations_stand_over_the_azimuths_and_not_on_each_other():
    rig = {"azimuths": (0, 20, 25, 200), "elevations": (0, 20, -10, 5)}
    drawn = plots_over_angle([scores([[1.0, 2.0, 3.0]], **rig)], {"a": 0})
    assert re.findall(r">(el [^<]+)<", drawn) == ["el +5°", "el +20°"]
    # In the order of the azimuths in -180..180.
    assert titles(drawn) == ["a, -160: 3.00", "a, 20: 1.00", "a, 25: 2.00"]


def test_numbers_are_written_for_people():
    texts = [NO_VALUE, "∞", "-∞", "1.00", "0.00", "3.00"]
    assert [written(x, 2) for x in (NAN, INF, -INF, 1.005, -0.001, 3)] == texts
