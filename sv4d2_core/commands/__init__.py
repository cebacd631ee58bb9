"""The commands: ``add_arguments`` declares the options of each, ``run`` returns its exit code."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from ..messages import cut

_NEGATIVE_LIST = re.compile(r"-[\d.]+\s*[,;]")


class Parser(argparse.ArgumentParser):
    """A parser that does not take ``-30,60`` for an option, and raises ValueError for what it cannot take."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        for word in args or ():
            if re.fullmatch("--[a-z-]+=--", word):  # argparse would drop the value, and hand on none
                self.error(f"argument {word[:-3]}: expected a value, got '--'")
        # What holds a blank is no option to argparse.
        words = None if args is None else [f" {w}" if _NEGATIVE_LIST.match(w) else w for w in args]
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{cut(message, 300)}. See {self.prog} --help.")
