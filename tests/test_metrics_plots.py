"""The drawings of the report: heat maps, line plots, colours, ticks."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from sv4d2_core.metrics.report.plots import Series, heat_map, limits_of, line_plot, scale_bar
from sv4d2_core.metrics.report.svg import nice_ticks, ramp, ramp_hex, series_colour, tick_labels, written

torch.set_num_threads(1)

NAN, INF = math.nan, math.inf


def lightness(colours: np.ndarray) -> np.ndarray:
    """Return CIELAB's L* of sRGB bytes [..., 3]."""
    share = colours / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    return np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)


def test_equal_steps_of_the_ramp_look_equally_far_apart():
    steps = np.diff(lightness(ramp(np.linspace(0, 1, 13))))
    assert (steps < -5).all() and (steps > -8.5).all()
    assert ramp_hex(-1) == ramp_hex(0) and ramp_hex(2) == ramp_hex(1)


def test_methods_differ_in_colour():
    assert len({series_colour(i) for i in range(6)}) == 6 and series_colour(6) == series_colour(0)


def test_worse_is_darker_whichever_way_is_better():
    values = torch.tensor([[30.0], [20.0], [10.0]])
    for higher, order in ((True, [0, 0.5, 1]), (False, [1, 0.5, 0])):
        drawn = heat_map(values, ["view 1"], limits_of([values], higher), "PSNR", 1)
        fills = re.findall(r'fill="(#\w+)"><title>', drawn)
        assert fills == [ramp_hex(amount) for amount in order]


def test_cells_tell_their_value_and_missing_ones_are_crossed_out():
    values = torch.tensor([[1.0, NAN], [3.0, NAN], [INF, 2.0]])
    drawn = heat_map(values, ["view 1", "view <2>"], (3.0, 1.0), "PSNR", 1)
    titles = re.findall(r"<title>([^<]*)</title>", drawn)
    assert titles == [
        *("view 1, frame 0: 1.0", "view 1, frame 1: 3.0", "view 1, frame 2: ∞"),
        *("view &lt;2&gt;, frame 0: no value", "view &lt;2&gt;, frame 1: no value"),
        "view &lt;2&gt;, frame 2: 2.0",
    ]
    assert drawn.count("<path") == 2 and 'fill="#dddddd"' in drawn
    # The means over time at the right: an infinite value counts as 100.
    assert ">34.7</text>" in drawn and ">2.0</text>" in drawn


def test_scales_are_shared_and_survive_having_nothing_to_show():
    both = [torch.tensor([[1.0, NAN]]), torch.tensor([[INF, -4.0]])]
    assert limits_of(both, higher_is_better=True) == (1.0, -4.0)
    assert limits_of(both, higher_is_better=False) == (-4.0, 1.0)
    assert re.findall(r">(-?[\d.]+)</text>", scale_bar((1.0, -4.0), 0)) == ["1", "0", "-1", "-2", "-3", "-4"]
    nothing = limits_of([torch.tensor([[NAN, INF]])], True)
    assert all(map(math.isnan, nothing)) and "no finite value" in scale_bar(nothing, 1)
    assert ramp_hex(0) in heat_map(torch.tensor([[INF]]), ["view 1"], nothing, "PSNR", 1)
    assert scale_bar((2.0, 2.0), 1).count(">2.0<") == 1


def points(drawn: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)]


def test_lines_go_up_with_the_value_and_break_where_there_is_none():
    series = Series("a", 0, ((0, 1.0), (1, 2.0), (2, NAN), (3, 1.0), (4, 2.0)))
    drawn = line_plot([series], "PSNR ↑", "frame", [0, 2, 4], 1)
    places = points(drawn)
    assert len(places) == 4
    (x0, y0), (x1, y1), (x3, y3), _ = places
    assert x0 < x1 and y1 < y0 == y3 and x3 - x0 == pytest.approx(3 * (x1 - x0), abs=0.3)
    (line,) = re.findall(r'<path d="([^"]+)" fill="none"', drawn)
    assert line.count("M") == 2 and line.count("L") == 2
    assert "<title>a, 1: 2.0</title>" in drawn


def test_infinite_values_lie_hollow_at_the_edge():
    drawn = line_plot([Series("a", 0, ((0, 1.0), (1, 2.0), (2, INF)))], "PSNR", "frame", [0, 2], 1)
    assert points(drawn)[2][1] < points(drawn)[1][1]
    assert "<title>a, 2: ∞</title>" in drawn and 'fill="#ffffff" stroke="#0072b2"' in drawn
    only = line_plot([Series("a", 0, ((0, INF),))], "PSNR", "frame", [0], 1)
    assert len(points(only)) == 1


def test_true_views_are_dashed_and_other_methods_have_other_marks():
    series = [Series(str(i), i, ((0, 1.0),)) for i in range(-1, 3)]
    drawn = line_plot(series, "warping", "frame", [0], 1)
    assert drawn.count("stroke-dasharray") == 1
    assert len(set(re.findall(r'<path d="(M-?[\d.]+-?[\d.]+[^"]*z)"', drawn))) == 2


def test_remarks_do_not_run_into_each_other():
    remarks = [(0.0, "el +20°"), (5.0, "el -10°"), (150.0, "el +5°")]
    drawn = line_plot([Series("a", 0, ((0, 1.0),))], "PSNR", "azimuth", [-180, 180], 1, remarks)
    heights = {words: float(y) for y, words in re.findall(r'y="([\d.]+)"[^>]*>(el [^<]+)<', drawn)}
    assert heights["el +20°"] == heights["el +5°"] != heights["el -10°"]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 20, ["0", "5", "10", "15", "20"]),
        (0.0121, 0.0149, ["0.0125", "0.0130", "0.0135", "0.0140", "0.0145"]),
        (-180, 180, ["-100", "0", "100"]),
        (3, 3, ["3"]),
    ],
)
def test_ticks_are_round_numbers(low, high, labels):
    assert tick_labels(nice_ticks(low, high, 5)) == labels


def test_numbers_are_written_for_people():
    assert [written(x, 2) for x in (NAN, INF, -INF, 1.005, -0.001, 3)] == [
        "–",
        "∞",
        "-∞",
        "1.00",
        "0.00",
        "3.00",
    ]
