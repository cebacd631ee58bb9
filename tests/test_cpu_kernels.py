"""What a CPU computes in another way than PyTorch's own layers: the same numbers, and only where it may."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sv4d2_core.diffusion import blocks as layers
from sv4d2_core.diffusion import fused
from sv4d2_core.diffusion.blocks import FeedForward, scaled_dot_product
from sv4d2_core.diffusion.image_norm import image_norm
from sv4d2_core.diffusion.speed import EightBits

needs_operators = pytest.mark.skipif(
    not fused.has_operators(), reason="this PyTorch has no oneDNN operators to fuse with"
)


@pytest.fixture
def feed_forward():
    torch.manual_seed(0)
    return FeedForward(24, operations=nn).requires_grad_(False)


def plain(module, x, monkeypatch):
    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(layers, "fuses", lambda *_: False)
        return module(x)


@needs_operators
@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (3, 5, 24), (2, 3, 4, 24)])
def test_a_fused_feed_forward_gives_the_same_numbers(feed_forward, close, monkeypatch, shape):
    x = 3 * torch.randn(shape)
    with torch.no_grad():
        assert fused.fuses(feed_forward.net[2], x)
        close(feed_forward(x), plain(feed_forward, x, monkeypatch), 2e-6)
    with torch.inference_mode():
        close(feed_forward(x), plain(feed_forward, x, monkeypatch), 2e-6)


@needs_operators
def test_groups_with_gaps_are_read_where_they_lie(feed_forward, close, monkeypatch):
    x = torch.randn(5, 4, 3, 24).transpose(0, 2)
    with torch.no_grad():
        close(feed_forward(x), plain(feed_forward, x, monkeypatch), 2e-6)


@pytest.mark.parametrize("length", [1, 4, 12, 15, 16, 24, 32, 33, 70])
def test_attention_in_groups_of_every_length_is_that_of_pytorch(close, length):
    groups, heads, width = 5, 3, 48
    # With gaps between the tokens, as of one product for all three.
    q, k, v = torch.randn(groups, length, 3 * width).chunk(3, dim=-1)
    apart = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
    with sdpa_kernel(SDPBackend.MATH):
        expected = F.scaled_dot_product_attention(*apart).transpose(1, 2).flatten(2)
    close(scaled_dot_product(q, k, v, heads), expected, 2e-6)


def test_layers_that_do_more_than_a_product_are_left_alone(feed_forward):
    class Casting(nn.Linear):
        pass

    x, linear = torch.randn(2, 24), feed_forward.net[2]
    torch.nn.utils.parametrize.register_parametrization(linear, "weight", EightBits(torch.float32))
    with torch.no_grad():
        for layer in (linear, Casting(24, 2), nn.Linear(24, 2).bfloat16(), nn.Identity()):
            assert not fused.fuses(layer, x)
    # Autograd records.
    assert not fused.fuses(nn.Linear(24, 2), x)


def test_gradients_are_those_of_the_plain_layers(feed_forward):
    x = torch.randn(4, 24, requires_grad=True)
    feed_forward(x).sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0


def test_a_pytorch_without_the_operators_does_without(monkeypatch, feed_forward):
    fused.has_operators.cache_clear()
    monkeypatch.setattr(fused, "linear", lambda *_: torch.ops.mkldnn.no_such_operator(1))
    try:
        with torch.no_grad():
            assert not fused.fuses(nn.Linear(24, 2), torch.randn(2, 24))
            assert feed_forward(torch.randn(2, 24)).isfinite().all()
    finally:
        fused.has_operators.cache_clear()


@pytest.mark.parametrize(
    ("channels", "height", "width"), [(32, 8, 8), (64, 16, 16), (96, 8, 24), (256, 9, 11)]
)
@pytest.mark.parametrize("mean", [0, 10])
def test_a_norm_in_order_gives_the_same_numbers(close, channels, height, width, mean):
    torch.manual_seed(0)
    norm = nn.GroupNorm(32, channels)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    x = (torch.randn(3, channels, height, width) + mean).contiguous(memory_format=torch.channels_last)
    kept = x.clone()
    with torch.no_grad():
        out = image_norm(norm, x)
        # Of double precision, since PyTorch's own kernel errs as much.
        exact = norm.double()(x.double().contiguous()).float()
        norm.float()
    close(out, exact, 1e-5 if mean == 0 else 1e-3)
    assert out.is_contiguous(memory_format=torch.channels_last) and x.equal(kept)


def test_a_flat_image_becomes_the_offset():
    norm = nn.GroupNorm(32, 64)
    x = torch.full((1, 64, 8, 8), 3.0).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert image_norm(norm, x).abs().max() < 1e-2


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 64, 8, 8),
        torch.randn(2, 64, 4, 4).contiguous(memory_format=torch.channels_last),
        torch.randn(1, 64, 32, 32).contiguous(memory_format=torch.channels_last),
    ],
    ids=["planes", "few pixels", "many pixels"],
)
def test_other_images_go_through_the_layer_itself(x):
    norm = nn.GroupNorm(32, 64)
    with torch.no_grad():
        assert image_norm(norm, x).equal(norm(x))


def test_a_recorded_norm_has_gradients():
    x = torch.randn(2, 64, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    image_norm(nn.GroupNorm(32, 64), x).square().sum().backward()
    assert x.grad is not None
