"""What the memory planner chooses for cards of several sizes and, with --measure, what a card says to it.

    python tests/bench/memory_plan.py [--variant sv4d2] [--size 576] [--dtype float16] [--budgets 24 16 12 8]
        [--fp8-weights]
    python tests/bench/memory_plan.py --measure [--steps 2]

The table is arithmetic on the sizes of the network. With --measure (needs a GPU) each budget is also run at
full size with random weights: the GPU's memory is capped with `set_per_process_memory_fraction`, the plan is
made for the same budget, and one window is encoded, denoised in a few steps and decoded.
"""

import argparse
from collections.abc import Sequence
from unittest.mock import patch

import torch
from measure import clock

from sv4d2_core.cameras import Cameras
from sv4d2_core.diffusion.blocks import log
from sv4d2_core.diffusion.checkpoint import build_networks, stored_dtype
from sv4d2_core.diffusion.config import OFFICIAL_VARIANTS, ModelConfig
from sv4d2_core.diffusion.memory import MemoryPlan, apply_plan, place, plan_memory
from sv4d2_core.diffusion.model import Model
from sv4d2_core.diffusion.novel_views import sample_views
from sv4d2_core.diffusion.speed import keep_in_eight_bits

_HEADER = """| budget, GiB | weights | parts, MiB | encoded / decoded at once | estimated peak, GB |{}
|--:|---|--:|---|--:|{}"""
_MEASURED = (" measured allocated / reserved, GB | s per step | retries |", "--:|--:|--:|")


def run_within(model: Model, options: argparse.Namespace, budget: float, plan: MemoryPlan) -> str:
    """Return, as cells of the table, what a run at full size takes on a GPU capped to ``budget`` GiB."""
    config, device = model.config, torch.device("cuda")
    place(model, torch.device("cpu"), "resident")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, budget * 2**30 / total), device)
    torch.cuda.reset_peak_memory_stats(device)
    clip, cameras = (
        torch.rand(config.n_frames, options.size, options.size, 3),
        Cameras.default(config.n_views),
    )
    stamps: list[float] = []
    # The only warnings are those of another try out of memory.
    with patch.object(log, "warning") as retries:
        try:
            apply_plan(model, plan, device)
            sample_views(
                model, clip, cameras, steps=options.steps, callback=lambda *_: stamps.append(clock(device))
            )
        except torch.cuda.OutOfMemoryError as error:
            return f" out of memory: {str(error).splitlines()[0][:80]} | | |"
    allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    # The first step warms up.
    seconds_per_step = (stamps[-1] - stamps[0]) / (len(stamps) - 1)
    return f" {allocated / 1e9:.2f} / {reserved / 1e9:.2f} | {seconds_per_step:.2f} | {retries.call_count} |"


def random_model(config: ModelConfig, dtype: torch.dtype) -> Model:
    """Return a model with small random weights in main memory."""
    networks = build_networks(config)
    torch.manual_seed(0)
    for name, network in networks.items():
        network.to_empty(device="cpu").to(stored_dtype(name, dtype)).requires_grad_(False).eval()
        for parameter in network.parameters():
            # Gains near 1 keep activations finite.
            parameter.data.normal_(std=0.02).add_(1.0 if parameter.dim() == 1 else 0.0)
    return Model(config, **networks)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="What the memory planner chooses, and whether it holds.")
    parser.add_argument("--variant", choices=list(OFFICIAL_VARIANTS), default="sv4d2")
    parser.add_argument("--size", type=int, default=576)
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--fp8-weights", action="store_true", help="the UNet's weights in 8 bits")
    parser.add_argument("--budgets", type=float, nargs="+", default=[24, 16, 12, 8])
    parser.add_argument("--measure", action="store_true", help="also run each plan; needs a GPU")
    parser.add_argument("--steps", type=int, default=3, help="denoising steps of a measured run, at least 2")
    options = parser.parse_args(arguments)
    if options.measure and not torch.cuda.is_available():
        parser.error("--measure needs a GPU; none was found. Without it the table is arithmetic alone.")
    if options.steps < 2:
        parser.error(f"--steps must be at least 2, as the first warms up; got {options.steps}.")
    config = OFFICIAL_VARIANTS[options.variant]
    machine = torch.cuda.get_device_name() if options.measure else "not measured: arithmetic alone"
    print(
        f"Plans for {options.variant}, {config.n_frames} frames x {config.n_views} views at {options.size} "
        f"px in {options.dtype}{', the weights of the UNet in 8 bits' * options.fp8_weights} ({machine}).\n"
    )
    dtype = getattr(torch, options.dtype)
    model = random_model(config, dtype) if options.measure else None
    if model is not None and options.fp8_weights:
        keep_in_eight_bits(model.unet)
    print(_HEADER.format(*(_MEASURED if options.measure else ("", ""))))
    for budget in options.budgets:
        try:
            plan = plan_memory(config, dtype, options.size, budget, "cuda", options.fp8_weights)
        except ValueError:
            print(f"| {budget:g} | does not fit | | | |")
            continue
        measured = "" if model is None else run_within(model, options, budget, plan)
        print(
            f"| {budget:g} | {plan.placement} | {plan.chunk_bytes / 2**20:.0f} | {plan.encode_batch} / "
            f"{plan.decode_batch} | {plan.estimated_bytes / 1e9:.1f} |{measured}"
        )


if __name__ == "__main__":
    main()
