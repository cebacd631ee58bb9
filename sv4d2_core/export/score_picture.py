"""The compared views of a scene and their errors in one picture, for hosts that show pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..metrics.report.colours import ramp
from ..metrics.report.comparison import SceneComparison
from ..metrics.report.pictures import Picture
from ..metrics.report.side_by_side import error_scale
from .pictures import UNTRAINED_LABEL

_CELL, _GAP = 160, 4
# Room for the words, if there is a single view.
_FEWEST_COLUMNS = 2
_TEXT, _LINE = 14, 22
_TEXT_COLOUR, _WARNING_COLOUR, _NOTHING_COLOUR = (40, 40, 40), "red", (238, 238, 238)
# Frames are on white: without the line nobody sees where one ends.
_EDGE_COLOUR = (222, 222, 222)


def score_picture(scene: SceneComparison) -> Image.Image:
    """Return a few views of the middle frame: a row of the true ones, then of each method with its errors.

    Errors are the mean absolute difference of the channels to the truth; darker is worse, and the bar at the
    bottom says how much. Where there is no truth there are no errors.
    """
    strip = scene.pictures[0]
    scale = error_scale([strip])
    has_errors = any(p.error is not None for _, pictures, _ in strip.rows for p in pictures)
    columns = max(_FEWEST_COLUMNS, *(len(pictures) for _, pictures, _ in strip.rows))
    width = columns * (_CELL + _GAP) + _GAP
    parts = [_line([strip.title], width)]
    if scene.untrained:
        parts.append(_line([f"{', '.join(sorted(scene.untrained))}: {UNTRAINED_LABEL}"], width, True))
    above = ()
    for method, pictures, note in strip.rows:
        captions = tuple(picture.caption for picture in pictures)
        # One row of captions serves all rows below that show the same.
        if captions != above:
            parts.append(_line(captions, width))
            above = captions
        parts += _method_rows(f"{method}, {note}" if note else method, pictures, scale, width)
    if has_errors:
        parts.append(_legend(scale, width))
    page = Image.new("RGB", (width, sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    return page


def _method_rows(name: str, pictures: Sequence[Picture], scale: float, width: int) -> Iterator[Image.Image]:
    yield _line([name], width)
    yield _cells([picture.image for picture in pictures], pictures, width)
    if any(picture.error is not None for picture in pictures):
        yield _line([f"error of {name}"], width)
        errors = [None if p.error is None else ramp(p.error / (255 * scale)) for p in pictures]
        yield _cells(errors, pictures, width)


def _cells(images: Sequence[NDArray | None], pictures: Sequence[Picture], width: int) -> Image.Image:
    """Return pictures side by side, where there is none the word why."""
    row = Image.new("RGB", (width, _CELL + _GAP), "white")
    draw = ImageDraw.Draw(row)
    for column, (image, picture) in enumerate(zip(images, pictures, strict=True)):
        left = _GAP + column * (_CELL + _GAP)
        box = (left - 1, 0, left + _CELL, _CELL + 1)
        if image is None:
            draw.rectangle(box, _NOTHING_COLOUR, _EDGE_COLOUR)
            _write(draw, picture.gap, (left + _CELL / 2, _CELL / 2), _CELL, "mm")
            continue
        draw.rectangle(box, outline=_EDGE_COLOUR)
        cell = Image.fromarray(image)
        scale = _CELL / max(cell.size)
        size = max(1, round(cell.width * scale)), max(1, round(cell.height * scale))
        row.paste(cell.resize(size, Image.Resampling.BICUBIC), (left, 1))
    return row


def _line(texts: Sequence[str], width: int, warning: bool = False) -> Image.Image:
    """Return one text at the left, or several above the middle of their columns."""
    line = Image.new("RGB", (width, _LINE), "white")
    draw = ImageDraw.Draw(line)
    colour = _WARNING_COLOUR if warning else _TEXT_COLOUR
    if len(texts) == 1:
        _write(draw, texts[0], (_GAP, _LINE / 2), width - 2 * _GAP, "lm", colour)
        return line
    for column, text in enumerate(texts):
        middle = _GAP + column * (_CELL + _GAP) + _CELL / 2
        _write(draw, text, (middle, _LINE / 2), _CELL, "mm", colour)
    return line


def _legend(scale: float, width: int) -> Image.Image:
    """Return the colours of the errors from 0 to ``scale``."""
    legend = Image.new("RGB", (width, 2 * _LINE + _GAP), "white")
    draw = ImageDraw.Draw(legend)
    words = "absolute error, mean of the channels (1 is full scale)"
    _write(draw, words, (_GAP, _LINE / 2), width - 2 * _GAP, "lm")
    left, right = 5 * _GAP, min(width, 2 * _CELL) - 10 * _GAP
    colours = ramp(np.tile(np.linspace(0, 1, right - left), (_LINE - 6, 1)))
    legend.paste(Image.fromarray(colours), (left, _LINE + 3))
    draw.rectangle((left - 1, _LINE + 2, right, 2 * _LINE - 3), outline=_EDGE_COLOUR)
    _write(draw, "0", (_GAP, 1.5 * _LINE), 3 * _GAP, "lm")
    _write(draw, f"{scale:.2f}", (right + _GAP, 1.5 * _LINE), 9 * _GAP, "lm")
    return legend


def _write(
    draw: ImageDraw.ImageDraw,
    text: str,
    place: tuple[float, float],
    width: float,
    anchor: str,
    colour: str | tuple[int, int, int] = _TEXT_COLOUR,
) -> None:
    """Write a text, smaller where it would not fit."""
    length = ImageFont.load_default(_TEXT).getlength(text)
    size = _TEXT * min(1.0, 0.96 * width / length) if length else _TEXT
    draw.text(place, text, colour, ImageFont.load_default(max(size, 1)), anchor=anchor)
