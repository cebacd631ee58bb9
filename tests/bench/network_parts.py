"""Which part of the network takes how much of a forward pass: seconds and floating-point operations.

A part's figures are its own: what runs inside of another part, such as a norm inside of an attention block,
counts there alone. Activations and sums count to the part whose code calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any
from unittest.mock import patch

import torch
from measure import Call, clock, flop_counter
from torch import nn

from sv4d2_core.diffusion.blocks import (
    AttentionBlock,
    Downsample,
    FeedForward,
    ResBlock,
    TemporalConvs,
    TransformerBlock,
    Upsample,
)
from sv4d2_core.diffusion.unet import UNet

SPATIAL, VIEW, MOTION = "spatial attention", "view attention", "motion attention"
WITHIN, ALONG = "convolutions within images", "convolutions along the sequence"
FEED_FORWARD, NORMS, REST = "feed-forward", "norms", "rest"
PARTS: tuple[str, ...] = (SPATIAL, VIEW, MOTION, FEED_FORWARD, WITHIN, ALONG, NORMS, REST)

_ATTENTION: dict[str, str] = {"transformer_blocks": SPATIAL, "time_mix_blocks": VIEW, "motion_blocks": MOTION}
# What groups tokens, blends and adds without a module of its own.
_METHODS = (
    (AttentionBlock, "_mix_views", VIEW),
    (AttentionBlock, "_mix_frames", MOTION),
    (ResBlock, "_along_sequence", ALONG),
)


class _Account:
    """Adds what a reading grows by to the innermost part that is running."""

    def __init__(self, reading: Callable[[], float]) -> None:
        self.totals = dict.fromkeys(PARTS, 0.0)
        self._reading, self._running, self._last = reading, [REST], reading()

    def enter(self, part: str) -> None:
        self.settle()
        self._running.append(part)

    def leave(self) -> None:
        self.settle()
        self._running.pop()

    def settle(self) -> None:
        now = self._reading()
        self.totals[self._running[-1]] += now - self._last
        self._last = now


def seconds_by_part(net: UNet, call: Call, device: torch.device) -> dict[str, float]:
    """Return the seconds that ``call`` spends in each part of ``net``.

    A GPU is waited for at every change of part, so that the sum is above the time of an undisturbed pass.
    """
    return _by_part(net, call, partial(clock, device))


def flops_by_part(net: UNet, call: Call) -> dict[str, int]:
    """Return the floating-point operations of ``call`` in each part of ``net``, counted as in `measure`."""
    with flop_counter() as counter:
        totals = _by_part(net, call, counter.get_total_flops)
    return {part: int(total) for part, total in totals.items()}


def breakdown(net: UNet, call: Call, device: torch.device, rounds: int) -> dict[str, dict[str, float]]:
    """Return seconds and operations of each part, from the fastest of some passes."""
    passes = [seconds_by_part(net, call, device) for _ in range(rounds)]
    fastest = min(passes, key=lambda seconds: sum(seconds.values()))
    operations = flops_by_part(net, call)
    return {part: {"seconds": fastest[part], "flops": operations[part]} for part in PARTS}


def parts_table(parts: Mapping[str, Mapping[str, float]], rate: float) -> str:
    """Return a breakdown as a Markdown table.

    Args:
        parts: from `breakdown`.
        rate: operations per second of the best matrix product.
    """
    total = {key: sum(part[key] for part in parts.values()) for key in ("seconds", "flops")}
    lines = ["| part | s | share of the time | GFLOP | of the matrix rate |", "|---|--:|--:|--:|--:|"]
    for name, part in [*parts.items(), ("all", total)]:
        lines.append(
            f"| {name} | {part['seconds']:.3f} | {part['seconds'] / total['seconds']:.1%} "
            f"| {part['flops'] / 1e9:.1f} | {part['flops'] / rate / part['seconds']:.0%} |"
        )
    return "\n".join(lines)


def _by_part(net: UNet, call: Call, reading: Callable[[], float]) -> dict[str, float]:
    account = _Account(reading)
    with _reporting(net, account):
        call()
        account.settle()
    return account.totals


@contextmanager
def _reporting(net: UNet, account: _Account) -> Iterator[None]:
    """Let every part of ``net`` tell the account when it starts and ends."""
    with ExitStack() as stack:
        for name, module in net.named_modules():
            part = _part_of(name, module)
            if part is not None:
                before = module.register_forward_pre_hook(partial(_enter, account, part))
                after = module.register_forward_hook(lambda *_: account.leave())
                stack.callback(before.remove)
                stack.callback(after.remove)
        for owner, method, part in _METHODS:
            stack.enter_context(
                patch.object(owner, method, _accounted(getattr(owner, method), account, part))
            )
        yield


def _enter(account: _Account, part: str, *_: Any) -> None:
    account.enter(part)


def _accounted(method: Callable[..., Any], account: _Account, part: str) -> Callable[..., Any]:
    @wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        account.enter(part)
        try:
            return method(*args, **kwargs)
        finally:
            account.leave()

    return run


def _part_of(name: str, module: nn.Module) -> str | None:
    """Return the part that a module starts, or None where it belongs to what calls it."""
    if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
        return NORMS
    if isinstance(module, FeedForward):
        return FEED_FORWARD
    if isinstance(module, TransformerBlock):
        return next(part for key, part in _ATTENTION.items() if f".{key}." in name)
    if isinstance(module, TemporalConvs):
        return ALONG
    return WITHIN if isinstance(module, (ResBlock, Downsample, Upsample, nn.Conv2d)) else None
