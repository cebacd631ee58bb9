"""Orbits by name: what text gives which cameras, and what is refused."""

from dataclasses import replace

import pytest

from sv4d2_core.cameras import Cameras
from sv4d2_core.orbits import PRESETS, orbit, parse_angles


@pytest.mark.parametrize(
    ("preset", "options", "expected"),
    [
        ("4 views (sv4d2)", {}, Cameras.official("sv4d2")),
        ("8 views (sv4d2_8views)", {}, Cameras.official("sv4d2_8views")),
        (
            "4D scene (8 views)",
            {"input_elevation_deg": 5},
            replace(Cameras.for_scenes(), input_elevation_deg=5),
        ),
        ("4 views (sv4d2)", {"elevations": "0, 1, 2, 3, 4"}, Cameras.from_lists(4, None, range(5))),
        ("ring", {"n_views": 3, "elevations": "-7.5"}, Cameras.ring(3, -7.5)),
        ("rings", {"n_views": 4, "elevations": "-15 0 20"}, Cameras.rings(4, (-15, 0, 20))),
        ("sweep", {"n_views": 5, "sweep_azimuth_deg": 90, "sweep_elevation_deg": 8}, Cameras.sweep(5, 90, 8)),
        ("custom", {"azimuths": "60, 120"}, Cameras((0, 0, 0), (0, 60, 120))),
        ("custom", {"azimuths": "0, 60, 120"}, Cameras((0, 0, 0), (0, 60, 120))),
        ("custom", {"azimuths": "60 120", "elevations": "5 -5"}, Cameras((0, 5, -5), (0, 60, 120))),
        ("custom", {"azimuths": "60 120", "elevations": "0 5 -5"}, Cameras((0, 5, -5), (0, 60, 120))),
        ("custom", {"azimuths": "90", "elevations": "10"}, Cameras((0, 10), (0, 90))),
        ("custom", {"azimuths": "90", "elevations": "0 10"}, Cameras((0, 10), (0, 90))),
        ("custom", {"azimuths": "0 90", "elevations": "30 30"}, Cameras((0, 30, 30), (0, 0, 90))),
        ("custom", {"azimuths": "0 0", "elevations": "10"}, Cameras((0, 10), (0, 0))),
        (
            "ring",
            {"n_views": 8, "input_elevation_deg": 10, "radius": 3, "fov_deg": 40},
            replace(Cameras.ring(8), input_elevation_deg=10, radius=3, fov_deg=40),
        ),
    ],
)
def test_presets(preset, options, expected):
    assert preset in PRESETS
    assert orbit(preset, **options) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  ", []),
        ("1,2 3;4\n5", [1, 2, 3, 4, 5]),
        (" -1.5 , +2e1,", [-1.5, 20]),
        ("[10°, 20°]", [10, 20]),
    ],
)
def test_text_to_numbers(text, expected):
    assert parse_angles(text, "azimuths") == expected


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        ("circle", {}, "'ring', 'rings'.*got 'circle'"),
        ("ring", {"elevations": "a"}, "elevations as numbers.*got 'a'"),
        ("custom", {"azimuths": "1 inf"}, "azimuths as numbers.*got 'inf'"),
        ("4 views (sv4d2)", {"azimuths": "60"}, "no azimuths.*got '60'.*'custom'"),
        ("4D scene (8 views)", {"elevations": "20"}, "no elevations.*got '20'.*'custom'"),
        ("4 views (sv4d2)", {"elevations": "20"}, "one value for all views.*preset ring"),
        ("4 views (sv4d2)", {"elevations": "1 2 3"}, "Expected 4 elevations"),
        ("ring", {"elevations": "1 2"}, "one elevation for the ring, or none; got 2.*'rings'"),
        ("rings", {}, "for each ring; got none"),
        ("sweep", {"elevations": "2"}, "sweep_elevation_deg; got '2'"),
        ("custom", {}, "for each novel view.*got none"),
        ("custom", {"azimuths": "0"}, "only that of the input view"),
        ("custom", {"azimuths": "1 2 3", "elevations": "1 2"}, "3 elevations.*4 with.*got 2"),
        ("custom", {"azimuths": "1 2 3", "elevations": "9"}, "one value for all views"),
        ("custom", {"azimuths": "1 2", "elevations": "5 6 7"}, "first view is the input view"),
    ],
)
def test_errors(preset, options, message):
    with pytest.raises(ValueError, match=message):
        orbit(preset, **options)
