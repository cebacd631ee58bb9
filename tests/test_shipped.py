"""What comes with the pack: a clip that the procedural world renders, and a model whose views help."""

import json

import numpy as np
import pytest
import tiny_scores
import torch
from sample_clip import sample_frames

from sv4d2_core.diffusion.checkpoint import describe_checkpoint, load_checkpoint
from sv4d2_core.diffusion.config import ModelConfig
from sv4d2_core.diffusion.safetensors_stream import read_header
from sv4d2_core.shipped import SAMPLE_CLIP, SAMPLE_FPS, SAMPLE_FRAMES, TINY_MODEL
from sv4d2_core.video.prepare import prepare_clip
from sv4d2_core.video.read import load_clip


@pytest.fixture(scope="module")
def clip():
    return load_clip(SAMPLE_CLIP, frames=None)


def test_clip_is_small_and_prepared_without_a_remark(clip):
    assert SAMPLE_CLIP.stat().st_size <= 300_000
    assert clip.frames.shape == (SAMPLE_FRAMES, 576, 576, 4) and clip.fps == SAMPLE_FPS
    prepared = prepare_clip(clip, size=64, centering="none")
    assert prepared.images.shape == (SAMPLE_FRAMES, 64, 64, 3)
    assert len(prepared.report) == 1, prepared.report


def test_pictures_are_the_rendered_ones(clip):
    rendered = sample_frames(torch.tensor([0.0, 0.25], dtype=torch.float64)).numpy()
    shown = clip.frames[[0, (SAMPLE_FRAMES - 1) // 4]].astype(np.float32) / 255
    # A ray that just touches a rim may miss it after rounding: a quarter of a pixel.
    assert (np.abs(shown[..., 3] - rendered[..., 3]) > 0.01).sum() <= 10
    on_white, true = (rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:] for rgba in (shown, rendered))
    assert np.square(on_white - true).mean() < 10**-4.0
    # Another moment is told apart.
    assert np.square(on_white[::-1] - true).mean() > 10**-2.5


@pytest.fixture(scope="module")
def model():
    return load_checkpoint(TINY_MODEL)


@pytest.fixture(scope="module")
def scores(model):
    return tiny_scores.score_model(model, 3, steps=5)


def test_model_is_small_complete_and_says_how_it_was_trained(model):
    assert TINY_MODEL.stat().st_size < 30e6
    config = model.config
    assert config.trained and (config.n_frames, config.n_views, config.size) == (12, 4, 64)
    assert not describe_checkpoint(TINY_MODEL).problem
    notes = json.loads(read_header(TINY_MODEL).metadata["sv4d2.training"])
    trainings = [notes]
    while base := trainings[-1].get("based_on"):
        trainings.append(base)
    assert [training["recipe"]["seed"] for training in trainings] == [3, 3, 2, 2, 1, 1, 0]
    phases = [[phase["name"] for phase in training["recipe"]["phases"]] for training in trainings]
    assert phases == [["motion"], ["static"]] * 3 + [["static", "motion"]]


def test_its_views_say_that_no_official_model_made_them(model):
    assert model.config.label == "sv4d2 (small model, knows four-legged animals of the procedural world only)"
    assert "four-legged animals" in model.config.caution and not ModelConfig().caution
    assert ModelConfig().label == "sv4d2"


@pytest.mark.parametrize("baseline", ["copy", "white"])
def test_views_beat_the_baseline_on_objects_that_no_training_saw(scores, baseline):
    assert scores["model"]["psnr"].mean() > scores[baseline]["psnr"].mean() + 1
    assert scores["model"]["iou"].mean() > scores[baseline]["iou"].mean() + 0.03


def test_reference_views_help_and_every_object_is_found_where_it_is(scores):
    assert scores["with_references"]["psnr"].mean() > scores["model"]["psnr"].mean() + 1
    assert scores["model"]["iou"].min() > 0.2
