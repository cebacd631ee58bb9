"""The command line: ``python -m sv4d2_core`` or ``sv4d2``.

Exit codes: 0 success, 1 some clips of a batch failed, 2 bad usage or input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import Any

from .commands import Parser
from .shipped import __version__

# Where each command is, and what it does; the functions of a module with several end with the command's name.
COMMANDS = {
    "views": ("views", "make novel-view videos from a clip"),
    "batch": ("batch", "make novel-view videos from many clips"),
    "refine": ("refine", "fit a 4D scene to views"),
    "render": ("render", "show a 4D scene from any camera at any time"),
    "export": ("export", "write a 4D scene as files that other programs open"),
    "metrics": ("metrics", "score views against true views or themselves"),
    "convert-i3d": ("metrics", "turn I3D's TorchScript file, the network of FVD, into data"),
    "scenes": ("metrics", "write the benchmark scenes, whose every view is known"),
    "curate": ("train", "keep the clips that are fit to be learnt from, rectified"),
    "train": ("train", "train a small model, or fine-tune a given one"),
    "convert": ("export", "write a smaller checkpoint"),
    "info": ("export", "say what a checkpoint file is"),
    "demo": ("demo", "run the whole job on a generated clip"),
}

_OUT_OF_MEMORY = (
    "The memory is exhausted ({}). Use a smaller --size or --dtype fp16, or set --memory-gb lower than what "
    "is free."
)


_LONGEST = 498  # characters of a message, the line's end not counted


def build_parser(chosen: Collection[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """Return the parser; only ``chosen`` commands get options, as their modules import PyTorch."""
    parser = Parser(
        prog="sv4d2", description="Stable Video 4D 2.0: a clip of a moving object in, novel views out."
    )
    parser.add_argument("--version", action="version", version=f"sv4d2 {__version__}")
    quiet: dict[str, Any] = {"action": "store_true", "help": "say only what went wrong"}
    parser.add_argument("-q", "--quiet", **quiet)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (home, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        # Without a default, or it would undo the one before the command.
        command.add_argument("-q", "--quiet", **quiet, default=argparse.SUPPRESS)
        if name in chosen:
            module = import_module(f".commands.{home}", __package__)
            own = "" if home == name else f"_{name.replace('-', '_')}"
            getattr(module, f"add{own}_arguments")(command)
            command.set_defaults(run=getattr(module, f"run{own}"))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        args = build_parser([word for word in words if word in COMMANDS][:1]).parse_args(words)
        level = logging.WARNING if args.quiet else logging.INFO
        logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # SIGHUP is not known to Windows
            if number and threading.current_thread() is threading.main_thread():
                if signal.getsignal(number) == signal.SIG_DFL:
                    signal.signal(number, signal.default_int_handler)
        return args.run(args)
    except KeyboardInterrupt:
        return _fail("Interrupted.", 130)
    except (OSError, ValueError, FloatingPointError, ModuleNotFoundError, MemoryError, RuntimeError) as error:
        from .files import DISK_FULL, is_out_of_memory  # PyTorch is imported by what needs it
        from .messages import without_number

        if is_out_of_memory(error):
            return _fail(_OUT_OF_MEMORY.format(str(error).partition("\n")[0]), 2)
        if isinstance(error, RuntimeError):
            raise
        if not isinstance(error, OSError):
            return _fail(str(error), 2)
        if error.errno in DISK_FULL and error.filename:
            where = f"{error.filename} cannot be written"
            return _fail(f"The disk is full: {where}. Free some space; the same command continues.", 2)
        return _fail(without_number(error), 2)


def _fail(message: str, code: int) -> int:
    """Say what went wrong in one line; what a longer one leaves out is in the middle."""
    line, half = " ".join(f"sv4d2: {message}".split()), _LONGEST // 2 - 2
    print(line if len(line) <= _LONGEST else f"{line[:half]}...{line[-half:]}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
