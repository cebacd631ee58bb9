"""How trainings are judged: against baselines, on objects that no training sees, framed like its data."""

import math
from dataclasses import replace

import numpy as np
import pytest
import tiny_scores
import torch
from torch import Tensor

from sv4d2_core.cameras import Cameras
from sv4d2_core.commands.train import sample_sheet
from sv4d2_core.diffusion.config import ModelConfig
from sv4d2_core.diffusion.model import SamplingJob
from sv4d2_core.training import scenes as procedural
from sv4d2_core.training.scenes import ProceduralScenes, held_out_views
from sv4d2_core.views import ViewGrid
from sv4d2_core.world.body import framed, parts_at, surface_points
from sv4d2_core.world.render import render_parts
from sv4d2_core.world.suite import HELD_OUT_OBJECTS, TRAINING_SEEDS, draw_object


@pytest.fixture
def config(training_config) -> ModelConfig:
    return replace(training_config, size=16)


def truth(config: ModelConfig, number: int = 0) -> ViewGrid:
    return held_out_views(number, config.n_frames, Cameras.default(config.n_views), config.size, "animals")


class Seer:
    """A backend that knows the true views; without a shift it makes exactly these."""

    def __init__(self, config: ModelConfig, shift: float = 0.0) -> None:
        self.config = config
        self.shift = shift
        self.seen = 0
        self.references: list[bool] = []

    def embed(self, images: Tensor) -> Tensor:
        grids = [truth(self.config, number) for number in range(2)]
        self.seen = next(k for k, grid in enumerate(grids) if torch.equal(grid.images[:, 0], images))
        return images.new_zeros(len(images), self.config.clip.embed_dim)

    def encode(self, images: Tensor, role: str) -> Tensor:
        side = self.config.size // self.config.latent_factor
        return torch.full((len(images), 4, side, side), float(role == "views"))

    def denoise(self, job: SamplingJob) -> Tensor:
        self.references.append(bool(job.conditioning.reference_latents.any()))
        return torch.zeros_like(job.noise)

    def decode(self, latents: Tensor) -> Tensor:
        views = truth(self.config, self.seen).images[:, 1:].flatten(0, 1)
        return (views - self.shift).clamp(0, 1)


def test_the_model_is_scored_against_baselines_that_do_not_depend_on_it(config):
    backends = Seer(config), Seer(config, 0.5)
    good, bad = (tiny_scores.score_model(backend, 2, steps=1) for backend in backends)
    assert backends[0].references == [False, True] * 2 and tuple(good) == tiny_scores.METHODS
    assert good["model"]["psnr"].tolist() == good["model"]["foreground_psnr"].tolist() == [math.inf] * 2
    assert good["model"]["iou"].tolist() == [1.0, 1.0]
    for method in ("copy", "white"):
        for name in tiny_scores.COLUMNS[:4]:  # a seam takes two windows
            values = good[method][name]
            assert torch.equal(values, bad[method][name]) and bool(values.isfinite().all())
            assert values.shape == (2,)
    assert torch.equal(good["white"]["iou"], torch.zeros(2).double())
    assert (good["white"]["foreground_psnr"] < good["white"]["psnr"]).all()
    assert (good["copy"]["iou"] > 0.2).all() and (good["copy"]["iou"] < 1).all()
    assert (bad["model"]["psnr"] < good["model"]["psnr"]).all()
    assert (bad["model"]["foreground_psnr"] < 12).all()


def test_changes_over_time_are_compared_with_the_true_ones_and_at_seams_with_the_others(config):
    moving = truth(config)
    novel = moving.images[:, 1:]
    assert tiny_scores.temporal_error(novel, moving) == 0
    assert tiny_scores.temporal_error(novel - 0.25, moving) == pytest.approx(0, abs=1e-6)
    assert tiny_scores.temporal_error(torch.ones_like(novel), moving) > 1e-3
    levels = torch.tensor([0.0, 0.1, 0.2, 0.5, 0.6])[:, None, None, None, None].expand(5, 2, 4, 4, 3)
    assert tiny_scores.seam_jump(levels, [3]) == pytest.approx(3)
    assert math.isnan(tiny_scores.seam_jump(levels, []))


def test_no_training_sees_a_held_out_object(monkeypatch):
    drawn: list[int] = []

    def recorded(seed: int, _family: str):
        drawn.append(seed)
        return draw_object(0)

    monkeypatch.setattr(procedural, "draw_object", recorded)
    for seed in (0, 1, 2**31, 2**32 - 1):
        scenes = ProceduralScenes(seed, size=2, n_cameras=2, n_frames=1)
        for index in (0, 1, 2999):
            scenes.scene(index)
    assert len(set(drawn)) == len(drawn) == 12
    assert all(seed in TRAINING_SEEDS for seed in drawn) and not set(drawn) & set(HELD_OUT_OBJECTS)


def test_procedural_cameras_are_rings_or_anywhere():
    scenes = ProceduralScenes(0, size=2, n_cameras=12, n_frames=1)
    grids = [scenes.scene(k) for k in range(12)]
    even = [tuple(30.0 * k for k in range(12)) == grid.cameras.azimuths_deg for grid in grids]
    flat = [set(grid.cameras.elevations_deg) == {0.0} for grid in grids]
    assert even == flat and 3 <= sum(even) <= 11
    heights = [e + g.cameras.input_elevation_deg for g in grids for e in g.cameras.elevations_deg]
    assert min(heights) >= -10.01 and max(heights) <= 40.01 and max(heights) - min(heights) > 30


@pytest.mark.parametrize("seed", [3, HELD_OUT_OBJECTS[5]])
@pytest.mark.parametrize("fill", [0.6, 0.9])
def test_a_framed_object_is_centred_and_fills_what_it_should(seed, fill):
    size, times = 96, torch.linspace(0.3, 0.6, 2)
    cameras = Cameras((0, 10, -15), (0, 100, 220), input_elevation_deg=20.0)
    parts = framed(parts_at(draw_object(seed), times), cameras, fill)
    shown = render_parts(parts, cameras, size).mask > 0.02  # [T, V + 1, H, W]
    rows, columns = shown.nonzero()[:, 2:].double().add(0.5).div(size / 2).sub(1).T
    reach = max(float(rows.abs().max()), float(columns.abs().max()))
    assert reach == pytest.approx(fill, abs=0.04)
    points = surface_points(parts)
    assert torch.allclose(points.amin(0), -points.amax(0))


def test_a_sheet_shows_true_above_made(config):
    sheets = [sample_sheet(Seer(config, shift), (0, 1), steps=1, family="animals") for shift in (0.0, 0.5)]
    (true, made, *_), (same, other, *_) = (np.split(np.asarray(sheet), 4) for sheet in sheets)
    # The made views are the true ones, or darker; the input view, which is first, is always true.
    assert sheets[0].width == 2 * (config.n_views + 1) * sheets[0].height // 4
    assert np.array_equal(true, made) and np.array_equal(true, same) and not np.array_equal(same, other)
    side = len(true)
    assert np.array_equal(same[:, :side], other[:, :side])
