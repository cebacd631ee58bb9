"""Progress of counted work in ComfyUI's bar."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import comfy.utils


def counted_progress() -> Callable[..., None]:
    """Return a callback (done, total, ...) that moves the running node's bar and raises when cancelled."""
    bars: list[comfy.utils.ProgressBar] = []

    def step(done: int, total: int, *_: object) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not bars:
            bars.append(comfy.utils.ProgressBar(total))
        bars[0].update_absolute(done, total)

    return step
