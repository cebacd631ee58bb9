"""The shell's door: ``python -m sv4d2_core`` or ``sv4d2``.

Exit codes: 0 success, 1 some clips of a batch failed, 2 bad usage or input (one readable message), 130
interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from .diffusion.blocks import is_out_of_memory
from .files import DISK_FULL

_OUT_OF_MEMORY = (
    "The memory is exhausted ({}). Use a smaller --size or --dtype fp16, or set --memory-gb lower than what "
    "is free."
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    from .commands import (
        batch,
        checkpoints,
        curate,
        demo,
        export,
        metrics,
        refine,
        refine_arguments,
        render,
        scenes,
        train,
        train_arguments,
        views,
        views_arguments,
    )

    parser = argparse.ArgumentParser(
        prog="sv4d2", description="Stable Video 4D 2.0: a clip of a moving object in, novel views out."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, add_arguments, run, text in (
        ("views", views_arguments.add_arguments, views.run, "make novel-view videos from a clip"),
        ("batch", batch.add_arguments, batch.run, "make novel-view videos from many clips"),
        ("refine", refine_arguments.add_arguments, refine.run, "fit a 4D scene to views"),
        ("render", render.add_arguments, render.run, "show a 4D scene from any camera at any time"),
        ("export", export.add_arguments, export.run, "write a 4D scene as files that other programs open"),
        ("metrics", metrics.add_arguments, metrics.run, "score views against true views or themselves"),
        ("scenes", scenes.add_arguments, scenes.run, "write the benchmark scenes, whose every view is known"),
        (
            "curate",
            curate.add_arguments,
            curate.run,
            "keep the clips that are fit to be learnt from, rectified",
        ),
        ("train", train_arguments.add_arguments, train.run, "train a small model, or fine-tune a given one"),
        ("convert", checkpoints.add_convert_arguments, checkpoints.run_convert, "write a smaller checkpoint"),
        ("info", checkpoints.add_info_arguments, checkpoints.run_info, "say what a checkpoint file is"),
        ("demo", demo.add_arguments, demo.run, "run the whole job on a generated clip"),
    ):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        add_arguments(command)
        command.set_defaults(run=run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    args = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        return _fail("Interrupted.", 130)
    except OSError as error:
        if error.errno in DISK_FULL and error.filename:
            return _fail(f"The disk is full ({error}). Free some space; the same command continues.", 2)
        return _fail(str(error), 2)
    except ValueError as error:
        return _fail(str(error), 2)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            return _fail(_OUT_OF_MEMORY.format(str(error).partition("\n")[0]), 2)
        raise


def _fail(message: str, code: int) -> int:
    print(f"sv4d2: {message}", file=sys.stderr)
    return code
