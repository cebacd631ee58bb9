"""What goes into messages: short texts, short lists, and errors of the system without their numbers."""

from __future__ import annotations

from collections.abc import Collection
from itertools import accumulate, islice

LONGEST = 80
_LIST = 150  # characters of a list in a message


def cut(value: object, longest: int = LONGEST) -> str:
    """Return what a file or a user gave as text for a message, at most ``longest`` characters."""
    text = str(value)
    return text if len(text) <= longest else text[: longest - 3] + "..."


def listed(items: Collection[object]) -> str:
    """Return for a message as many of some things as fit in it, at least one, and how many more there are."""
    names = [*map(cut, islice(items, _LIST))]
    ends = accumulate(len(name) + 2 for name in names)
    shown = names[: max(sum(end <= _LIST + 2 for end in ends), 1)]
    more = f" and {len(items) - len(shown)} more" if len(items) > len(shown) else ""
    return (", ".join(shown) or "none") + more


class ExplainedError(OSError):
    """An error of the system whose text says what to do; its number is not shown."""

    def __str__(self) -> str:
        return str(self.strerror)


def without_number(error: OSError) -> str:
    """Return what an error of the system says to people."""
    if error.strerror is None:
        return str(error)
    return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
