"""One UNet forward pass with each saving switched off: operations, seconds, activation memory.

    python tests/bench/forward.py [--rounds 5] [--threads 2] [--pair] [--compile]

Figures of one run belong together: the variants take turns, and all ratios are to the official computation of
the same run. The minimum over the rounds is the figure least disturbed by other work on the machine. --pair
leaves out the product without each saving, --compile adds the product with its repeated work compiled. The
official size on a GPU is measured by `gpu.py`.

The product has no switches: while a variant runs, its functions are replaced with the official computation in
plain operations (docs/method.md, Network). Every replacement calls the product's other functions by name, so
that any combination works. Embedding rows per view and the grouping of tokens without copies stay: what they
save was measured, and is small.
"""

import argparse
import copy
import platform
import statistics
from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from measure import flops, matrix_product_rate, peak_bytes, seconds
from torch import Tensor
from torch.nn import functional as F

from sv4d2_core.diffusion import blocks
from sv4d2_core.diffusion.blocks import (
    AttentionBlock,
    Blend,
    BlockContext,
    FeedForward,
    ResBlock,
    TransformerBlock,
)
from sv4d2_core.diffusion.config import UNetConfig
from sv4d2_core.diffusion.speed import compile_blocks
from sv4d2_core.diffusion.unet import UNet

BENCH, BENCH_SIZE = UNetConfig(base=64, head_channels=32, context_dim=256, vector_dim=256), 16
FRAMES, VIEWS, GUIDANCE_BATCH = 12, 4, 2
# Largest difference between variants, relative to the largest value of the prediction.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-2}
ONE_TOKEN = "one-token cross-attention"
_silu, _output_memory = F.silu, ResBlock._output_memory


def _prepare_tokens(self: AttentionBlock, context: Tensor) -> BlockContext:
    """Replace `AttentionBlock.prepare`: the context tokens stand in place of their effect."""
    numbers = torch.arange(context.shape[1], device=context.device)
    frames = self.time_mix_motion_embed(blocks.sinusoidal_embedding(numbers, self.width).to(context.dtype))
    width = self.config.latent_channels
    tokens, identity = context.flatten(0, 1), torch.eye(width, dtype=context.dtype, device=context.device)
    return BlockContext(tokens, tokens, identity, context.new_zeros(width), frames)


def _attend_to_token(self: TransformerBlock, x: Tensor, context: Tensor) -> Tensor:
    """Replace `TransformerBlock.forward`: queries, keys, values and a softmax over one token per group."""
    if self.ff_in is not None and self.norm_in is not None:
        x = self.ff_in(self.norm_in(x)).add_(x)
    x = self.attn1(self.norm1(x)).add_(x)
    cross = self.attn2
    token = context.expand(*x.shape[:-2], 1, -1).reshape(-1, 1, context.shape[-1])
    q, k, v = cross.to_q(self.norm2(x).flatten(0, -3)), cross.to_k(token), cross.to_v(token)
    x = cross.to_out(self.attn1.attention(q, k, v, self.attn1.heads)).view(x.shape).add_(x)
    return self.ff(self.norm3(x)).add_(x)


def _feed_forward(self: FeedForward, x: Tensor) -> Tensor:
    value, gate = self.net[0](x).chunk(2, dim=-1)
    return self.net[2](value * F.gelu(gate))


def _blend(self: Blend, before: Tensor, mixed: Tensor) -> Tensor:
    share = self.share_of_mixed(mixed)
    return (1 - share) * before + share * mixed


# What replaces which function of the product without each saving.
SAVINGS: dict[str, list[tuple[Any, str, Any]]] = {
    ONE_TOKEN: [
        (AttentionBlock, "prepare", _prepare_tokens),
        (TransformerBlock, "forward", _attend_to_token),
    ],
    "work in parts": [(blocks, "parts", lambda total, *_sizes: [slice(0, total)])],
    # Else every activation, gate and blend is a new tensor.
    "reused memory": [
        (blocks, "reusable", torch.empty_like),
        (ResBlock, "_output_memory", lambda self, x, reuse: _output_memory(self, x, False)),
        (F, "silu", lambda x, inplace=False: _silu(x)),
        (FeedForward, "forward", _feed_forward),
        (Blend, "forward", _blend),
    ],
    # The product asks for the layout by this name.
    "channels-last": [(torch, "channels_last", torch.contiguous_format)],
}
OFFICIAL, PRODUCT = frozenset(SAVINGS), frozenset[str]()


class Work(NamedTuple):
    """The size of a forward pass and where it runs; ``size`` is the height and width of the latents."""

    config: UNetConfig
    size: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    frames: int = FRAMES

    def network(self) -> UNet:
        """Return a UNet with PyTorch's random initial weights, always the same."""
        torch.manual_seed(0)
        return UNet(self.config, device=self.device, dtype=self.dtype).eval().requires_grad_(False)

    def inputs(self) -> dict[str, Tensor]:
        """Return random inputs of `UNet.forward` and `UNet.prepare`, of one guided step, always the same."""
        torch.manual_seed(1)
        draw = partial(torch.randn, device=self.device, dtype=self.dtype)
        rows, latent = GUIDANCE_BATCH * VIEWS, self.config.latent_channels
        return {
            "x": draw(rows * self.frames, 2 * latent, self.size, self.size),
            "timesteps": torch.full((rows,), 0.3, device=self.device),
            "y": draw(rows, self.config.vector_dim),
            "context": draw(GUIDANCE_BATCH, self.frames, self.config.context_dim),
            "cond_view": draw(rows, latent, self.size, self.size),
        }


class Variant(NamedTuple):
    """A forward pass of ``net`` without ``savings``, in parts of ``chunk_bytes`` (None: as ``net`` does).

    ``plain`` is the network before it was compiled: a counter of operations does not see compiled code.
    """

    net: UNet
    inputs: dict[str, Tensor]
    savings: Collection[str]
    chunk_bytes: int | None = None
    plain: UNet | None = None

    @torch.no_grad()
    def measure(self, of: Callable[[Callable[[], Tensor]], Any], prepare: bool = False) -> Any:
        """Return what ``of`` finds out about the pass, which prepares its window where ``prepare`` is set."""
        x, timesteps, y, context, cond_view = self.inputs.values()
        budget = self.net.chunk_bytes if self.chunk_bytes is None else self.chunk_bytes
        with ExitStack() as stack:
            stack.enter_context(patch.object(self.net, "chunk_bytes", budget))
            for replacement in (entry for name in self.savings for entry in SAVINGS[name]):
                stack.enter_context(patch.object(*replacement))
            if prepare or ONE_TOKEN in self.savings:
                return of(lambda: self.net(x, timesteps, y, self.net.prepare(context, cond_view)))
            # Else once for all steps of a window, as the product does.
            window = self.net.prepare(context, cond_view)
            return of(lambda: self.net(x, timesteps, y, window))


def benchmark(variants: dict[str, Variant], rounds: int, tolerance: float) -> dict[str, dict[str, Any]]:
    """Return the figures of each variant; ratios and differences refer to the first.

    Raises:
        RuntimeError: a variant computes something else than the first.
    """
    first, *_ = variants
    device = variants[first].inputs["x"].device
    expected = variants[first].measure(lambda call: call().float().cpu())
    rows: dict[str, dict[str, Any]] = {}
    for name, variant in variants.items():
        out = variant.measure(lambda call: call().float().cpu())
        error = ((out - expected).abs().max() / expected.abs().max()).item()
        if not error <= tolerance:
            raise RuntimeError(f"Expected equal results; {name} differs by {error:.2g} of the largest value.")
        # The product's prepared window counts as activations.
        peak = variant.measure(partial(peak_bytes, device=device), prepare=True)
        operations = variant._replace(net=variant.plain or variant.net).measure(flops)
        rows[name] = {"flops": operations, "peak_bytes": peak, "seconds": [], "difference": error}
    for _ in range(rounds):
        for name, variant in variants.items():
            rows[name]["seconds"].append(variant.measure(partial(seconds, device=device)))
    for row in rows.values():
        ratios = (a / b for a, b in zip(rows[first]["seconds"], row["seconds"], strict=True))
        row["speed"] = statistics.median(ratios)
        row["memory"] = row["peak_bytes"] / rows[first]["peak_bytes"]
    return rows


def print_table(rows: dict[str, dict[str, Any]], rate: float) -> None:
    """Print the figures; ``rate``: operations per second of the best matrix product."""
    titles = "variant | GFLOP | s (min) | s (median) | s (max) | of the matrix rate | speed (median)"
    print(f"| {titles} | peak MiB | memory |\n|---{'|--:' * 8}|")
    for name, row in rows.items():
        times = row["seconds"]
        print(
            f"| {name} | {row['flops'] / 1e9:.0f} | {min(times):.2f} | {statistics.median(times):.2f} "
            f"| {max(times):.2f} | {row['flops'] / min(times) / rate:.0%} | {row['speed']:.2f}x "
            f"| {row['peak_bytes'] / 2**20:.1f} | {row['memory']:.0%} |"
        )


def chosen_variants(work: Work, options: argparse.Namespace) -> dict[str, Variant]:
    """Return the variants to compare; compiled work comes last, as a copy of the network."""
    net, inputs = work.network(), work.inputs()
    variants = {"official": Variant(net, inputs, OFFICIAL), "product": Variant(net, inputs, PRODUCT)}
    if not options.pair:
        variants |= {f"product without {name}": Variant(net, inputs, {name}) for name in SAVINGS}
    if options.compile:
        compiled = copy.deepcopy(net)
        compile_blocks(compiled)
        variants["product compiled"] = Variant(compiled, inputs, PRODUCT, plain=net)
    return variants


def main(arguments: list[str] | None = None) -> None:
    """Measure and print a Markdown report."""
    parser = argparse.ArgumentParser(description="Speed and activation memory of one UNet forward pass.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each variant runs")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(TOLERANCE), default="float32")
    parser.add_argument("--pair", action="store_true", help="no variants without one saving")
    parser.add_argument("--compile", action="store_true", help="also the product compiled")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    work = Work(BENCH, BENCH_SIZE, options.device, dtype)
    rows = benchmark(chosen_variants(work, options), options.rounds, TOLERANCE[options.dtype])
    on_gpu = device.type == "cuda"
    rate = matrix_product_rate(device, dtype, 8192 if on_gpu else 2048)
    machine = torch.cuda.get_device_name(device) if on_gpu else f"{options.threads} threads"
    print(
        f"One UNet forward pass: base {BENCH.base}, T = {FRAMES}, V = {VIEWS}, {BENCH_SIZE} x {BENCH_SIZE} "
        f"latents, guidance batch {GUIDANCE_BATCH}, {options.dtype} on {machine} ({platform.machine()}, "
        f"torch {torch.__version__}), {options.rounds} rounds; best matrix product {rate / 1e9:.0f} "
        f"GFLOP/s.\n"
    )
    print_table(rows, rate)


if __name__ == "__main__":
    main()
