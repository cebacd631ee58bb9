"""`sv4d2 convert` and `sv4d2 info`: smaller copies of a checkpoint, and what a file is."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from ..diffusion.checkpoint import describe_checkpoint
from ..diffusion.convert import convert_checkpoint

log = logging.getLogger(__name__)

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `convert`."""
    parser.add_argument("source", type=Path, metavar="SOURCE", help="official checkpoint")
    parser.add_argument("target", type=Path, metavar="TARGET", help="file to write")
    parser.add_argument("--dtype", default="fp16", choices=tuple(_DTYPES))
    parser.add_argument("--variant", default="auto", choices=("auto", "sv4d2", "sv4d2_8views"))
    parser.add_argument("--overwrite", action="store_true", help="replace TARGET")


def run_convert(args: argparse.Namespace) -> int:
    """Write the smaller copy and return the exit code."""
    path = convert_checkpoint(args.source, args.target, _DTYPES[args.dtype], args.variant, args.overwrite)
    before, after = args.source.stat().st_size, path.stat().st_size
    log.info("%s: %.2f GB, %.0f %% of %.2f GB", path, after / 1e9, 100 * after / before, before / 1e9)
    return 0


def add_info_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `info`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="safetensors file")


def run_info(args: argparse.Namespace) -> int:
    """Print what the file is; exit code 0 when it can be used, else 2."""
    info = describe_checkpoint(args.file)
    print(info)
    return 2 if info.problem else 0
