"""Whole trainings from scratch: their stages, what interrupts them, their scenes."""

import json
import os
import shutil
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sv4d2_core.cameras import Cameras
from sv4d2_core.diffusion.checkpoint import load_checkpoint
from sv4d2_core.diffusion.config import ModelConfig
from sv4d2_core.diffusion.model import Model
from sv4d2_core.diffusion.novel_views import sample_views
from sv4d2_core.diffusion.safetensors_stream import read_header
from sv4d2_core.diffusion.sampling import camera_vectors
from sv4d2_core.stored import read_tensors
from sv4d2_core.training import loop as loop_module
from sv4d2_core.training import run as run_module
from sv4d2_core.training.autoencoder import AutoencoderLoss, normalise_latents
from sv4d2_core.training.batches import DrawConfig, EncodedScenes
from sv4d2_core.training.device_scenes import DeviceScenes
from sv4d2_core.training.loop import LoopConfig, Progress
from sv4d2_core.training.recipe import Phase, Recipe
from sv4d2_core.training.run import OutOfTime, TrainingRun
from sv4d2_core.training.scenes import ProceduralScenes, SceneStore
from sv4d2_core.video.foreground import near_white_masks
from sv4d2_core.views import ViewGrid
from sv4d2_core.world import render_views
from sv4d2_core.world.body import Bones, Creature

CPU = torch.device("cpu")
SOURCE = ProceduralScenes(0, size=8, n_cameras=4, n_frames=2)
STAGES = ("autoencoder", "static", "motion", "decoder")
SECONDS = 300


class Stopped(Exception):
    """What a callback of these tests raises."""


@pytest.fixture(scope="module")
def recipe(training_config: ModelConfig) -> Recipe:
    return Recipe(
        model=training_config,
        n_scenes=2,
        autoencoder=LoopConfig(3),
        autoencoder_batch=4,
        decoder=LoopConfig(2),
        phases=(
            Phase("static", LoopConfig(2, warm_up=1), DrawConfig(n_frames=1, batch=2)),
            Phase("motion", LoopConfig(3, warm_up=1), DrawConfig(n_frames=2, batch=2)),
        ),
        dtype="fp32",
    )


def training(folder: Path, recipe: Recipe, **options) -> TrainingRun:
    store = SceneStore(folder / "scenes", SOURCE, {"procedural": "test"})
    return TrainingRun(folder, recipe, store, CPU, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, recipe) -> Path:
    """Return the folder of a training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    assert training(folder, recipe).run() == folder / "decoder.safetensors"
    return folder


def test_every_stage_leaves_a_checkpoint_that_makes_views(finished, training_config):
    for stage in STAGES:
        model = load_checkpoint(finished / f"{stage}.safetensors")
        assert model.config == replace(training_config, trained=stage != "autoencoder")
    with safe_open(finished / "decoder.safetensors", "pt") as file:
        note = json.loads(file.metadata()["sv4d2.training"])
    assert note["stage"] == "decoder" and note["recipe"]["n_scenes"] == 2
    truth = SOURCE.scene(5)
    made = sample_views(model, truth.images[:, 0], Cameras.default(2), steps=2)
    assert made.trained and bool(made.images.isfinite().all()) and made.images.shape == (2, 3, 8, 8, 3)
    names = {path.name for path in finished.iterdir()}
    assert names == {"recipe.json", "scenes", "encoded", *(f"{stage}.safetensors" for stage in STAGES)}


def test_a_stage_is_saved_once_before_what_is_drawn_at_its_end(tmp_path, recipe, monkeypatch):
    saved, states = {}, []
    save = TrainingRun._save
    monkeypatch.setattr(run_module, "_SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(run_module, "_SAVE_SHARE", 0.0)
    monkeypatch.setattr(
        TrainingRun,
        "_save",
        lambda run, now, file: (states.append((file.stem, now.step)), save(run, now, file)),
    )

    def drawn(stage: str, progress: Progress, model: Model | None) -> None:
        if progress.step == progress.total:
            saved[stage] = (tmp_path / f"{stage}.state").exists()

    training(tmp_path, recipe, callback=drawn).run()
    assert saved == dict.fromkeys(STAGES, True) and len(states) == len(set(states))


def test_a_checkpoint_says_what_it_is_based_on(finished, recipe, tmp_path):
    base = finished / "static.safetensors"
    for seed in (1, 2):
        base = training(tmp_path / str(seed), replace(recipe, seed=seed), base=base).run()
    note, seeds = json.loads(read_header(base).metadata["sv4d2.training"]), []
    while note:
        seeds.append(note["recipe"]["seed"])
        note = note.get("based_on")
    assert seeds == [2, 1, recipe.seed]


@pytest.mark.parametrize("note", ["[1]", "{", "[" * 100_000])
def test_a_base_with_a_note_of_another_is_trained_all_the_same(finished, recipe, tmp_path, note):
    base = tmp_path / "base.safetensors"
    with safe_open(finished / "static.safetensors", "pt") as file:
        metadata = file.metadata() | {"sv4d2.training": note}
    save_file(load_file(finished / "static.safetensors"), base, metadata)
    made = training(tmp_path / "run", recipe, base=base).run()
    assert "based_on" not in json.loads(read_header(made).metadata["sv4d2.training"])


def test_each_stage_changes_its_part_alone(finished):
    stages = [load_file(finished / f"{stage}.safetensors") for stage in STAGES]
    pairs = zip(stages, stages[1:], strict=False)
    static, motion, decoder = ({key for key in a if not torch.equal(a[key], b[key])} for a, b in pairs)
    assert all(key.startswith("model.diffusion_model.") for key in static | motion)
    assert decoder == {key for key in stages[0] if key.startswith("first_stage_model.decoder.")}
    # Queries and keys of an attention to one token have no effect.
    idle = (".norm2.", ".attn2.to_q.", ".attn2.to_k.")
    of_frames = {key for key in stages[0] if "motion" in key and not any(name in key for name in idle)}
    assert not of_frames & static and of_frames <= motion and len(static) > 50


def test_what_a_killed_process_left_of_a_finished_stage_goes(finished, recipe):
    for stage in STAGES:
        (finished / f"{stage}.state").write_bytes(b"left")
    training(finished, recipe).run()
    assert not list(finished.glob("*.state"))


def test_an_interrupted_training_ends_the_same(tmp_path, finished, recipe):
    seen = []

    def callback(name: str, progress: Progress, _model: object) -> None:
        seen.append((name, progress.step))
        if seen[-1] == stop:
            raise Stopped

    for stop in (("autoencoder", 2), ("autoencoder", 3), ("static", 1), ("motion", 2), ("decoder", 1)):
        with pytest.raises(Stopped):
            training(tmp_path, recipe, callback=callback).run()
        assert (tmp_path / f"{stop[0]}.state").exists()
    seen.clear()
    # Time is up after a step, and the next piece goes on.
    with pytest.raises(OutOfTime, match="decoder: 2 of 2 steps"):
        training(tmp_path, recipe, minutes=1e-9, callback=callback).run()
    training(tmp_path, recipe, callback=callback).run()
    assert seen == [("decoder", 2)]
    for stage in STAGES:
        name = f"{stage}.safetensors"
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_the_state_is_saved_at_every_interval(tmp_path, recipe, monkeypatch):
    steps = []

    def callback(stage: str, progress: Progress, _model: object) -> None:
        file = tmp_path / f"{stage}.state"
        steps.append(len(read_tensors(file, "sv4d2.training")[0]["losses"]) if file.exists() else 0)
        if progress.step == 3:
            raise Stopped

    monkeypatch.setattr(run_module, "_SAVE_SHARE", 0.0)
    # Every so many seconds, not before so many times what the last one took, and after the last step.
    for interval, share, expected in ((0.0, 0.0, [0, 1, 3]), (60.0, 0.0, [0, 0, 3]), (0.0, 1e9, [0, 1, 3])):
        shutil.rmtree(tmp_path)
        monkeypatch.setattr(run_module, "_SAVE_EVERY_S", interval)
        monkeypatch.setattr(run_module, "_SAVE_SHARE", share)
        with pytest.raises(Stopped):
            training(tmp_path, recipe, callback=callback).run()
        assert steps == expected
        steps.clear()


def test_other_trainings_are_refused(finished, recipe):
    with pytest.raises(ValueError, match=r"other settings \(recipe.json\): seed differ"):
        training(finished, replace(recipe, seed=1)).run()
    with pytest.raises(ValueError, match=r"other settings \(recipe.json\): base differ"):
        training(finished, recipe, base=finished / "static.safetensors").run()
    with pytest.raises(ValueError, match="Expected scenes of the same source"):
        SceneStore(finished / "scenes", SOURCE, {"procedural": "other"})
    with pytest.raises(ValueError, match=r"Expected a seed in 0\.\.2\*\*32 - 1"):
        replace(recipe, seed=2**32)
    assert training(finished, recipe).run() == finished / "decoder.safetensors"


def test_latents_become_normal_and_pictures_stay(training_config, close):
    torch.manual_seed(0)
    network, images = AutoencoderLoss(training_config), torch.rand(40, 3, 16, 16) * 2 - 1
    encoder, decoder = network.encoder, network.decoder
    with torch.no_grad():
        encoder.quant_conv.bias += 1.5
        before = encoder(images)
        first = decoder.conv_in(before)
        normalise_latents(encoder, decoder, images)
        latents = encoder(images)
        close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), 1e-4)
        close(latents.std(dim=(0, 2, 3)), torch.ones(4), 1e-4)
        # At the border the convolution's zeros now stand for the mean.
        close(decoder.conv_in(latents)[..., 1:-1, 1:-1], first[..., 1:-1, 1:-1], 1e-4)


def test_scenes_made_ahead_are_those_made_here(tmp_path, contents):
    here, ahead = (SceneStore(tmp_path / name, SOURCE, {}) for name in ("here", "ahead"))
    for index in range(3):
        here.read(index)
    with ahead.made_ahead(3, 1) as (worker,):
        worker.join(SECONDS)
        images, cameras = ahead.read(2)
    assert not worker.is_alive()
    here, ahead = (contents(tmp_path / name, "*.safetensors") for name in ("here", "ahead"))
    assert here == ahead and len(here) == 3
    assert cameras == SOURCE.scene(2).cameras and images.shape == (2, 4, 8, 8, 3)
    assert (images.float() / 255 - SOURCE.scene(2).images).abs().max() < 0.502 / 255


def test_encoded_scenes_are_read_again(tmp_path, finished):
    model, reads = load_checkpoint(finished / "motion.safetensors"), []

    def read(index: int) -> tuple[Tensor, Cameras]:
        reads.append(index)
        grid = SOURCE.scene(index)
        return (grid.images * 255).round().to(torch.uint8), grid.cameras

    first = EncodedScenes(model, read, tmp_path)(4)
    second = EncodedScenes(model, read, tmp_path)
    assert torch.equal(second(4).latents, first.latents) and reads == [4]
    images = read(4)[0].float() / 255
    assert torch.equal(first.latents[1], model.encode(images[1], role="frames").half())
    assert torch.equal(first.tokens[0], model.embed(images[0]).half())


def test_processes_that_cannot_share_a_batch_are_told_so(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(run_module, "rank_and_size", lambda: (0, 3))
    with pytest.raises(ValueError, match="3 processes share evenly; phase static has 2. Give it a multiple"):
        training(tmp_path, recipe).run()
    assert not list(tmp_path.glob("*.state"))


def test_a_mirrored_scene_is_the_mirrored_object_from_mirrored_cameras(tmp_path):
    def ball(x: float, azimuth_deg: float) -> ViewGrid:
        bones = Bones()
        bones.ball("big", "", (0, 0, 0), 0.2)
        bones.ball("small", "big", (x, 0, 0), 0.1)
        return render_views(Creature(tuple(bones)), Cameras((0, 0), (0, azimuth_deg)), 1, 16)

    source = SimpleNamespace(scene=[ball(0.3, 70), SOURCE.scene(0)].__getitem__)
    store = SceneStore(tmp_path, source, {}, mirrored=True)  # pyright: ignore
    images, cameras = store.read(1)
    expected = ball(-0.3, -70)
    assert cameras.azimuths_deg == (0, 290)
    assert torch.equal(store.read(2)[0], store.read(3)[0].flip(3))
    assert torch.equal(near_white_masks(images[0].float() / 255), near_white_masks(expected.images[0]))


def test_scenes_that_are_read_once_are_not_kept(tmp_path):
    store = SceneStore(tmp_path, SOURCE, {}, keeps=False)
    with store.made_ahead(3, 1) as workers:
        assert workers == []
        assert torch.equal(store.read(1)[0], SceneStore(tmp_path / "kept", SOURCE, {}).read(1)[0])
    assert not list(tmp_path.glob("*.safetensors"))


def on_device(device: torch.device = CPU, n_workers: int = 0):
    return partial(DeviceScenes.made, SOURCE, 3, device, mirrored=True, n_workers=n_workers)


def test_a_worker_that_dies_ends_the_making_of_scenes():
    source = SimpleNamespace(size=8, n_frames=2, n_cameras=4, framed=os._exit)
    with pytest.raises(ChildProcessError, match="fewer --workers"):
        DeviceScenes.made(source, 3, CPU, n_workers=1)  # pyright: ignore


def test_scenes_on_a_device_are_those_of_the_store(tmp_path, finished, training_config):
    scenes, store = on_device(n_workers=1)(), SceneStore(tmp_path, SOURCE, {}, keeps=False)
    assert torch.equal(scenes.images, torch.stack([store.read(index)[0] for index in range(3)]))
    assert len(on_device()(seconds=0).images) == 3  # made together
    pictures = scenes.pictures(200, torch.Generator().manual_seed(0))
    known = torch.stack([scenes.images, scenes.images.flip(4)]).flatten(0, 3).permute(0, 3, 1, 2) / 127.5 - 1
    which = (pictures[:, None] - known).abs().amax((2, 3, 4)).min(1)
    assert float(which.values.max()) < 1e-5 and len(set(which.indices.tolist())) > 24

    model = load_checkpoint(finished / "motion.safetensors")
    scenes = scenes.encoded(model)
    mirrored = SceneStore(tmp_path / "mirrored", SOURCE, {}, mirrored=True)
    encoded = EncodedScenes(model, mirrored.read, tmp_path / "encoded")
    for number in range(6):
        expected = encoded(number // 3 + 2 * (number % 3))
        for name in ("latents", "tokens"):
            assert (getattr(scenes, name)[number] - getattr(expected, name)).abs().max() < 2e-3
        assert tuple(scenes.azimuths_deg[number].tolist()) == pytest.approx(expected.azimuths_deg)

    # Latents that say which scene, frame and camera they are of.
    places = torch.meshgrid(*(torch.arange(n) for n in (6, 2, 4)), indexing="ij")
    numbers = torch.stack([*places, places[0]], dim=-1)[..., None, None].half()
    scenes = replace(scenes, latents=numbers, tokens=numbers[..., 0, 0])
    always = {"mask_all": 0, "mask_view": 0, "drop_conditioning": 0}
    for draw in (DrawConfig(2, 64, 1, **always), DrawConfig(1, 64, 0, **always)):
        batch = scenes.draw(training_config, draw, "seed", 3)
        again = scenes.draw(training_config, draw, "seed", 3)
        assert torch.equal(batch.noise, again.noise) and torch.equal(batch.clean, again.clean)
        assert torch.equal(batch.frames[..., 0, 0], batch.tokens)
        assert torch.equal(batch.clean[:, 0], batch.references)
        of_scene, frame, view = (batch.clean[:, :, :, k, 0, 0].long() for k in range(3))
        assert bool((of_scene == of_scene[:, :1, :1]).all()) and bool((view == view[:, :1]).all())
        assert len(frame[:, :, 0].unique(dim=0)) == 3 - draw.n_frames
        for n in range(64):
            scene, views = encoded(int(of_scene[n, 0, 0]) // 3 + 2 * (int(of_scene[n, 0, 0]) % 3)), view[n, 0]
            views = [int(batch.frames[n, 0, 2, 0, 0]), *views.tolist()]
            assert len(set(views)) == 3
            angles = [[x[v] - x[views[0]] for v in views] for x in (scene.elevations_deg, scene.azimuths_deg)]
            cameras = Cameras(tuple(angles[0]), tuple(a % 360 for a in angles[1]))
            expected = camera_vectors(cameras, training_config.vector_dims)[0]
            torch.testing.assert_close(batch.vectors[n], expected, atol=1e-4, rtol=0)
    nothing = scenes.draw(training_config, DrawConfig(2, 64, drop_conditioning=1), "seed", 3)
    assert not any(x.any() for x in (nothing.frames, nothing.tokens, nothing.references))
    assert not nothing.vectors[..., :8].any() and nothing.vectors[..., 8:].any()


def test_a_training_with_a_time_for_all_gives_each_stage_its_share(tmp_path, recipe, monkeypatch):
    ticks, options, steps = count(), {"finish_in": 2, "on_device": on_device()}, {}
    encoded, encodings = DeviceScenes.encoded, []
    monkeypatch.setattr(DeviceScenes, "encoded", lambda *given: encodings.append(1) or encoded(*given))
    for module in (run_module, loop_module):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))

    def callback(name: str, progress: Progress, _model: object) -> None:
        stops = name == "static" and progress.step == 2 and steps.get(name) != (2, 0)
        steps[name] = progress.step, 0 if stops else progress.total
        if stops:
            raise Stopped

    with pytest.raises(Stopped):
        training(tmp_path, recipe, callback=callback, **options).run()
    _, header = read_tensors(tmp_path / "static.state", "sv4d2.training")
    assert 0 < header.number("seconds") < 24
    with pytest.raises(ValueError, match=r"other settings \(recipe.json\): finish_in differ"):
        training(tmp_path, recipe, finish_in=1, on_device=on_device()).run()
    assert load_checkpoint(training(tmp_path, recipe, callback=callback, **options).run()).config.trained
    assert 100 < next(ticks) < 150
    assert len(encodings) == 2, "once per run, for all phases"
    assert all(step == total > 2 for step, total in (steps[stage] for stage in STAGES))
    assert steps["motion"] > steps["static"] > steps["decoder"]
