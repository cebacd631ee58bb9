"""Shared by all tests: one thread, and access to the recorded golden numbers."""

import functools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image, ImageDraw
from random_checkpoint import write_random_checkpoint
from safetensors.torch import load_file, save_file

from sv4d2_core.diffusion.checkpoint import build_networks, load_checkpoint
from sv4d2_core.diffusion.config import (
    OFFICIAL_VARIANTS,
    CLIPVisionConfig,
    ModelConfig,
    UNetConfig,
    VAEConfig,
)
from sv4d2_core.diffusion.layout import PREFIXES
from sv4d2_core.diffusion.model import Model
from sv4d2_core.diffusion.safetensors_stream import read_header
from tests.data import generator
from tests.host import media

DATA = Path(__file__).parent / "data"
WEIGHT_SEED, INPUT_SEED = 1001, 2001

torch.set_num_threads(1)
torch.set_flush_denormal(True)
# Programs that tests start find the pack, and use one thread, too.
os.environ |= {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the tests against real ComfyUIs recorded, whichever process ran them."""
    reports = [report for kind in terminalreporter.stats.values() for report in kind]
    calls = [report for report in reports if getattr(report, "when", None) == "call"]
    recorded = [pair for report in calls for pair in report.user_properties if pair[0].startswith("ComfyUI")]
    for name in dict(recorded):
        text = "\n".join(line for host, line in recorded if host == name)
        totals: Counter[str] = Counter()
        for n, kind in re.findall(r"(\d+) (passed|failed|error|skipped)", text):
            totals[kind] += int(n)
        terminalreporter.section(f"{name}: {', '.join(f'{n} {kind}' for kind, n in totals.items())}")
        terminalreporter.write_line(text)


class Goldens:
    """The recorded numbers of the official code, and the weights and inputs they were made with."""

    index = json.loads((DATA / "golden/index.json").read_text())
    windows = json.loads((DATA / "golden/windows.json").read_text())
    manifest = json.loads((DATA / "tiny_manifest.json").read_text())

    def arrays(self, name: str) -> dict[str, torch.Tensor]:
        """Return the arrays of one golden file as tensors (arrays of names are left out)."""
        with np.load(DATA / "golden" / f"{name}.npz") as file:
            return {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind != "U"}

    def names(self, name: str, key: str) -> list[str]:
        """Return an array of names of one golden file."""
        with np.load(DATA / "golden" / f"{name}.npz") as file:
            return [str(x) for x in file[key]]

    def randn(self, name: str, shape: tuple[int, ...] | list[int]) -> torch.Tensor:
        """Return the drawn input ``name``."""
        return torch.from_numpy(generator.randn(INPUT_SEED, name, shape))

    def weight(self, key: str, shape: tuple[int, ...] | list[int]) -> torch.Tensor:
        """Return the drawn weight ``key``."""
        return torch.from_numpy(np.asarray(generator.weight(WEIGHT_SEED, key, shape)))

    def unet_inputs(self, name: str) -> dict[str, torch.Tensor]:
        """Return the inputs of one UNet golden: x, timesteps, y, context, cond_view."""
        spec = self.index[name]
        b, t, v, h, w = (spec[key] for key in ("b", "T", "V", "h", "w"))
        rows = (b * t * v, 128) if spec.get("yvar", False) else (b, v, 128)
        y = self.randn(f"in:{name}:y", rows).flatten(0, -2)
        return {
            "x": self.randn(f"in:{name}:x", (b * t * v, 8, h, w)),
            "timesteps": torch.full((len(y),), 0.25 * math.log(spec["sigma"])),
            "y": y,
            "context": self.randn(f"in:{name}:context", (b, t, 48)),
            "cond_view": spec["cv"] * self.randn(f"in:{name}:cond_view", (b * v, 4, h, w)),
        }

    def fill(self, module: torch.nn.Module, prefix: str) -> None:
        """Set every parameter of ``module`` to the drawn weight of its full key."""
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(self.weight(prefix + name, tuple(parameter.shape)))


@pytest.fixture(scope="session")
def goldens():
    return Goldens()


@pytest.fixture
def close():
    """Return a comparison of two tensors by their largest absolute difference."""

    def compare(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
        assert actual.shape == expected.shape, (actual.shape, expected.shape)
        error = (actual.double() - expected.double()).abs().max().item()
        assert error <= tolerance, f"max difference {error:.3g} > {tolerance:.3g}"

    return compare


@pytest.fixture(scope="session")
def tiny_model(goldens):
    """Return a maker of the goldens' tiny model, with the drawn weights, for a variant."""

    @functools.cache
    def make(variant: str) -> Model:
        official, vae = OFFICIAL_VARIANTS[variant], VAEConfig(base=32)
        unet = replace(official.unet, base=32, head_channels=16, context_dim=48, vector_dim=128)
        clip = CLIPVisionConfig(width=64, layers=2, head_width=32, mlp_width=256, embed_dim=48)
        sizes = {"vector_dims": (32, 48, 48), "size": 64, "trained": False}
        config = replace(official, unet=unet, vae=vae, clip=clip, **sizes)
        networks = build_networks(config)
        for part, network in networks.items():
            goldens.fill(network.to_empty(device="cpu"), PREFIXES[part])
        return Model(config, **networks)

    return make


@pytest.fixture(scope="session")
def full_checkpoint(tmp_path_factory: pytest.TempPathFactory, training_config: ModelConfig) -> Path:
    """Return an untrained file of the smallest sizes in the full official layout, with its unread parts."""
    path = tmp_path_factory.mktemp("full") / "model.safetensors"
    write_random_checkpoint(path, training_config, seed=7)
    tensors, metadata = load_file(path), read_header(path).metadata
    del metadata["sv4d2.shared_encoder"]
    encoder, decoder = (
        {key.removeprefix(prefix): x for key, x in tensors.items() if key.startswith(prefix)}
        for prefix in ("conditioner.embedders.1.encoder.", "first_stage_model.")
    )
    for number in (1, 4, 5):
        prefix = f"conditioner.embedders.{number}.encoder."
        tensors |= {prefix + key: x.clone() for key, x in {**encoder, **decoder}.items()}
    tensors["conditioner.embedders.0.open_clip.model.logit_scale"] = torch.tensor(4.6)
    save_file(tensors, path, metadata)
    return path


@pytest.fixture(scope="session")
def micro_checkpoint(tmp_path_factory):
    """Return a file of an untrained model with T = 3 and V = 2."""
    path = tmp_path_factory.mktemp("checkpoint") / "micro.safetensors"
    return media.write_micro_checkpoint(path)


@pytest.fixture(scope="session")
def micro_model(micro_checkpoint):
    return load_checkpoint(micro_checkpoint)


@pytest.fixture(scope="session")
def contents() -> Callable[..., dict[str, bytes]]:
    """Return a reader of a folder's files by their places, but of `run.json`, which holds times."""

    def read(folder: Path, pattern: str = "*") -> dict[str, bytes]:
        files = (path for path in sorted(folder.rglob(pattern)) if path.is_file() and path.name != "run.json")
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return read


@pytest.fixture(scope="session")
def disc_clip() -> Callable[..., Path]:
    """Return a writer of a clip: a folder of RGBA frames, 48 x 40, of a disc that moves."""

    def write(folder: Path, frames: int, blue: int = 40) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        y, x = np.mgrid[0:40, 0:48]
        for t in range(frames):
            picture = np.zeros((40, 48, 4), np.uint8)
            picture[(x - 18 - 2 * t) ** 2 + (y - 20) ** 2 <= 81] = (200, 30 * t, blue, 255)
            Image.fromarray(picture).save(folder / f"{t}.png")
        return folder

    return write


@pytest.fixture(scope="session")
def training_config() -> ModelConfig:
    """Return the sizes of the smallest model that has every part and can be trained: T = V = 2, 8 pixels."""
    return ModelConfig(
        n_frames=2,
        n_views=2,
        vector_dims=(8, 12, 12),
        size=8,
        sigma_min=0.01,
        sigma_max=80.0,
        scale_factor=1.0,
        guidance="constant",
        cfg_max=1.5,
        unet=UNetConfig("joint_3d", 32, (1,), 1, 1, head_channels=16, context_dim=16, vector_dim=32),
        vae=VAEConfig(base=32, multipliers=(1, 1), res_blocks=1),
        clip=CLIPVisionConfig(
            width=32, layers=1, head_width=16, mlp_width=32, patch=8, image_size=16, embed_dim=16
        ),
    )


@pytest.fixture
def drawn_text(monkeypatch):
    """Return the texts that matplotlib draws during the test."""
    words: list[str] = []
    draw = Text.draw

    def recording(self, renderer):
        if self.get_visible() and self.get_text():
            words.append(self.get_text())
        return draw(self, renderer)

    monkeypatch.setattr(Text, "draw", recording)
    return words


@pytest.fixture
def written_text(monkeypatch) -> list[str]:
    """Return the texts that Pillow writes into pictures during the test."""
    words: list[str] = []
    text = ImageDraw.ImageDraw.text

    def recording(self, position, string, *args, **kwargs):
        words.append(string)
        return text(self, position, string, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", recording)
    return words
