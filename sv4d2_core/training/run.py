"""A training from its data to a checkpoint, in a folder from which it goes on after any interruption."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ..diffusion.checkpoint import load_checkpoint, write_checkpoint_file
from ..diffusion.layout import PARTS
from ..diffusion.model import Model
from ..diffusion.safetensors_stream import read_header
from ..diffusion.window_store import changed_settings
from ..files import file_fingerprint, fingerprint_of, if_possible, remove, write_whole
from ..messages import listed
from ..stored import json_object, read_json_object
from .autoencoder import ReadScene, train_autoencoder, train_decoder
from .batches import EncodedScenes
from .device_scenes import DeviceLatents, DeviceScenes
from .loop import Progress, any_process, is_first_process, rank_and_size, train
from .recipe import Phase, Recipe, train_phase
from .scenes import SceneStore
from .weights import add_lora, lora_state, merge_lora

_AUTOENCODER, _DECODER = "autoencoder", "decoder"
_NOTES = "sv4d2.training"  # the checkpoint's metadata: how it was trained, and ``based_on`` what
# Seconds between two states, or this many times what writing one takes.
_SAVE_EVERY_S, _SAVE_SHARE = 120.0, 20.0
# Of the time for all: that of each stage, with what comes before its first step, and that of making scenes.
_SHARES = {_AUTOENCODER: 0.22, "static": 0.2, "motion": 0.48, _DECODER: 0.1}
_SCENES_SHARE = 0.08


class OutOfTime(Exception):
    """The time that was given is used up; the state is saved."""


@dataclass
class TrainingRun:
    """A training in a folder, which keeps a state and a checkpoint per stage, and what was encoded."""

    folder: Path
    recipe: Recipe
    store: SceneStore
    device: torch.device
    base: Path | None = None  # checkpoint to start from; None trains all networks from scratch
    minutes: float | None = None  # None runs to the end
    # Minutes for the whole training: each stage has its share of them instead of its steps.
    finish_in: float | None = None
    # Makes the scenes on the device, in about so many ``seconds``; None reads them out of the store.
    on_device: Callable[..., DeviceScenes] | None = None
    # Called after each step with stage, progress, model (None while no UNet is trained); may raise to end it.
    callback: Callable[[str, Progress, Model | None], None] | None = None

    def run(self) -> Path:
        """Train what is left to train and return the last stage's checkpoint.

        Raises OutOfTime; ValueError: another recipe or base, or a batch that processes cannot share evenly.
        """
        self._began = self._saved = self._stage_began = time.monotonic()
        self._save_every = _SAVE_EVERY_S
        self._latents: DeviceLatents | None = None  # encoded once for all phases
        self._check_batches()
        if self.recipe.lora_rank and self.base is None:
            raise ValueError("Expected a base for a LoRA to change; got none. Give base.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_recipe()
        self._based_on = _based_on(self.base)  # now, as a checkpoint may take its place
        if is_first_process():
            self._remove_old_states()
        start = self.base or self._checkpoint(_AUTOENCODER)
        if not start.exists() and self.base is None:
            model = train_autoencoder(self.recipe, self._read, self.device, self._runner(_AUTOENCODER))
            self._finish(_AUTOENCODER, model, trained=False)
        made_from = self._made_from(start)  # the phases change neither encoder nor tower
        for phase in self.recipe.phases:
            end = self._checkpoint(phase.name)
            if not end.exists():
                model = self._loaded(start)
                self._phase(phase, model, self._encoded(model, made_from), made_from)
            start = end
        if self.base is not None:
            return start
        end = self._checkpoint(_DECODER)
        if not end.exists():
            model = load_checkpoint(start, device=self.device)
            train_decoder(self.recipe, model, self._read, self._runner(_DECODER, self._made_from(start)))
            self._finish(_DECODER, model)
        return end

    @cached_property
    def _read(self) -> ReadScene:
        if self.on_device is None:
            return self.store.read
        return self.on_device(seconds=_SCENES_SHARE * 60 * (self.finish_in or math.inf))

    def _encoded(self, model: Model, made_from: str) -> EncodedScenes | DeviceLatents:
        if isinstance(self._read, DeviceScenes):
            self._latents = self._latents or self._read.encoded(model)
            return self._latents
        return EncodedScenes(model, self._read, self.folder / "encoded" / made_from)

    def _phase(
        self, phase: Phase, model: Model, scenes: EncodedScenes | DeviceLatents, made_from: str
    ) -> None:
        rank, file = self.recipe.lora_rank, self._checkpoint(phase.name)
        if rank:
            add_lora(model.unet, rank, self.recipe.seed)
        train_phase(phase, self.recipe, model, scenes, self._runner(phase.name, made_from, model=model))
        if rank:
            if is_first_process():
                state = save(lora_state(model.unet), metadata={"format": "pt"})
                write_whole(file.with_suffix(".lora.safetensors"), state)
            merge_lora(model.unet)
        self._finish(phase.name, model)

    def _runner(self, stage: str, *made_from: str, model: Model | None = None) -> Callable[..., list[float]]:
        """Return `train` with what follows from the stage; ``model`` is for the callback."""
        seconds, how = None, self._how()
        if self.finish_in is not None:
            stages = [phase.name for phase in self.recipe.phases]
            stages += [_AUTOENCODER, _DECODER] if self.base is None else []
            seconds = 60 * self.finish_in * _SHARES[stage] / sum(map(_SHARES.__getitem__, stages))
        return partial(
            train,
            fingerprint=fingerprint_of(
                stage, asdict(self.recipe), *made_from, rank_and_size()[1], *([how] if how else [])
            ),
            seconds=seconds,
            began=self._stage_began,
            state=self._state(stage),
            callback=lambda progress: self._after_step(stage, progress, model),
        )

    def _loaded(self, path: Path) -> Model:
        """Return a checkpoint's model with the recipe's ``knows``, and its view mixing: any weights fit."""
        model = load_checkpoint(path, device=self.device)
        model.unet.set_view_mixing(self.recipe.model.unet.view_mixing)
        config = replace(model.config, unet=model.unet.config, knows=self.recipe.model.knows)
        return replace(model, config=config)

    def _made_from(self, start: Path) -> str:
        return fingerprint_of(file_fingerprint(start), self.store.settings)

    def _after_step(self, stage: str, progress: Progress, model: Model | None) -> None:
        file = self._state(stage)
        # What follows a stage, as a sheet of samples, takes of the next one's time.
        self._stage_began = time.monotonic()
        ended = progress.step == progress.total
        if ended:  # a sheet of samples comes before the result, and takes long
            self._save(progress, file)
        try:
            if self.callback is not None:
                self.callback(stage, progress, model)
        except BaseException:
            if not ended:
                self._save(progress, file)
            raise
        late = self.minutes is not None and time.monotonic() - self._began > 60 * self.minutes
        # A process that stopped alone would leave the others waiting for its gradients.
        out_of_time = self.minutes is not None and any_process(late)
        if not ended and (out_of_time or time.monotonic() - self._saved > self._save_every):
            self._save(progress, file)
        if out_of_time:
            raise OutOfTime(f"{stage}: {progress.step} of {progress.total} steps")

    def _save(self, progress: Progress, file: Path) -> None:
        began = time.monotonic()
        if is_first_process():
            with if_possible(f"Step {progress.step} of the training"):
                progress.save(file)
        # Where writing takes long, it is done less often.
        took = time.monotonic() - began
        self._saved, self._save_every = time.monotonic(), max(_SAVE_EVERY_S, _SAVE_SHARE * took)

    def _finish(self, stage: str, model: Model, trained: bool = True) -> None:
        if is_first_process():
            facts = {"stage": stage, "recipe": asdict(self.recipe)} | self._based_on
            notes = {_NOTES: json.dumps(facts)}
            model = replace(model, config=replace(model.config, trained=trained))
            _write_checkpoint(self._checkpoint(stage), model, notes)
            remove(self._state(stage))
        # The others wait until it is there.
        any_process(False)

    def _remove_old_states(self) -> None:
        """Remove the states of finished stages, which a process killed between the two left."""
        for stage in (_AUTOENCODER, *(phase.name for phase in self.recipe.phases), _DECODER):
            if self._checkpoint(stage).exists():
                remove(self._state(stage))

    def _how(self) -> dict[str, float | bool]:
        """Return what decides the result beside the recipe."""
        values = {"finish_in": self.finish_in, "on_device": self.on_device is not None}
        return {key: value for key, value in values.items() if value}

    def _check_batches(self) -> None:
        size = rank_and_size()[1]
        if size > 1 and self._how():
            raise ValueError(
                f"Expected one process for {' and '.join(self._how())}; got {size}. Leave these out."
            )
        for phase in self.recipe.phases:
            if phase.draw.batch % size:
                raise ValueError(
                    f"Expected samples per step that {size} processes share evenly; phase {phase.name} has "
                    f"{phase.draw.batch}. Give it a multiple of {size}."
                )

    def _check_recipe(self) -> None:
        recipe = asdict(self.recipe) | self._how()
        if self.base is not None:
            recipe["base"] = file_fingerprint(self.base)
        file, content = self.folder / "recipe.json", json.dumps(recipe, indent=1)
        if not file.exists():
            if is_first_process():
                write_whole(file, content.encode())
        elif changed := changed_settings(read_json_object(file, "a recipe"), json.loads(content)):
            raise ValueError(
                f"{self.folder} holds a training with other settings (recipe.json): {listed(changed)} "
                f"differ. Give the same options to go on with it, or choose another folder."
            )

    def _state(self, stage: str) -> Path:
        return self.folder / f"{stage}.state"

    def _checkpoint(self, stage: str) -> Path:
        return self.folder / f"{stage}.safetensors"


def _based_on(base: Path | None) -> dict[str, Any]:
    """Return what a base says of its own training under the name that it has in ours; {}: nothing."""
    notes = None if base is None else read_header(base).metadata.get(_NOTES)
    # A note that anybody may have written keeps nobody from training.
    with suppress(ValueError):
        return {} if notes is None else {"based_on": json_object(notes, base)}
    return {}


def _write_checkpoint(path: Path, model: Model, notes: dict[str, str]) -> None:
    """Write all networks of a model in float32; one encoder that serves frames and views is stored once."""
    shared = model.view_encoder is model.frame_encoder
    weights: dict[str, Tensor] = {
        part.prefix + key: tensor
        for part in PARTS
        if not (shared and part.name == "view_encoder")
        for key, tensor in getattr(model, part.name).state_dict().items()
    }
    kinds = {key: (torch.float32, tuple(tensor.shape)) for key, tensor in weights.items()}

    def read(key: str) -> Tensor:
        return weights[key].detach().to("cpu", torch.float32)

    write_checkpoint_file(path, kinds, read, model.config, shared, notes, overwrite=True)
