"""Animated GLB files as others see them: three.js in a headless browser, and the Khronos validator."""

import dataclasses
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.export.glb import ANIMATION_NAME, write_animated_glb
from sv4d2_core.export.mesh import bake_texture

sys.path.insert(0, str(Path(__file__).parent / "three"))
bending, silhouettes, viewer = (
    importlib.import_module(name) for name in ("bending", "silhouettes", "viewer")
)
overlap = silhouettes.overlap

SIZE = 192
CAMERAS = Cameras((0.0, 20.0), (0.0, 50.0), input_elevation_deg=10.0)
needs_browser = pytest.mark.skipif(
    bool(viewer.missing("chromium", "playwright-core", "three")),
    reason=viewer.missing("chromium", "playwright-core", "three"),
)
needs_validator = pytest.mark.skipif(
    bool(viewer.missing("gltf-validator")), reason=viewer.missing("gltf-validator")
)


def shot(file: Path, seconds: float, view: int = 0):
    return viewer.Shot(file, seconds, CAMERAS.intrinsics(SIZE), CAMERAS.c2w_opengl()[view], SIZE)


@needs_browser
def test_three_shows_each_frame_at_its_time_and_the_way_between_two(tmp_path):
    animation = bending.bending_ball(n_frames=4, subdivisions=3, duration=1.5)
    write_animated_glb(tmp_path / "a.glb", animation)
    # Frame numbers; the halves are between two frames.
    moments = (0.0, 1.0, 1.5, 2.0, 2.5, 3.0)
    asked = [(moment, view) for moment in moments for view in (0, 1)]
    pictures, read = viewer.render([shot(tmp_path / "a.glb", moment * 0.5, view) for moment, view in asked])
    assert read[0] == [{"name": ANIMATION_NAME, "duration": 1.5, "tracks": 1}]
    for picture, (moment, view) in zip(pictures, asked, strict=True):
        low, part = int(moment), moment % 1
        expected = animation.positions[low]
        if part:
            expected = torch.lerp(expected, animation.positions[low + 1], part)
        own = silhouettes.silhouette(expected, animation.faces, CAMERAS, view, SIZE)
        score = overlap(picture[..., 3] > 127, own)
        assert score >= 0.95, f"frame {moment}, view {view}: IoU {score:.3f}"
    first, last = pictures[0][..., 3] > 127, pictures[-2][..., 3] > 127
    # Otherwise the comparison above could not tell one frame from another.
    assert overlap(first, last) < 0.8
    assert overlap(pictures[2][..., 3] > 127, pictures[4][..., 3] > 127) < 0.95


@needs_browser
def test_three_shows_the_colours_of_the_pictures(tmp_path):
    one = bending.bending_ball(n_frames=1)
    files = []
    for i, grey_levels in enumerate(((3, 40, 250), (128, 10, 90))):
        colour = torch.tensor(grey_levels) / 255
        plain = dataclasses.replace(one, colours=colour.expand(len(one.colours), 3))
        files.append((tmp_path / f"{i}.glb", grey_levels))
        write_animated_glb(files[-1][0], plain)
    pictures, read = viewer.render([shot(file, 0.0) for file, _ in files])
    assert read == [[], []]
    for picture, (_, grey_levels) in zip(pictures, files, strict=True):
        shown = picture[picture[..., 3] > 127][:, :3].astype(int)
        assert len(shown) > 500
        assert np.abs(shown - grey_levels).max() <= 1


@needs_browser
def test_three_shows_a_baked_texture_like_the_vertex_colours_it_was_made_of(tmp_path):
    pytest.importorskip("xatlas", reason="the optional extra texture is not installed")
    animation = bending.bending_ball(n_frames=3)
    opened, texture = bake_texture(animation, 256)
    write_animated_glb(tmp_path / "textured.glb", opened, texture=texture)
    write_animated_glb(tmp_path / "coloured.glb", animation)
    asked = [shot(tmp_path / name, 1.3, 1) for name in ("textured.glb", "coloured.glb")]
    (textured, coloured), _ = viewer.render(asked)
    both = (textured[..., 3] > 127) & (coloured[..., 3] > 127)
    assert overlap(textured[..., 3] > 127, coloured[..., 3] > 127) > 0.99
    difference = np.abs(textured[both].astype(int) - coloured[both])[:, :3]
    # Vertex colours are blended in linear light, texels between display values.
    assert difference.mean() < 3 and np.percentile(difference, 99) < 12


@needs_validator
@pytest.mark.parametrize("kind", ["static", "moving", "textured"])
def test_the_validator_finds_nothing_wrong(tmp_path, kind):
    animation, texture = bending.bending_ball(n_frames=1 if kind == "static" else 5), None
    if kind == "textured":
        pytest.importorskip("xatlas", reason="the optional extra texture is not installed")
        animation, texture = bake_texture(animation, 128)
    write_animated_glb(tmp_path / "a.glb", animation, texture=texture)
    issues = viewer.validate(tmp_path / "a.glb")
    assert issues["numErrors"] == 0 and issues["numWarnings"] == 0, issues["messages"]


@needs_validator
def test_the_validator_would_find_something_wrong(tmp_path):
    write_animated_glb(tmp_path / "a.glb", bending.bending_ball())
    content = (tmp_path / "a.glb").read_bytes()
    (tmp_path / "b.glb").write_bytes(content.replace(b'"max"', b'"mux"'))
    assert viewer.validate(tmp_path / "b.glb")["numErrors"] > 0
