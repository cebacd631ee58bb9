"""A training from its data to a checkpoint, in a folder from which it goes on after any interruption."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save

from ..diffusion.checkpoint import load_checkpoint
from ..diffusion.model import Model
from ..diffusion.window_store import changed_settings
from ..files import file_fingerprint, fingerprint_of, remove, write_whole
from .batches import EncodedScenes
from .loop import Progress, any_process, is_first_process, rank_and_size, wait_for_all
from .recipe import Recipe, train_autoencoder, train_decoder, train_phase
from .scenes import SceneStore
from .weights import add_lora, load_lora_state, lora_state, merge_lora, write_checkpoint

_AUTOENCODER, _DECODER = "autoencoder", "decoder"
# Seconds between two states, or this many times what writing one takes.
_SAVE_EVERY_S, _SAVE_SHARE = 120.0, 20.0

# callback(stage, progress, model): after each step; the model is None while no UNet is trained.
RunCallback = Callable[[str, Progress, Model | None], None]


class OutOfTime(Exception):
    """The time that was given is used up; the state is saved."""


@dataclass
class TrainingRun:
    """A training in a folder.

    Args:
        folder: keeps a state and a checkpoint per stage, and what was encoded.
        recipe: how to train.
        store: the scenes.
        device: where to train.
        base: checkpoint to start from; None trains all networks from scratch.
        minutes: stop after these; None runs to the end.
        callback: see ``RunCallback``; may raise to stop, and the state is saved.
    """

    folder: Path
    recipe: Recipe
    store: SceneStore
    device: torch.device
    base: Path | None = None
    minutes: float | None = None
    callback: RunCallback | None = None

    def run(self) -> Path:
        """Train what is left to train and return the last stage's checkpoint.

        Raises:
            OutOfTime: the minutes are over.
            ValueError: the folder belongs to a training with another recipe or base, processes that cannot
                share a batch evenly.
        """
        self._began = self._saved = time.monotonic()
        self._save_every = _SAVE_EVERY_S
        self._check_batches()
        if self.recipe.lora_rank and self.base is None:
            raise ValueError("Expected a base for a LoRA to change; got none. Give base.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_recipe()
        start = self.base
        if start is None:
            start = self._checkpoint(_AUTOENCODER)
            if not start.exists():
                self._autoencoder(start)
        base = self._loaded(start)
        made_from = self._made_from(start)
        scenes = EncodedScenes(base, self.store.read, self.folder / "encoded" / made_from)
        # It only encodes.
        base.unet.to("meta")
        for phase in self.recipe.phases:
            end = self._checkpoint(phase.name)
            if not end.exists():
                model = self._loaded(start)
                if self.recipe.lora_rank:
                    add_lora(model.unet, self.recipe.lora_rank, self.recipe.lora_rank, seed=self.recipe.seed)
                train_phase(
                    phase,
                    self.recipe,
                    model,
                    scenes,
                    fingerprint=made_from,
                    state=self._state(phase.name),
                    callback=lambda progress, name=phase.name, model=model: self._after_step(
                        name, progress, model
                    ),
                )
                if self.recipe.lora_rank:
                    model = self._merged(model, start, end)
                self._finish(phase.name, replace(model, config=replace(model.config, trained=True)))
            start = end
        return start if self.base is not None else self._decoder(start)

    def _autoencoder(self, end: Path) -> None:
        model = train_autoencoder(
            self.recipe,
            self.store.read,
            self.device,
            state=self._state(_AUTOENCODER),
            callback=lambda progress: self._after_step(_AUTOENCODER, progress, None),
        )
        # Its UNet was never trained.
        self._finish(_AUTOENCODER, replace(model, config=replace(model.config, trained=False)))

    def _loaded(self, path: Path) -> Model:
        """Return a checkpoint's model with the recipe's view mixing, for which any weights fit."""
        model = load_checkpoint(path, device=self.device)
        model.unet.set_view_mixing(self.recipe.model.unet.view_mixing)
        return replace(model, config=replace(model.config, unet=model.unet.config))

    def _decoder(self, start: Path) -> Path:
        end = self._checkpoint(_DECODER)
        if not end.exists():
            model = load_checkpoint(start, device=self.device)
            train_decoder(
                self.recipe,
                model,
                self.store.read,
                fingerprint=self._made_from(start),
                state=self._state(_DECODER),
                callback=lambda progress: self._after_step(_DECODER, progress, None),
            )
            self._finish(_DECODER, model)
        return end

    def _made_from(self, start: Path) -> str:
        return fingerprint_of(file_fingerprint(start), self.store.settings)

    def _merged(self, model: Model, start: Path, end: Path) -> Model:
        """Write what a LoRA learned as a file of its own and return the model it started from with it."""
        state = lora_state(model.unet)
        if is_first_process():
            write_whole(end.with_suffix(".lora.safetensors"), save(state, metadata={"format": "pt"}))
        merged = self._loaded(start)
        load_lora_state(merged.unet, state)
        merge_lora(merged.unet)
        return merged

    def _after_step(self, stage: str, progress: Progress, model: Model | None) -> None:
        file = self._state(stage)
        try:
            if self.callback is not None:
                self.callback(stage, progress, model)
        except BaseException:
            self._save(progress, file)
            raise
        out_of_time = self._is_out_of_time()
        if out_of_time or time.monotonic() - self._saved > self._save_every:
            self._save(progress, file)
        if out_of_time:
            raise OutOfTime(f"{stage}: {progress.step} of {progress.total} steps")

    def _is_out_of_time(self) -> bool:
        if self.minutes is None:
            return False
        # A process that stopped alone would leave the others waiting for its gradients.
        return any_process(time.monotonic() - self._began > 60 * self.minutes)

    def _save(self, progress: Progress, file: Path) -> None:
        began = time.monotonic()
        if is_first_process():
            progress.save(file)
        # Where writing takes long, it is done less often.
        took = time.monotonic() - began
        self._saved, self._save_every = time.monotonic(), max(_SAVE_EVERY_S, _SAVE_SHARE * took)

    def _finish(self, stage: str, model: Model) -> None:
        if is_first_process():
            notes = {"sv4d2.training": json.dumps({"stage": stage, "recipe": self.recipe.to_json()})}
            write_checkpoint(self._checkpoint(stage), model, torch.float32, notes)
            remove(self._state(stage))
        wait_for_all()

    def _check_batches(self) -> None:
        size = rank_and_size()[1]
        for phase in self.recipe.phases:
            if phase.draw.batch % size:
                raise ValueError(
                    f"Expected samples per step that {size} processes share evenly; phase {phase.name} has "
                    f"{phase.draw.batch}. Give it a multiple of {size}."
                )

    def _check_recipe(self) -> None:
        recipe = self.recipe.to_json()
        if self.base is not None:
            recipe["base"] = file_fingerprint(self.base)
        file, content = self.folder / "recipe.json", json.dumps(recipe, indent=1)
        if not file.exists():
            if is_first_process():
                write_whole(file, content.encode())
        elif changed := changed_settings(json.loads(file.read_text()), json.loads(content)):
            raise ValueError(
                f"{self.folder} holds a training with other settings (recipe.json): {', '.join(changed)} "
                f"differ. Give the same options to go on with it, or choose another folder."
            )

    def _state(self, stage: str) -> Path:
        return self.folder / f"{stage}.state"

    def _checkpoint(self, stage: str) -> Path:
        return self.folder / f"{stage}.safetensors"
