"""One UNet forward pass with each saving switched off and on: operations, seconds, activation memory.

    python tests/bench/forward.py [--rounds 5] [--threads 2] [--alone] [--json FILE] [--markdown FILE]

Figures of one run belong together: the variants take turns, and all ratios are to the official computation of
the same run. The minimum over the rounds is the figure least disturbed by other work on the machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from measure import matrix_product_rate
from savings import OFFICIAL, PRODUCT, SAVINGS
from variants import FRAMES, GUIDANCE_BATCH, VIEWS, InOwnProcess, Variant, Work

from sv4d2_core.diffusion.config import UNetConfig

BENCH = UNetConfig(base=64, head_channels=32, context_dim=256, vector_dim=256)
BENCH_SIZE, FULL_SIZE = 16, 72
AIMS = {"speed": 1.3, "memory": 0.5}
# Largest difference between variants, relative to the largest value of the prediction.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-2}


def benchmark(
    variants: Mapping[str, Variant | InOwnProcess], rounds: int, tolerance: float
) -> dict[str, dict[str, Any]]:
    """Return the figures of each variant; ratios refer to the first.

    Raises:
        RuntimeError: a variant computes something else than the first.
    """
    rows: dict[str, dict[str, Any]] = {}
    expected = None
    for name, variant in variants.items():
        out = variant.output()
        expected = out if expected is None else expected
        error = ((out - expected).abs().max() / expected.abs().max()).item()
        if not error <= tolerance:
            raise RuntimeError(f"Expected equal results; {name} differs by {error:.2g} of the largest value.")
        rows[name] = {"error": error, "flops": variant.flops(), "peak_bytes": variant.peak_bytes()}
        rows[name]["seconds"] = []
    for _ in range(rounds):
        for name, variant in variants.items():
            rows[name]["seconds"].append(variant.seconds())
    first = next(iter(rows.values()))
    for row in rows.values():
        row["min"], row["median"] = min(row["seconds"]), statistics.median(row["seconds"])
        row["speed"] = min(first["seconds"]) / row["min"]
        ratios = (a / b for a, b in zip(first["seconds"], row["seconds"], strict=True))
        row["median_speed"] = statistics.median(ratios)
        row["memory"] = row["peak_bytes"] / first["peak_bytes"]
    return rows


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| variant | GFLOP | s (min) | s (median) | speed (min) | speed (median) | peak MiB | memory |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['flops'] / 1e9:.0f} | {row['min']:.2f} | {row['median']:.2f} "
            f"| {row['speed']:.2f}x | {row['median_speed']:.2f}x "
            f"| {row['peak_bytes'] / 2**20:.1f} | {row['memory']:.0%} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a Markdown report and, where asked for, write it and the raw figures."""
    options = _options(arguments)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    torch.set_num_threads(options.threads)
    config, size = (UNetConfig(), FULL_SIZE) if options.full else (BENCH, BENCH_SIZE)
    work = Work(config, size, options.device, dtype, options.threads)
    savings = {"official": OFFICIAL, "product": PRODUCT}
    savings |= {f"product without {name}": frozenset({name}) for name in SAVINGS}
    if options.alone:
        savings |= {f"official with {name}": OFFICIAL - {name} for name in SAVINGS}

    matrix_size = 8192 if device.type == "cuda" else 2048
    rates = [matrix_product_rate(device, dtype, matrix_size)]
    if device.type == "cuda":
        # PyTorch's allocator there keeps no state that matters, and one copy of the weights has to do.
        net, inputs = work.network(), work.inputs()
        rows = benchmark(
            {name: Variant(net, inputs, off) for name, off in savings.items()},
            options.rounds,
            TOLERANCE[options.dtype],
        )
    else:
        variants = {name: InOwnProcess(work, off) for name, off in savings.items()}
        rows = benchmark(variants, options.rounds, TOLERANCE[options.dtype])
        for variant in variants.values():
            variant.close()
    rates.append(matrix_product_rate(device, dtype, matrix_size))

    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{options.threads} threads"
    title = (
        f"One UNet forward pass: base {config.base}, T = {FRAMES}, V = {VIEWS}, {size} x {size} latents, "
        f"guidance batch {GUIDANCE_BATCH}, {options.dtype} on {machine} ({platform.machine()}, torch "
        f"{torch.__version__}), {options.rounds} rounds."
    )
    report = "\n".join([title, "", table(rows), "", summary(rows, max(rates))])
    print(report)
    if options.markdown:
        options.markdown.write_text(report + "\n")
    if options.json:
        figures = {"title": title, "matrix_product_flops_per_s": rates, "variants": rows}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def summary(rows: dict[str, dict[str, Any]], rate: float) -> str:
    """Return how the product stands to the best matrix product, ``rate`` per second, and to the aims."""
    official, product = rows["official"], rows["product"]
    limit = official["flops"] / rate
    return (
        f"Best matrix product: {rate / 1e9:.0f} GFLOP/s, at which the operations of the official computation "
        f"take {limit:.2f} s; it takes {official['min'] / limit:.2f} times that, the product "
        f"{product['min'] / limit:.2f} times.\n"
        f"Aims: {AIMS['speed']}x the official speed (here {product['speed']:.2f}x), at most "
        f"{AIMS['memory']:.0%} of its activation memory (here {product['memory']:.0%})."
    )


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed and activation memory of one UNet forward pass.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each variant runs")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(TOLERANCE), default="float32")
    parser.add_argument("--full", action="store_true", help="the full-size network at 72 x 72 (needs a GPU)")
    parser.add_argument("--alone", action="store_true", help="also the official computation with one saving")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--markdown", type=Path, help="write the report to this file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
