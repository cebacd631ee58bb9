"""Scenes as the diffusion model sees them: latents and image embeddings, computed once and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..cameras import Cameras
from ..diffusion.model import Model
from ..tensor_file import read_tensors, write_tensors

_FORMAT = "sv4d2.encoded_scene"


@dataclass(frozen=True)
class EncodedScene:
    """F moments of an object from C cameras.

    Args:
        latents: [F, C, 4, h, w] float16, unscaled.
        tokens: [F, C, D] float16 image embeddings.
        references: [F, C, 4, h, w] float16, the same for use as reference views, where these have an encoder
            of their own; else None.
        elevations_deg: [C] relative to the first camera.
        azimuths_deg: [C] relative to the first camera.
    """

    latents: Tensor
    tokens: Tensor
    references: Tensor | None
    elevations_deg: tuple[float, ...]
    azimuths_deg: tuple[float, ...]

    @property
    def n_frames(self) -> int:
        """F."""
        return self.latents.shape[0]

    @property
    def n_cameras(self) -> int:
        """C."""
        return self.latents.shape[1]


def encode_scene(model: Model, images: Tensor, cameras: Cameras) -> EncodedScene:
    """Return a scene of pictures [F, C, H, W, 3] uint8, encoded in the model's precision."""
    flat = images.flatten(0, 1).float() / 255
    shape = tuple(images.shape[:2])
    references = None
    if model.view_encoder is not model.frame_encoder:
        references = model.encode(flat, role="views").half().unflatten(0, shape)
    return EncodedScene(
        model.encode(flat, role="frames").half().unflatten(0, shape),
        model.embed(flat).half().unflatten(0, shape),
        references,
        cameras.elevations_deg,
        cameras.azimuths_deg,
    )


class EncodedScenes:
    """Encoded scenes by their number, kept in memory and in a folder.

    Args:
        model: encodes.
        read: returns pictures [F, C, H, W, 3] uint8 and cameras of a scene.
        folder: holds what has been encoded with this model; None keeps it in memory only.
    """

    def __init__(
        self, model: Model, read: Callable[[int], tuple[Tensor, Cameras]], folder: Path | None
    ) -> None:
        self._model = model
        self._read = read
        self._folder = folder
        self._scenes: dict[int, EncodedScene] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, index: int) -> EncodedScene:
        """Return a scene, encoded now if it was not before."""
        if index not in self._scenes:
            self._scenes[index] = self._kept(index)
        return self._scenes[index]

    def _kept(self, index: int) -> EncodedScene:
        if self._folder is None:
            return encode_scene(self._model, *self._read(index))
        file = self._folder / f"{index:08d}.safetensors"
        if not file.exists():
            scene = encode_scene(self._model, *self._read(index))
            angles = {"elevations_deg": scene.elevations_deg, "azimuths_deg": scene.azimuths_deg}
            encoded = {"latents": scene.latents, "tokens": scene.tokens, "references": scene.references}
            write_tensors(file, _FORMAT, {k: x for k, x in encoded.items() if x is not None}, angles)
        tensors, header = read_tensors(file, _FORMAT)
        return EncodedScene(
            tensors["latents"],
            tensors["tokens"],
            tensors.get("references"),
            tuple(header["elevations_deg"]),
            tuple(header["azimuths_deg"]),
        )
