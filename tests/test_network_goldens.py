"""The networks and their blocks against the official code's numbers."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from sv4d2_core.diffusion.blocks import (
    AttentionBlock,
    Embedding,
    Grid,
    scaled_dot_product,
    sinusoidal_embedding,
    to_tokens,
)
from sv4d2_core.diffusion.clip import preprocess_for_clip
from sv4d2_core.diffusion.config import UNetConfig
from sv4d2_core.diffusion.unet import UNet

TINY = {"base": 32, "head_channels": 16, "context_dim": 48, "vector_dim": 128}
UNETS = sorted(file.stem for file in (Path(__file__).parent / "data/golden").glob("unet_*.npz"))
assert len(UNETS) == 7


def per_image(emb: torch.Tensor, grid: Grid) -> Embedding:
    of_views = emb.unflatten(0, tuple(grid))[:, 0].flatten(0, 1)
    return Embedding(emb, torch.arange(len(emb)), of_views)


def tiny_unet(goldens, view_mixing, **options):
    unet = UNet(UNetConfig(view_mixing=view_mixing, **TINY), **options)
    goldens.fill(unet, "model.diffusion_model.")
    return unet.eval()


def test_timestep_embedding(goldens, close):
    arrays = goldens.arrays("timestep_embedding")
    values = torch.tensor(goldens.index["timestep_embedding"]["t"])
    for dim in (32, 256, 320, 512):
        close(sinusoidal_embedding(values, dim), arrays[f"dim{dim}"], 1e-6)


@pytest.mark.parametrize("layout", ["3d", "view"])
@pytest.mark.parametrize("budget", [1, 2**30])
def test_attention_block(goldens, close, layout, budget):
    name = f"attn_block_{layout}"
    arrays, grid = goldens.arrays(name), Grid(2, 3, 4)
    shapes = goldens.index[name]["shapes"]
    mixing = "released_3d" if layout == "3d" else "view"
    block = AttentionBlock(32, UNetConfig(mixing, **TINY), operations=nn, attention=scaled_dot_product)
    goldens.fill(block, "attn.")
    x, emb, context, cond_view = (
        goldens.randn(f"in:{name}:{key}", shapes[key]) for key in ("x", "emb", "context", "cond_view")
    )
    references = interpolate(cond_view, (4, 2), mode="bilinear", align_corners=False)
    references = to_tokens(references).unflatten(0, (2, 4))
    for scale, key in ((1, "out"), (0, "out_condview0")):
        with torch.no_grad():
            prepared = block.prepare(context)
            out = block(x.clone(), prepared, scale * references, per_image(emb, grid), grid, budget)
        close(out, arrays[key], 2e-5)
    recorded = block(x, block.prepare(context), references, per_image(emb, grid), grid, budget)
    close(recorded.detach(), arrays["out"], 2e-5)


@pytest.mark.parametrize("name", UNETS)
def test_unet(goldens, close, name):
    spec = goldens.index[name]
    x, timesteps, y, context, cond_view = goldens.unet_inputs(name).values()
    unet = tiny_unet(goldens, "released_3d" if spec["use3d"] else "view")
    arrays, seen = goldens.arrays(name), {}
    for block, module in unet.named_modules():
        module.register_forward_hook(
            lambda _m, _i, out, block=block: seen.update({block: out.detach().clone()})
        )
    with torch.no_grad():
        out = unet(x, timesteps, y, unet.prepare(context, cond_view))
    close(out, arrays["out"], 1e-4)
    names = goldens.names(name, "block_names")
    compared = 0
    for row, block in enumerate(names):
        if block in seen and seen[block].dim() == 4:
            flat = seen[block].contiguous().flatten()
            statistics = torch.stack([flat.mean(), flat.std(correction=0)])
            close(statistics, arrays["block_mean_std"][row], 1e-4)
            close(flat[:8], arrays["block_first8"][row], 1e-4)
            compared += 1
    assert compared >= 25, f"only {compared} of {names} compared"


def test_rows_shared_over_frames_change_nothing(goldens, close):
    name = "unet_view_T5V8_8x8"
    x, timesteps, y, context, cond_view = goldens.unet_inputs(name).values()
    unet = tiny_unet(goldens, "view")
    repeated = y.view(2, 1, 8, 128).expand(2, 5, 8, 128).reshape(-1, 128)
    with torch.no_grad():
        window = unet.prepare(context, cond_view)
        shared = unet(x, timesteps, y, window)
        close(unet(x, timesteps[:1].expand(80), repeated, window), shared, 1e-5)


@pytest.mark.parametrize("mixing", ["released_3d", "view", "joint_3d"])
def test_chunks_and_autograd_change_nothing(goldens, close, mixing):
    x, timesteps, y, context, cond_view = goldens.unet_inputs("unet_3d_T3V4_8x8").values()
    unet = tiny_unet(goldens, mixing)
    results = []
    for chunk_bytes in (1, None, 2**40):
        unet.chunk_bytes = chunk_bytes
        with torch.no_grad():
            results.append(unet(x, timesteps, y, unet.prepare(context, cond_view)))
    recorded = unet(x, timesteps, y, unet.prepare(context, cond_view))
    recorded.square().mean().backward()
    for other in (*results[1:], recorded.detach()):
        close(other, results[0], 1e-4)
    # The softmax over one token is constant, so its queries, keys and norm never receive a gradient.
    # In the middle block of 8 x 8 latents an image is one pixel, which the same holds for.
    one_pixel = "middle_block.1.transformer_blocks.0.attn1"
    dead = ("attn2.to_q", "attn2.to_k", "norm2", f"{one_pixel}.to_q", f"{one_pixel}.to_k")
    for key, parameter in unet.named_parameters():
        if not any(part in key for part in dead):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


def test_attention_never_sees_more_groups_than_the_limit(goldens, close, monkeypatch):
    x, timesteps, y, context, cond_view = goldens.unet_inputs("unet_3d_T3V4_8x8").values()
    attention = Mock(wraps=scaled_dot_product)
    monkeypatch.setattr("sv4d2_core.diffusion.blocks.MAX_ATTENTION_BATCH", 7)
    unet = tiny_unet(goldens, "released_3d", attention=attention)
    unet.chunk_bytes = 2**40
    with torch.no_grad():
        out = unet(x, timesteps, y, unet.prepare(context, cond_view))
    close(out, goldens.arrays("unet_3d_T3V4_8x8")["out"], 1e-4)
    assert max(len(call.args[0]) for call in attention.call_args_list) == 7


def test_joint_mixing_attends_over_all_pixels_of_all_views(close):
    torch.manual_seed(0)
    pixels, width = 4, 32
    block = AttentionBlock(width, UNetConfig("joint_3d", **TINY), operations=nn, attention=scaled_dot_product)
    tokens, context = torch.randn(1, 2, 3, pixels, width), torch.randn(1, 2, 48)
    views = torch.randn(3, width)
    # As the official mixing of views would, if every pixel were a view of its own.
    single = AttentionBlock(width, UNetConfig("view", **TINY), operations=nn, attention=scaled_dot_product)
    single.load_state_dict(block.state_dict())
    with torch.no_grad():
        prepared = block.prepare(context)
        alone, of_pixels = tokens.view(1, 2, 3 * pixels, 1, width), views.repeat_interleave(pixels, dim=0)
        expected = single._mix_views(alone.clone(), prepared, of_pixels, 1).view_as(tokens)
        actual = block._mix_views(tokens.clone(), prepared, views, 1)
    close(actual, expected, 1e-5)
    assert (actual - tokens).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(goldens, dtype):
    x, timesteps, y, context, cond_view = goldens.unet_inputs("unet_view_T3V4_16x8").values()
    unet = tiny_unet(goldens, "view")
    with torch.no_grad():
        expected = unet(x, timesteps, y, unet.prepare(context, cond_view))
        half = unet.to(dtype)
        window = half.prepare(context.to(dtype), cond_view.to(dtype))
        actual = half(x.to(dtype), timesteps, y.to(dtype), window)
    assert actual.dtype == dtype
    error = (actual.float() - expected).abs().mean() / expected.abs().mean()
    assert error < (0.05 if dtype == torch.bfloat16 else 0.01), error.item()


def test_vae(goldens, close, tiny_model):
    model, arrays = tiny_model("sv4d2"), goldens.arrays("vae")
    noise = goldens.randn("in:vae:img", (2, 3, 8, 8))
    image = torch.tanh(interpolate(noise, (64, 64), mode="bilinear", align_corners=False))
    n, _, height, width = arrays["decoded"].shape
    scaled = 0.18215 * goldens.randn("in:vae:z", (n, 4, height // 8, width // 8))
    encoder = model.frame_encoder
    with torch.no_grad():
        close(encoder(image), arrays["latent"], 2e-5)
        close(encoder.quant_conv(encoder.encoder(image)), arrays["moments"], 2e-5)
        close(model.decoder(scaled / 0.18215), arrays["decoded"], 2e-5)


def clip_image(goldens, name, height, width):
    noise = goldens.randn(name, (1, 3, height // 4, width // 4))
    return torch.tanh(0.7 * interpolate(noise, (height, width), mode="bicubic", align_corners=False))


@pytest.mark.parametrize("height,width", [(64, 64), (576, 576), (320, 256), (224, 224)])
def test_clip_resize(goldens, close, height, width):
    resized = preprocess_for_clip(clip_image(goldens, f"in:clip:img{height}x{width}", height, width))
    arrays, name = goldens.arrays("clip"), f"pre_{height}x{width}"
    close(resized[0, :, ::3, ::3], arrays[f"{name}_s3"], 2e-5)
    close(resized[0, :, -1], arrays[f"{name}_lastrow"], 2e-5)
    close(resized[0, :, :, -1], arrays[f"{name}_lastcol"], 2e-5)


def test_clip_embeddings(goldens, close, tiny_model):
    images = torch.cat([clip_image(goldens, f"in:clip:emb{i}", 64, 64) for i in range(3)])
    with torch.no_grad():
        close(tiny_model("sv4d2").clip(images), goldens.arrays("clip")["embeddings"], 2e-5)
