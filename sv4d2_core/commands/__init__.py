"""The commands: ``add_arguments`` declares the options of each, ``run`` returns its exit code."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

_NEGATIVE_LIST = re.compile(r"-[\d.]+\s*[,;]")


class Parser(argparse.ArgumentParser):
    """A parser that does not take ``-30,60`` for an option."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        # What holds a blank is no option to argparse.
        words = None if args is None else [f" {w}" if _NEGATIVE_LIST.match(w) else w for w in args]
        return super().parse_known_args(words, namespace)
