"""Makes the views of one clip after the other with one model; a clip that fails stops no other."""

from __future__ import annotations

import logging
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..diffusion.model import Model
from . import views

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of a clip.

    Args:
        seconds: that it took.
        error: the message of a clip that failed, else None.
        errno: the system's number of that error where it has one.
    """

    seconds: float
    error: str | None = None
    errno: int | None = None


# Makes clips, given the options of `sv4d2 views` for each, and yields them with what became of them.
Make = Callable[[list[Namespace]], Iterator[tuple[Namespace, Outcome]]]


class Worker:
    """Runs `sv4d2 views` for one clip after the other; the model is loaded for the first that needs it."""

    def __init__(self) -> None:
        self._model: Model | None = None
        self._size = 0

    def make(self, args: Namespace) -> Outcome:
        """Make the views of a clip, or find them complete; return how it went.

        Args:
            args: the options of `sv4d2 views`; those that decide about the model are the same in all calls.
        """
        began = time.perf_counter()
        try:
            views.run(args, self._load)
        except Exception as error:
            text = str(error)
            if not isinstance(error, (ValueError, OSError)):
                # What is left of the model after memory ran out, or a fault, is not known.
                log.exception("%s failed:", args.input)
                self._model = None
                text = f"{type(error).__name__}: {error}"
            return Outcome(_seconds_since(began), text, getattr(error, "errno", None))
        return Outcome(_seconds_since(began))

    def _load(self, job: views.Job) -> Model:
        """Return the model; another image size, which may need another memory plan, has it loaded anew."""
        if self._model is None or job.settings["size"] != self._size:
            # Two at once could be too many for the memory.
            self._model = None
            self._model, self._size = views.load_model(job), job.settings["size"]
        return self._model


def _seconds_since(began: float) -> float:
    return round(time.perf_counter() - began, 2)
