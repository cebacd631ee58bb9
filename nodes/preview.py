"""What a node shows on itself: while it runs and when it is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor


def live_preview(
    draw: Callable[[], Image.Image | None], full_size: bool = False
) -> tuple[str, Image.Image, int | None] | None:
    """Return a picture as the host's progress bar takes it; None, and nothing drawn, without previews.

    The user chooses method and size for the server, in newer hosts for each run.
    """
    if args.preview_method == LatentPreviewMethod.NoPreviews:
        return None
    picture = draw()
    return None if picture is None else ("JPEG", picture, None if full_size else args.preview_size)


def picture_preview(
    picture: Image.Image | Tensor, lines: Sequence[str] = (), cls: type[io.ComfyNode] | None = None
) -> dict[str, Any]:
    """Return the `ui` result of a node that shows a picture and, where the page knows how, lines of text.

    Args:
        picture: a PIL picture, or [H, W, 3] or [N, H, W, 3] in 0..1.
        lines: text.
        cls: the node, whose workflow the host then writes into the picture.
    """
    if isinstance(picture, Image.Image):
        picture = torch.from_numpy(np.asarray(picture.convert("RGB")).astype(np.float32) / 255)
    images = picture[None] if picture.ndim == 3 else picture
    shown = ui.PreviewImage(images, cls=cls).as_dict()
    return {**shown, "text": list(lines)} if lines else shown
