"""Running out of memory, as the host recognises it and reports it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management

from ..sv4d2_core.files import is_out_of_memory


def is_oom(error: BaseException) -> bool:
    """Return whether an error says that memory ran out; newer hosts know more kinds than one class."""
    known = getattr(comfy.model_management, "is_oom", None)
    return is_out_of_memory(error) or (known is not None and known(error))


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Put ``advice`` in front of an error that says that memory ran out.

    Raises:
        OOM_EXCEPTION: memory ran out inside; the host unloads its models then.
    """
    try:
        yield
    except Exception as error:
        if not is_oom(error):
            raise
        raise comfy.model_management.OOM_EXCEPTION(f"{advice} ({error})") from error
