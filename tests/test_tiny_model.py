"""The model that comes with the pack: its file, and that its views are worth more than none."""

from __future__ import annotations

import json

import pytest
import tiny_scores
import torch

from sv4d2_core.diffusion.checkpoint import describe_checkpoint, load_checkpoint
from sv4d2_core.diffusion.config import ModelConfig
from sv4d2_core.diffusion.safetensors_stream import read_header
from sv4d2_core.shipped import TINY_MODEL

N_OBJECTS = 4


@pytest.fixture(scope="module")
def scores():
    torch.set_num_threads(1)
    return tiny_scores.score_model(load_checkpoint(TINY_MODEL), N_OBJECTS, steps=5)


def test_file_is_small_complete_and_says_that_it_was_trained():
    assert TINY_MODEL.stat().st_size < 30e6
    config = load_checkpoint(TINY_MODEL).config
    assert config.trained and (config.n_views, config.size) == (4, 32)
    assert not describe_checkpoint(TINY_MODEL).problem


def test_file_tells_how_it_was_trained():
    notes = json.loads(read_header(TINY_MODEL).metadata["sv4d2.training"])
    assert notes["recipe"]["seed"] == 0
    assert [phase["name"] for phase in notes["recipe"]["phases"]] == ["static", "motion"]


@pytest.mark.parametrize("baseline", ["copy", "white"])
def test_views_beat_the_baseline_on_objects_that_no_training_saw(scores, baseline):
    assert scores["model"]["psnr"].mean() > scores[baseline]["psnr"].mean() + 1
    assert scores["model"]["iou"].mean() > scores[baseline]["iou"].mean() + 0.03


def test_reference_views_help(scores):
    assert scores["with_references"]["psnr"].mean() > scores["model"]["psnr"].mean() + 1


def test_every_object_is_found_where_it_is(scores):
    assert scores["model"]["iou"].min() > 0.2


def test_its_views_say_that_no_official_model_made_them():
    assert load_checkpoint(TINY_MODEL).config.label == "sv4d2 (small model)"
    assert ModelConfig().label == "sv4d2"
