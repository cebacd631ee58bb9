"""One UNet forward pass with each saving switched off and on: operations, seconds, activation memory.

    python tests/bench/forward.py [--rounds 5] [--threads 2] [--alone] [--json FILE] [--markdown FILE]
    python tests/bench/forward.py --pair --rounds 20
    python tests/bench/forward.py --parts --sampling 3 [--clip] [--compile]
    python tests/bench/forward.py --full --device cuda --dtype bfloat16 --parts --sampling 5 [--clip]

Figures of one run belong together: the variants take turns, and all ratios are to the official computation of
the same run. The minimum over the rounds is the figure least disturbed by other work on the machine.

--pair leaves out the product without each saving: more rounds of what the aim compares in less time.
--compile adds the product with its repeated work compiled, --parts what each part of the network takes,
--sampling the time of denoising steps and, by arithmetic, of a whole clip, which --clip also samples from end
to end. --full is the official size at 576 px, also in small parts and in one part. No GPU was at hand so far:
what is only run on one is tested on a CPU with a small network in place of the full one.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from measure import matrix_product_rate
from network_parts import parts_table
from savings import OFFICIAL, PRODUCT, SAVINGS
from variants import FRAMES, GUIDANCE_BATCH, VIEWS, CompiledVariant, InOwnProcess, Variant, Work
from whole_clip import STEPS, clip_costs, clip_report, clip_seconds, model_on

from sv4d2_core.diffusion.blocks import SMALLEST_CHUNK
from sv4d2_core.diffusion.config import CLIPVisionConfig, ModelConfig, UNetConfig, VAEConfig

BENCH = ModelConfig(
    vector_dims=(64, 96, 96),
    size=128,
    unet=UNetConfig(base=64, head_channels=32, context_dim=256, vector_dim=256),
    vae=VAEConfig(base=32),
    clip=CLIPVisionConfig(width=64, layers=2, head_width=32, mlp_width=256, embed_dim=256),
)
FULL = ModelConfig()
# Share of the official computation's activation memory.
MEMORY_AIM = 1 / 3
# At full size on a GPU: speed against the official computation, share of the matrix rate, and the peak with
# the weights in GB, in small parts and in one.
FULL_AIMS = {"speed": 2.0, "rate": 0.6, "parts_gb": 10, "whole_gb": 16}
# Largest difference between variants, relative to the largest value of the prediction.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-2}
SMALL_PARTS, ONE_PART = "product in small parts", "product in one part"
_BOTH = ("official", "product")
_CHUNKS = {SMALL_PARTS: SMALLEST_CHUNK, ONE_PART: 2**62}


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
        row["min"], row["max"] = min(row["seconds"]), max(row["seconds"])
        row["median"] = statistics.median(row["seconds"])
        row["speed"] = min(first["seconds"]) / row["min"]
        ratios = (a / b for a, b in zip(first["seconds"], row["seconds"], strict=True))
        row["median_speed"] = statistics.median(ratios)
        row["memory"] = row["peak_bytes"] / first["peak_bytes"]
    return rows


def table(rows: dict[str, dict[str, Any]], rate: float) -> str:
    """Return the figures as a Markdown table; ``rate``: operations per second of the best matrix product."""
    lines = [
        "| variant | GFLOP | s (min) | s (median) | s (max) | GFLOP/s | of the matrix rate | speed (min) "
        "| speed (median) | peak MiB | memory |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in rows.items():
        achieved = row["flops"] / row["min"]
        lines.append(
            f"| {name} | {row['flops'] / 1e9:.0f} | {row['min']:.2f} | {row['median']:.2f} "
            f"| {row['max']:.2f} | {achieved / 1e9:.0f} | {achieved / rate:.0%} "
            f"| {row['speed']:.2f}x | {row['median_speed']:.2f}x "
            f"| {row['peak_bytes'] / 2**20:.1f} | {row['memory']:.0%} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a Markdown report and, where asked for, write it and the raw figures."""
    options = _options(arguments)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    torch.set_num_threads(options.threads)
    config = FULL if options.full else BENCH
    size = config.size // config.latent_factor
    work = Work(config.unet, size, options.device, dtype, options.threads)
    title = _title(options, config, size)
    rates = [_rate(device, dtype)]
    with _variants(work, options) as variants:
        rows = benchmark(variants, options.rounds, TOLERANCE[options.dtype])
        for name in _BOTH:
            if options.parts:
                rows[name]["parts"] = variants[name].parts(options.rounds)
            if options.sampling:
                rows[name]["step_seconds"] = variants[name].step_seconds(options.sampling)
    rates.append(_rate(device, dtype))
    rate = max(rates)
    report = [title, table(rows, rate), summary(rows, rate)]
    figures = {"title": title, "matrix_product_flops_per_s": rates, "variants": rows}
    if options.full:
        report.append(full_summary(rows, rate, _weight_bytes(work)))
    if options.parts:
        report += [f"{name.capitalize()}:\n\n{parts_table(rows[name]['parts'], rate)}" for name in _BOTH]
    if options.sampling:
        report.append(sampling_summary(rows))
        figures["clip"] = _clip(config, rows["product"], options)
        report.append(figures["clip"].pop("report"))
    _write(options, "\n\n".join(report), figures)


def summary(rows: dict[str, dict[str, Any]], rate: float) -> str:
    """Return how the product stands to the best matrix product, ``rate`` per second, and to the aim."""
    official, product = rows["official"], rows["product"]
    limit = official["flops"] / rate
    return (
        f"Best matrix product: {rate / 1e9:.0f} GFLOP/s, at which the operations of the official computation "
        f"take {limit:.2f} s; it takes {official['min'] / limit:.2f} times that, the product "
        f"{product['min'] / limit:.2f} times.\n"
        f"By median the product runs at {product['median_speed']:.2f}x the official speed; it takes "
        f"{product['memory']:.0%} of its activation memory (aim {MEMORY_AIM:.0%})."
    )


def full_summary(rows: dict[str, dict[str, Any]], rate: float, weight_bytes: int) -> str:
    """Return how the product stands to the aims for the full size on a GPU."""
    product = rows["product"]
    achieved = product["flops"] / product["min"]
    small, whole = ((rows[name]["peak_bytes"] + weight_bytes) / 1e9 for name in (SMALL_PARTS, ONE_PART))
    return (
        f"Full size: {achieved / 1e12:.1f} TFLOP/s, {achieved / rate:.0%} of the matrix rate (aim "
        f"{FULL_AIMS['rate']:.0%}); {product['speed']:.2f}x the official speed (aim "
        f"{FULL_AIMS['speed']}x); peak with {weight_bytes / 1e9:.1f} GB of weights {small:.1f} GB in small "
        f"parts (aim {FULL_AIMS['parts_gb']}), {whole:.1f} GB in one part (aim {FULL_AIMS['whole_gb']})."
    )


def sampling_summary(rows: dict[str, dict[str, Any]]) -> str:
    """Return the time of denoising steps as a Markdown table."""
    lines = ["| sampling | first step, s | s (min) | s (median) | s (max) |", "|---|--:|--:|--:|--:|"]
    for name in _BOTH:
        first, *others = rows[name]["step_seconds"]
        lines.append(
            f"| {name} | {first:.2f} | {min(others):.2f} | {statistics.median(others):.2f} "
            f"| {max(others):.2f} |"
        )
    return "\n".join(lines)


@contextmanager
def _variants(work: Work, options: argparse.Namespace) -> Iterator[dict[str, Variant | InOwnProcess]]:
    """Have all variants ready inside the block."""
    chosen: dict[str, tuple[frozenset[str], int | None, type[Variant]]]
    chosen = {"official": (OFFICIAL, None, Variant), "product": (PRODUCT, None, Variant)}
    if not options.pair:
        chosen |= {f"product without {name}": (frozenset({name}), None, Variant) for name in SAVINGS}
    if options.alone:
        chosen |= {f"official with {name}": (OFFICIAL - {name}, None, Variant) for name in SAVINGS}
    if options.full:
        chosen |= {name: (PRODUCT, chunk, Variant) for name, chunk in _CHUNKS.items()}
    if options.compile:
        chosen["product compiled"] = PRODUCT, None, CompiledVariant
    if options.one_process or torch.device(options.device).type == "cuda":
        # A GPU's allocator keeps no state that matters, and one copy of the weights has to do.
        net, inputs = work.network(), work.inputs()
        yield {name: made(net, inputs, off, chunk) for name, (off, chunk, made) in chosen.items()}
        return
    processes = {name: InOwnProcess(work, *how) for name, how in chosen.items()}
    yield {**processes}
    for process in processes.values():
        process.close()


def _clip(config: ModelConfig, product: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Return the times of a whole clip, with a report."""
    device = torch.device(options.device)
    model = model_on(config, getattr(torch, options.dtype), device)
    costs = clip_costs(model, config.size, device)
    step = statistics.median(product["step_seconds"][1:])
    sampled = {}
    if options.clip:
        sampled = {steps: clip_seconds(model, config.size, steps, device) for steps in STEPS}
    computed = {steps: costs.seconds(steps, step) for steps in STEPS}
    return {
        "costs": costs._asdict(),
        "seconds_by_arithmetic": computed,
        "seconds_sampled": sampled,
        "report": clip_report(costs, step, sampled),
    }


def _rate(device: torch.device, dtype: torch.dtype) -> float:
    return matrix_product_rate(device, dtype, 8192 if device.type == "cuda" else 2048)


def _weight_bytes(work: Work) -> int:
    network = work._replace(device="meta").network()
    return sum(parameter.nbytes for parameter in network.parameters())


def _title(options: argparse.Namespace, config: ModelConfig, size: int) -> str:
    on_gpu = torch.device(options.device).type == "cuda"
    machine = torch.cuda.get_device_name(options.device) if on_gpu else f"{options.threads} threads"
    return (
        f"One UNet forward pass: base {config.unet.base}, T = {FRAMES}, V = {VIEWS}, {size} x {size} "
        f"latents, guidance batch {GUIDANCE_BATCH}, {options.dtype} on {machine} ({platform.machine()}, "
        f"torch {torch.__version__}), {options.rounds} rounds."
    )


def _write(options: argparse.Namespace, report: str, figures: dict[str, Any]) -> None:
    sys.stdout.write(report + "\n")
    if options.markdown:
        options.markdown.write_text(report + "\n")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed and activation memory of one UNet forward pass.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each variant runs")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(TOLERANCE), default="float32")
    parser.add_argument("--full", action="store_true", help="the full-size network at 72 x 72 (wants a GPU)")
    parser.add_argument("--pair", action="store_true", help="no variants without one saving")
    parser.add_argument("--alone", action="store_true", help="also the official computation with one saving")
    parser.add_argument("--compile", action="store_true", help="also the product compiled")
    parser.add_argument("--parts", action="store_true", help="also the figures of each part of the network")
    parser.add_argument("--sampling", type=int, metavar="N", help="also N denoising steps, at least 2")
    parser.add_argument("--clip", action="store_true", help="also whole clips from end to end")
    parser.add_argument(
        "--one-process", action="store_true", help="all variants in one process, as always on a GPU"
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--markdown", type=Path, help="write the report to this file")
    options = parser.parse_args(arguments)
    if options.clip and not options.sampling:
        options.sampling = 3
    if options.sampling is not None and options.sampling < 2:
        parser.error(f"--sampling must be at least 2, as the first step warms up; got {options.sampling}.")
    return options


if __name__ == "__main__":
    main()
