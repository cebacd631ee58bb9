"""Metrics whose networks come from local files: LPIPS, CLIP-S, I3D."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sv4d2_core.diffusion.checkpoint import load_clip_vision
from sv4d2_core.metrics.frechet import I3D
from sv4d2_core.metrics.image import LPIPS

# Of AlexNet's layers: stage, index, channels in and out, side of the kernel.
ALEXNET = (
    (1, 0, 3, 64, 11),
    (2, 3, 64, 192, 5),
    (3, 6, 192, 384, 3),
    (4, 8, 384, 256, 3),
    (5, 10, 256, 256, 3),
)
LPIPS_SHAPES = {f"lin{stage - 1}.model.1.weight": (1, n, 1, 1) for stage, _, _, n, _ in ALEXNET}
for stage, index, n_in, n_out, side in ALEXNET:
    LPIPS_SHAPES[f"net.slice{stage}.{index}.bias"] = (n_out,)
    LPIPS_SHAPES[f"net.slice{stage}.{index}.weight"] = (n_out, n_in, side, side)
CLIP_LAYER = {
    **{f"layer_norm{i}.{kind}": (128,) for i in (1, 2) for kind in ("weight", "bias")},
    **{f"self_attn.{name}_proj.bias": (128,) for name in ("q", "k", "v", "out")},
    **{f"self_attn.{name}_proj.weight": (128, 128) for name in ("q", "k", "v", "out")},
    **{"mlp.fc1.bias": (256,), "mlp.fc1.weight": (256, 128)},
    **{"mlp.fc2.bias": (128,), "mlp.fc2.weight": (128, 256)},
}
CLIP_SHAPES = {
    "vision_model.embeddings.class_embedding": (128,),
    "vision_model.embeddings.patch_embedding.weight": (128, 3, 16, 16),
    "vision_model.embeddings.position_embedding.weight": (10, 128),
    **{f"vision_model.encoder.layers.{n}.{key}": shape for n in (0, 1) for key, shape in CLIP_LAYER.items()},
    "vision_model.post_layernorm.bias": (128,),
    "vision_model.post_layernorm.weight": (128,),
    "vision_model.pre_layrnorm.bias": (128,),
    "vision_model.pre_layrnorm.weight": (128,),
    "visual_projection.weight": (32, 128),
}


def lpips_weights() -> tuple[dict[str, Tensor], torch.Generator]:
    generator = torch.Generator().manual_seed(11)
    weights = {}
    for key, shape in LPIPS_SHAPES.items():
        values = torch.randn(shape, generator=generator)
        weights[key] = values.abs() if "lin" in key else 0.05 * values
    return weights, generator


@pytest.fixture(scope="module")
def lpips_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lpips") / "lpips_alex.safetensors"
    save_file(lpips_weights()[0], path)
    return path


def test_lpips_gives_the_packages_numbers(lpips_file):
    """Recorded from the lpips package (0.1.4) with these random weights and images."""
    _, generator = lpips_weights()
    a, b = (torch.rand(2, 3, 48, 40, generator=generator).permute(0, 2, 3, 1) for _ in range(2))
    lpips = LPIPS(lpips_file)
    assert lpips.name == "AlexNet"
    assert lpips(a, b).tolist() == pytest.approx([1.5068767070770264, 1.5436179637908936], abs=1e-5)
    assert lpips(a, a).tolist() == [0, 0]


def test_lpips_reads_heads_under_either_name_and_the_vgg_backbone(tmp_path, lpips_file):
    weights, _ = lpips_weights()
    other = {key.replace("lin", "lins.", 1) if "lin" in key else key: v for key, v in weights.items()}
    save_file(other, tmp_path / "other.safetensors")
    a, b = torch.rand(2, 1, 40, 40, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(LPIPS(tmp_path / "other.safetensors")(a, b), LPIPS(lpips_file)(a, b))
    save_file(vgg_weights(), tmp_path / "vgg.safetensors")
    vgg = LPIPS(tmp_path / "vgg.safetensors")
    assert vgg.name == "VGG-16"
    # Derived layer by layer with torch.nn's functions from these weights.
    assert vgg(a, b).item() == pytest.approx(1.5630906410515308, rel=1e-4)


def vgg_weights() -> dict[str, Tensor]:
    """Return VGG-16's layers with an eighth of their channels, and heads of equal weight."""
    weights, channels = {}, 3
    generator = torch.Generator().manual_seed(3)
    stages = (((0, 2), 8), ((5, 7), 16), ((10, 12, 14), 32), ((17, 19, 21), 64), ((24, 26, 28), 64))
    for stage, (indices, width) in enumerate(stages):
        for index in indices:
            key = f"net.slice{stage + 1}.{index}"
            weights[f"{key}.weight"] = 0.2 * torch.randn(width, channels, 3, 3, generator=generator)
            weights[f"{key}.bias"] = 0.1 * torch.randn(width, generator=generator)
            channels = width
        weights[f"lin{stage}.model.1.weight"] = torch.ones(1, width, 1, 1)
    return weights


def test_files_and_images_that_lpips_cannot_take_are_refused(tmp_path, lpips_file):
    with pytest.raises(ValueError, match="at least 32 x 32 pixels for LPIPS; got 31 x 40"):
        LPIPS(lpips_file)(*torch.rand(2, 1, 40, 31, 3))
    with pytest.raises(FileNotFoundError, match="no file .*missing.safetensors.*save_model"):
        LPIPS(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(ValueError, match="Expected LPIPS weights as safetensors"):
        LPIPS(tmp_path / "text.safetensors")
    save_file({"other.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"holds 1 other tensors, such as other\.weight"):
        LPIPS(tmp_path / "other.safetensors")


def clip_file(
    folder: Path, change: Callable[[dict[str, Tensor]], None] = lambda _: None
) -> tuple[Path, Tensor]:
    """Return a CLIP vision file with random weights, and images [2, 3, 48, 48] in -1..1."""
    generator = torch.Generator().manual_seed(5)
    weights = {key: 0.1 * torch.randn(CLIP_SHAPES[key], generator=generator) for key in sorted(CLIP_SHAPES)}
    images = torch.rand(2, 3, 48, 48, generator=generator) * 2 - 1
    change(weights)
    save_file(weights, folder / "clip.safetensors")
    return folder / "clip.safetensors", images


def test_a_clip_vision_file_gives_its_numbers(tmp_path):
    """Recorded from ComfyUI's CLIP vision model with these weights and images (quick GELU)."""
    path, images = clip_file(tmp_path)
    tower = load_clip_vision(path)
    assert tower.config.quick_gelu and tower.config.layers == 2 and tower.config.image_size == 48
    with torch.no_grad():
        embeddings = tower(images)
    expected = torch.tensor([[-0.1875, 0.1427, 0.0938, 0.1536], [-0.1837, 0.1527, 0.0803, 0.1440]])
    assert torch.allclose(embeddings[:, :4], expected, atol=1e-4)


def test_the_tower_of_a_checkpoint_is_found(micro_checkpoint, micro_model):
    tower = load_clip_vision(micro_checkpoint)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert torch.equal(tower(image), micro_model.clip(image))


def test_an_incomplete_or_foreign_clip_file_is_refused(tmp_path):
    path, _ = clip_file(tmp_path, lambda weights: weights.pop("visual_projection.weight"))
    with pytest.raises(ValueError, match="lacks proj"):
        load_clip_vision(path)
    layer = "vision_model.encoder.layers.1.mlp.fc1.bias"
    path, _ = clip_file(tmp_path, lambda weights: weights.update({layer: torch.zeros(7)}))
    with pytest.raises(ValueError, match=r"no complete CLIP image tower: .*another shape"):
        load_clip_vision(path)
    save_file({"other.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no CLIP image tower"):
        load_clip_vision(tmp_path / "other.safetensors")


class FakeI3D(nn.Module):
    """Answers as the real network does, with numbers that tell what it was given."""

    def forward(
        self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> Tensor:
        assert not rescale and not resize and return_features
        assert x.shape[1] == 3 and x.shape[3] == 224 and x.shape[4] == 224
        return torch.stack([x.amin(), x.amax(), x[0, 0].mean(), torch.tensor(float(x.shape[2]))])[None]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_i3d_gets_clips_as_it_wants_them(tmp_path):
    torch.jit.script(FakeI3D()).save(str(tmp_path / "i3d.pt"))
    clips = torch.zeros(2, 9, 20, 20, 3)
    clips[0, :, 5:15, :, 0] = 1.0
    features = I3D(tmp_path / "i3d.pt")(clips)
    assert torch.allclose(features, torch.tensor([[-1.0, 1.0, 0.0, 9.0], [-1.0, -1.0, -1.0, 9.0]]), atol=1e-2)
    with pytest.raises(ValueError, match="at least 9 images for I3D; got 8"):
        I3D(tmp_path / "i3d.pt")(clips[:, :8])


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_file_that_is_not_i3d_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*i3d_torchscript.pt"):
        I3D(tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(ValueError, match="Expected a TorchScript network"):
        I3D(tmp_path / "text.pt")
    torch.jit.script(nn.Identity()).save(str(tmp_path / "other.pt"))
    with pytest.raises(ValueError, match="The I3D file cannot be used"):
        I3D(tmp_path / "other.pt")(torch.zeros(1, 9, 8, 8, 3))
