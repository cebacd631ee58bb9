"""`sv4d2 convert` and `sv4d2 info`: smaller copies of a checkpoint, and what a file is."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ..diffusion.checkpoint import describe_checkpoint
from ..diffusion.convert import convert_checkpoint
from .common import DTYPES, VARIANTS, Options, checkpoint_file

log = logging.getLogger(__name__)


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `convert`."""
    options = Options(parser)
    options.value("source", checkpoint_file, "official checkpoint", metavar="SOURCE")
    options.value("target", Path, "file to write", metavar="TARGET")
    options.choice("--dtype", ("fp16", "bf16"), "fp16")
    options.choice("--variant", VARIANTS, "auto")
    options.flag("--overwrite", "replace TARGET")


def run_convert(args: argparse.Namespace) -> int:
    """Write the smaller copy and return the exit code."""
    path = convert_checkpoint(args.source, args.target, DTYPES[args.dtype], args.variant, args.overwrite)
    before, after = args.source.stat().st_size, path.stat().st_size
    log.info("%s: %.2f GB, %.0f %% of %.2f GB", path, after / 1e9, 100 * after / before, before / 1e9)
    return 0


def add_info_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `info`."""
    Options(parser).value("file", checkpoint_file, "safetensors file, or tiny", metavar="FILE")


def run_info(args: argparse.Namespace) -> int:
    """Print what the file is; exit code 0 when it can be used, else 2."""
    info = describe_checkpoint(args.file)
    print(info)
    return 2 if info.problem else 0
