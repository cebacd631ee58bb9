"""Pictures of linear light in floats, as compositing programs write them, which Pillow does not read."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from .places import file_url


def linear_picture(file: Path) -> np.ndarray:
    """Return a picture as sRGB, float32 [H, W, 3 or 4], with straight alpha; what is beyond white is cut.

    In the file colours are multiplied by the alpha, as EXR is defined. ValueError: it cannot be read.
    """
    try:
        with av.open(file_url(file)) as container:
            frame = next(container.decode(video=0))
    except (FFmpegError, StopIteration, IndexError) as error:
        raise ValueError(
            f"Expected a readable image; {file} is not: {error}. Save it again as PNG."
        ) from error
    has_alpha = any(component.is_alpha for component in frame.format.components)
    values = frame.to_ndarray(format="gbrapf32le" if has_alpha else "gbrpf32le")
    if has_alpha:
        values[..., :3] /= np.where(values[..., 3:] > 0, values[..., 3:], 1)
    light = values[..., :3].clip(0, 1)
    values[..., :3] = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return values
