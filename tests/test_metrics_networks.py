"""Metrics whose networks come from local files: LPIPS, CLIP-S, I3D."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sv4d2_core.__main__ import main
from sv4d2_core.diffusion.checkpoint import load_clip_vision
from sv4d2_core.metrics import i3d
from sv4d2_core.metrics.i3d import I3D, convert_i3d
from sv4d2_core.metrics.image import LPIPS
from sv4d2_core.stored import write_tensors

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


class Unit(nn.Module):
    """A convolution, its normalisation and ReLU, padded for lengths that are multiples of the stride."""

    def __init__(self, given: int, made: int, side: int, stride: int) -> None:
        super().__init__()
        total = max(side - stride, 0)
        self.pad: list[int] = [total // 2, total - total // 2] * 3
        self.conv3d = nn.Conv3d(given, made, side, stride, bias=False)
        self.batch3d = nn.BatchNorm3d(made)

    def forward(self, x: Tensor) -> Tensor:
        return self.batch3d(self.conv3d(nn.functional.pad(x, self.pad))).relu()


class Mixed(nn.Module):
    def __init__(self, given: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        one, wide_in, wide, narrow_in, narrow, pooled = widths
        self.branch_0 = Unit(given, one, 1, 1)
        self.branch_1 = nn.Sequential(Unit(given, wide_in, 1, 1), Unit(wide_in, wide, 3, 1))
        self.branch_2 = nn.Sequential(Unit(given, narrow_in, 1, 1), Unit(narrow_in, narrow, 3, 1))
        self.branch_3 = nn.Sequential(nn.MaxPool3d(3, 1, 1), Unit(given, pooled, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch_0(x), self.branch_1(x), self.branch_2(x), self.branch_3(x)], dim=1)


class PublicI3D(nn.Module):
    """The network written a second time, of layers with other names, as a public file would be."""

    def __init__(self, stem: tuple[int, ...], blocks: dict[str, tuple[int, ...]], classes: int) -> None:
        super().__init__()
        first, second, width = stem
        edge = nn.ConstantPad3d((0, 1, 0, 1, 0, 0), 0.0)
        pool = nn.Sequential(edge, nn.MaxPool3d((1, 3, 3), (1, 2, 2)))
        layers = [Unit(3, first, 7, 2), pool, Unit(first, second, 1, 1), Unit(second, width, 3, 1), pool]
        for name, widths in blocks.items():
            if name == "4b":
                edge = nn.ConstantPad3d((0, 1, 0, 1, 0, 1), 0.0)
                layers.append(nn.Sequential(edge, nn.MaxPool3d(3, 2, ceil_mode=True)))
            if name == "5b":
                layers.append(nn.MaxPool3d(2, 2, ceil_mode=True))
            layers.append(Mixed(width, widths))
            width = widths[0] + widths[2] + widths[4] + widths[5]
        self.layers = nn.Sequential(*layers, nn.AvgPool3d((2, 7, 7), 1))
        self.conv3d_0c_1x1 = nn.Conv3d(width, classes, 1)

    def forward(
        self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> Tensor:
        assert not rescale and not resize and return_features
        return self.conv3d_0c_1x1(self.layers(x)).mean([2, 3, 4])


SMALL = (4, 4, 6), {name: tuple(n // 16 + 1 for n in widths) for name, widths in i3d._BLOCKS.items()}, 5


def script(network: nn.Module, path: Path) -> Path:
    torch.jit.script(network.eval()).save(str(path))
    return path


@pytest.fixture(scope="module")
def public_file(tmp_path_factory) -> Path:
    """Return a TorchScript file of a narrow I3D with random weights and the statistics of noise."""
    torch.manual_seed(0)
    network = PublicI3D(*SMALL)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():
        network(torch.rand(1, 3, 17, 224, 224), rescale=False, resize=False, return_features=True)
    return script(network, tmp_path_factory.mktemp("i3d") / "i3d_torchscript.pt")


@pytest.fixture
def program(public_file, monkeypatch) -> Path:
    for name, value in zip(("_STEM", "_BLOCKS", "_CLASSES"), SMALL, strict=True):
        monkeypatch.setattr(i3d, name, value)
    return public_file


pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def test_i3d_as_data_gives_the_features_of_the_program(program, tmp_path, caplog):
    target = convert_i3d(program, tmp_path / "i3d.safetensors")
    assert "Running the code in" in caplog.text and "TorchScript is a program" in caplog.text
    clips = torch.rand(2, 11, 20, 24, 3, generator=torch.Generator().manual_seed(1))
    images = nn.functional.interpolate(clips.flatten(0, 1).movedim(-1, 1), (224, 224), mode="bilinear")
    videos = (images.unflatten(0, (2, 11)) * 2 - 1).movedim(2, 1)
    with torch.no_grad():
        wanted = torch.jit.load(str(program))(videos, rescale=False, resize=False, return_features=True)
    assert I3D(target)(clips) == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    with pytest.raises(ValueError, match="at least 10 images for I3D; got 9"):
        I3D(target)(clips[:, :9])
    with pytest.raises(FileExistsError, match="exists already"):
        convert_i3d(program, target)


@pytest.mark.parametrize("length", range(9, 18))
def test_padding_is_that_of_tensorflow(length):
    """As many outputs as strides begin within the input."""
    for side, stride in ((7, 2), (3, 2), (2, 2), (3, 1), (1, 1)):
        padded = i3d._padded(torch.zeros(1, 1, length, 8, 8), (side,) * 3, (stride,) * 3, False)
        assert len(range(0, padded.shape[2] - side + 1, stride)) == -(-length // stride)


def test_the_paper_describes_twelve_million_weights():
    n_weights = sum(math.prod(shape) for shape in i3d._expected_tensors().values())
    assert len(i3d._shapes()) == 58 and i3d._shapes()["logits"] == (400, 1024, 1, 1, 1)
    # With a scale and a shift per channel of each normalisation, of which the folded form keeps the shift.
    channels = sum(shape[0] for name, shape in i3d._shapes().items() if name != "logits")
    assert n_weights + channels == 12_697_264


def test_programs_and_other_files_are_not_read_as_i3d(program, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*convert-i3d --trust-code i3d_torchscript\.pt"):
        I3D(tmp_path / "missing.safetensors")
    with pytest.raises(ValueError, match="is TorchScript. TorchScript is a program.*convert-i3d"):
        I3D(program)
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(ValueError, match=r"text\.pt cannot be read"):
        I3D(tmp_path / "text.pt")
    for change, message in (
        (lambda w: w.popitem(), "holds others"),
        (lambda w: w["1a.bias"].fill_(math.nan), "NaN"),
    ):
        weights = {key: torch.zeros(shape) for key, shape in i3d._expected_tensors().items()}
        change(weights)
        write_tensors(tmp_path / "bad.safetensors", "sv4d2.i3d", weights, {"fixed_padding": True})
        with pytest.raises(ValueError, match=message):
            I3D(tmp_path / "bad.safetensors")


class Mean(nn.Module):
    def forward(
        self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> Tensor:
        return x.mean()[None, None]


def test_what_is_not_i3d_is_not_converted(program, tmp_path, monkeypatch):
    target, text = tmp_path / "out.safetensors", tmp_path / "text.pt"
    text.write_text("no network")
    for source, message in (
        (text, "Expected the TorchScript network I3D"),
        (script(nn.Identity(), tmp_path / "identity.pt"), "Expected the TorchScript network I3D"),
        (script(Mean(), tmp_path / "mean.pt"), r"58 convolutions .* has 0, of which the first 0 fit"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_i3d(source, target)
    monkeypatch.setattr(i3d, "_POOLED_BEFORE", {"4c": 3, "5b": 2})
    with pytest.raises(ValueError, match="computes what I3D's description says"):
        convert_i3d(program, target)
    assert not target.exists()


def test_the_command_says_the_risk_in_its_help_and_converts(program, tmp_path, capsys):
    out = tmp_path / "i3d.safetensors"
    assert main(["convert-i3d", "--trust-code", str(program), "--out", str(out)]) == 0
    assert "TorchScript is a program" in capsys.readouterr().err and I3D(out)
    with pytest.raises(SystemExit):
        main(["convert-i3d", "--help"])
    assert "TorchScript is a program" in " ".join(capsys.readouterr().out.split())
