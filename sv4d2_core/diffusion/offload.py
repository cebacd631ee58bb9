"""Weights that stay in main memory and come to the device only while they work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch
from torch import nn

from .layers import in_place
from .model import Model
from .unet import Stage, UNet

# resident: all weights on the device. turns: those of the network that works. streamed: of the UNet, even
# only those of the layer that works.
Placement = Literal["resident", "turns", "streamed"]


def layers_of(unet: UNet) -> list[nn.Module]:
    """Return the layers that can come to the device one by one; they hold nearly all weights."""
    return [layer for stage in unet.modules() if isinstance(stage, Stage) for layer in stage]


@contextmanager
def at_hand(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Have a module's weights on ``device`` inside the block, and where they were after it.

    Nothing is copied back: the weights at home have not changed.
    """
    homes = [(parameter, parameter.data) for parameter in module.parameters()]
    try:
        for parameter, home in homes:
            # Copies of pinned memory run in the device's own order, so the layer waits for its weights.
            parameter.data = home.to(device, non_blocking=True)
        yield
    finally:
        for parameter, home in homes:
            parameter.data = home


def place(model: Model, device: torch.device, placement: Placement) -> None:
    """Put a model's weights where ``placement`` says; it computes on ``device``, with the same results."""
    networks = (model.unet, model.clip, model.frame_encoder, model.view_encoder, model.decoder)
    model.present = model.unet.present = in_place
    if placement == "resident":
        for network in networks:
            network.to(device)
        return

    def bring(module: nn.Module) -> AbstractContextManager:
        return at_hand(module, device)

    for network in networks:
        _bring_home(network, pin=device.type == "cuda")
    model.present = bring
    if placement == "streamed":
        _stream(model.unet, device, bring)
        model.present = lambda module: in_place(module) if module is model.unet else bring(module)


def _bring_home(network: nn.Module, pin: bool) -> None:
    for parameter in network.parameters():
        home = parameter.data.cpu()
        parameter.data = home.pin_memory() if pin else home


def _stream(unet: UNet, device: torch.device, bring: Callable[[nn.Module], AbstractContextManager]) -> None:
    """Leave the layers' weights at home until they work; the few others move to the device."""
    at_home = {id(p) for layer in layers_of(unet) for p in layer.parameters()}
    for parameter in unet.parameters():
        if id(parameter) not in at_home:
            parameter.data = parameter.data.to(device)
    unet.present = bring
