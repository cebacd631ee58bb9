"""The autoencoder and the image tower against the official code's numbers."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from sv4d2_core.diffusion.clip import CLIPVision, preprocess_for_clip
from sv4d2_core.diffusion.config import CLIPVisionConfig, VAEConfig
from sv4d2_core.diffusion.vae import VAEDecoder, VAEEncoder

TINY_CLIP = CLIPVisionConfig(width=64, layers=2, head_width=32, mlp_width=256, embed_dim=48)


def clip_image(goldens, name, height, width):
    noise = goldens.randn(name, (1, 3, height // 4, width // 4))
    return torch.tanh(0.7 * interpolate(noise, (height, width), mode="bicubic", align_corners=False))


def test_vae_encoder(goldens, close):
    encoder = VAEEncoder(VAEConfig(base=32))
    goldens.fill(encoder, "conditioner.embedders.1.encoder.")
    noise = goldens.randn("in:vae:img", (2, 3, 8, 8))
    image = torch.tanh(interpolate(noise, (64, 64), mode="bilinear", align_corners=False))
    arrays = goldens.arrays("vae")
    with torch.no_grad():
        close(encoder(image), arrays["latent"], 2e-5)
        close(encoder.quant_conv(encoder.encoder(image)), arrays["moments"], 2e-5)


def test_vae_decoder(goldens, close):
    decoder = VAEDecoder(VAEConfig(base=32))
    goldens.fill(decoder, "first_stage_model.decoder.")
    expected = goldens.arrays("vae")["decoded"]
    n, _, height, width = expected.shape
    scaled = 0.18215 * goldens.randn("in:vae:z", (n, 4, height // 8, width // 8))
    with torch.no_grad():
        close(decoder(scaled / 0.18215), expected, 2e-5)


@pytest.mark.parametrize("height,width", [(64, 64), (576, 576), (320, 256), (224, 224)])
def test_clip_resize(goldens, close, height, width):
    resized = preprocess_for_clip(clip_image(goldens, f"in:clip:img{height}x{width}", height, width))
    arrays, name = goldens.arrays("clip"), f"pre_{height}x{width}"
    close(resized[0, :, ::3, ::3], arrays[f"{name}_s3"], 2e-5)
    close(resized[0, :, -1], arrays[f"{name}_lastrow"], 2e-5)
    close(resized[0, :, :, -1], arrays[f"{name}_lastcol"], 2e-5)


def test_clip_embeddings(goldens, close):
    tower = CLIPVision(TINY_CLIP)
    goldens.fill(tower, "conditioner.embedders.0.open_clip.model.visual.")
    images = torch.cat([clip_image(goldens, f"in:clip:emb{i}", 64, 64) for i in range(3)])
    with torch.no_grad():
        close(tower(images), goldens.arrays("clip")["embeddings"], 2e-5)
