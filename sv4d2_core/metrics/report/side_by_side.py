"""The strips of pictures on the page of the report: the views of all methods, their errors beside them."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from .colours import ramp
from .comparison import SceneComparison
from .heat_map import scale_bar
from .pictures import REFERENCE, Picture, Strip

# The colours of errors end where only this share of the pixels lies above, but at this error at least.
_BRIGHTEST_SHARE, _DIMMEST = 0.01, 0.05
_APART = '<td class="apart"></td>'


def side_by_side(scene: SceneComparison) -> str:
    """Return the HTML of a scene's strips; all errors share one scale."""
    scale = error_scale(scene.pictures)
    return "".join(_strip(strip, scale, scene) for strip in scene.pictures)


def error_scale(strips: Sequence[Strip]) -> float:
    """Return the error, 0..1, at which the colours of the error pictures end: a multiple of 0.05."""
    errors = [p.error.ravel() for s in strips for _, row, _ in s.rows for p in row if p.error is not None]
    if not errors:
        return _DIMMEST
    bright = float(np.quantile(np.concatenate(errors), 1 - _BRIGHTEST_SHARE)) / 255
    return max(_DIMMEST, math.ceil(bright / 0.05 - 1e-9) * 0.05)


def _strip(strip: Strip, scale: float, scene: SceneComparison) -> str:
    rows, above = [], ()
    for method, pictures, note in strip.rows:
        captions = tuple(picture.caption for picture in pictures)
        # One row of captions serves all rows below that show the same.
        if captions != above:
            rows.append(_captions(captions, scene.has_reference))
            above = captions
        remarks = [note, "UNTRAINED WEIGHTS" if method in scene.untrained else ""]
        name = escape(method) + "".join(f"<small>{escape(remark)}</small>" for remark in remarks if remark)
        cells = "".join(f"<td>{_image(picture, method)}</td>" for picture in pictures)
        if scene.has_reference:
            cells += _APART + _errors(method, pictures, scale)
        rows.append(f'<tr><th class="name" scope="row">{name}</th>{cells}</tr>')
    return (
        f"<figure><figcaption>{escape(strip.title)}</figcaption>"
        f'<div class="scroll"><table class="pictures">{"".join(rows)}</table></div></figure>'
    )


def _captions(captions: Sequence[str], twice: bool) -> str:
    heads = "".join(f"<th>{escape(caption)}</th>" for caption in captions)
    return f"<tr><th></th>{heads}{_APART + heads if twice else ''}</tr>"


def _image(picture: Picture, method: str) -> str:
    if picture.image is None:
        return f'<div class="none">{escape(picture.gap)}</div>'
    return _img(Image.fromarray(picture.image), f"{method}, {picture.caption}")


def _errors(method: str, pictures: Sequence[Picture], scale: float) -> str:
    """Return the cells of a method's errors; the true views have none, so the scale stands there."""
    if method == REFERENCE:
        legend = f"Absolute error, mean of the channels, 1 is full scale<br>{scale_bar((0.0, scale), 2)}"
        return f'<td colspan="{len(pictures)}">{legend}</td>'
    return "".join(f"<td>{_error(picture, method, scale)}</td>" for picture in pictures)


def _error(picture: Picture, method: str, scale: float) -> str:
    if picture.error is None:
        return f'<div class="none">{escape(picture.gap)}</div>'
    levels = np.clip(picture.error / (255 * scale), 0, 1) * 255
    coloured = Image.fromarray(levels.round().astype(np.uint8)).convert("P")
    coloured.putpalette(ramp(np.arange(256) / 255).tobytes())
    return _img(coloured, f"error of {method}, {picture.caption}")


def _img(picture: Image.Image, words: str) -> str:
    """Return an ``<img>`` that carries its picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{data}">'
