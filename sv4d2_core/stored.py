"""What files of anybody hold, checked as it is read: the fields of JSON objects, and tensors."""

from __future__ import annotations

import json
import reprlib
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .files import LARGEST_JSON, is_out_of_memory, write_whole
from .messages import cut

_LARGEST = 1e12  # no number that we read is larger
_MOST_SIZES = 64  # entries of a list of settings
LARGEST_COUNT = 1_000_000  # of anything that sizes memory or a loop
_KINDS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8, torch.int64)
_CHECKSUM = "checksum"

_Value = TypeVar("_Value")


class Fields(dict[str, Any]):
    """A JSON object; each field is read as what it has to be, or ValueError names it and the place."""

    def __init__(self, value: object, place: object) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"Expected a JSON object in {place}; got {_shown(value)}. Write it again.")
        super().__init__(value)
        self.place = place

    @classmethod
    def of(cls, value: object, place: object) -> Fields:
        """Return fields as they are, anything else as fields of a place that is not known better."""
        return value if isinstance(value, Fields) else cls(value, place)

    def wrong(self, key: str, expected: str) -> ValueError:
        """Return the error of a field."""
        came = _shown(self[key]) if key in self else f"none (there are {_shown(sorted(self))})"
        return ValueError(f"Expected {expected} as {key} in {self.place}; got {came}. Correct it.")

    def has(self, key: str) -> bool:
        """Return whether a field is there and not null."""
        return self.get(key) is not None

    def number(self, key: str, least: float = -_LARGEST, most: float = _LARGEST) -> float:
        if not _is_number(value := self.get(key)) or not least <= value <= most:
            raise self.wrong(key, f"a number from {least:g} to {most:g}")
        return float(value)

    def count(self, key: str, least: int = 0, most: int = LARGEST_COUNT) -> int:
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.wrong(key, f"a whole number from {least} to {most:g}")
        return value

    def text(self, key: str) -> str:
        return self._one(key, str, "text")

    def flag(self, key: str) -> bool:
        return self._one(key, bool, "true or false")

    def _one(self, key: str, kind: type[_Value], name: str) -> _Value:
        if not isinstance(value := self.get(key), kind):
            raise self.wrong(key, name)
        return value

    def object(self, key: str) -> Fields:
        return Fields(self.get(key), f"{key} of {self.place}")

    def objects(self, key: str, count: int | None = None) -> list[Fields]:
        """Return a list of objects, at least one, or as many as there have to be."""
        value = self.get(key)
        if not isinstance(value, list) or not value or count not in (None, len(value)):
            raise self.wrong(key, f"a list of {count} objects" if count else "a list of at least one object")
        return [Fields(one, f"entry {i} of {key} in {self.place}") for i, one in enumerate(value)]

    def numbers(self, key: str, *shape: int | None) -> np.ndarray:
        """Return nested lists of finite numbers of a shape, float64; None in it is any length but 0."""
        if not _are_numbers(value := self.get(key), shape):
            sizes = " x ".join("N" if size is None else str(size) for size in shape)
            raise self.wrong(key, f"{sizes} finite numbers")
        return np.asarray(value, np.float64)

    def times(self, key: str) -> tuple[float, ...]:
        """Return the times of frames, which rise within 0..1."""
        times = self.numbers(key, None)
        if times[0] < 0 or times[-1] > 1 or (np.diff(times) < 0).any():
            raise self.wrong(key, "rising times from 0 to 1")
        return tuple(times.tolist())

    def like(self, key: str, default: Any) -> Any:
        """Return a field of the kind of a default value: a flag, a number, text or whole numbers."""
        if isinstance(default, bool):
            return self.flag(key)
        if isinstance(default, int):
            return self.count(key, -(2**63), 2**63)
        if isinstance(default, float):
            return self.number(key)
        if isinstance(default, str):
            return self.text(key)
        sizes = self.numbers(key, None) if self.get(key) != [] else np.zeros(0)
        if len(sizes) > _MOST_SIZES or (sizes % 1).any():
            raise self.wrong(key, f"at most {_MOST_SIZES} whole numbers")
        return tuple(map(int, sizes))


def json_object(text: str | bytes, place: object) -> Fields:
    """Return the object of a JSON text. Raises ValueError for a damaged one or another value."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"Expected readable JSON in {place}; it is damaged: {error}. Save it again."
        ) from error
    return Fields(value, place)


def read_json_object(path: Path, what: str) -> Fields:
    """Return the object of a JSON file, which errors call ``what``: FileNotFoundError, ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"Expected {what}; there is no file {path}.")
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise ValueError(f"Expected {what} of at most {LARGEST_JSON} bytes; {path} has {size}. Make it anew.")
    return json_object(path.read_bytes(), path)


def _shown(value: object) -> str:
    return cut(reprlib.repr(value))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _are_numbers(value: object, shape: tuple[int | None, ...]) -> bool:
    if not shape:
        return _is_number(value)
    if not isinstance(value, (list, tuple)) or not value or shape[0] not in (None, len(value)):
        return False
    return all(_are_numbers(one, shape[1:]) for one in value)


class Tensors(dict[str, Tensor]):
    """The tensors of a file by name, all finite; ValueError for one that is missing or of another shape."""

    def __init__(self, tensors: Mapping[str, Tensor], place: object) -> None:
        super().__init__(tensors)
        self.place = place

    def __missing__(self, key: str) -> Tensor:
        raise ValueError(f"Expected a tensor {key}; {self.place} holds none. Make the file anew.")

    def under(self, prefix: str) -> Tensors:
        """Return the tensors whose key begins with a prefix, without it."""
        inside = {key[len(prefix) :]: x for key, x in self.items() if key.startswith(prefix)}
        return Tensors(inside, self.place)

    def shaped(self, key: str, *shape: int | None) -> Tensor:
        """Return a tensor of a shape, in which None is any length but 0."""
        tensor = self[key]
        sizes = zip(tensor.shape, shape, strict=False)
        fits = all(have == want or (want is None and have) for have, want in sizes)
        if len(shape) != tensor.ndim or not fits:
            self._refuse(key, shape)
        return tensor

    def check_like(self, expected: Mapping[str, Tensor]) -> None:
        """Raise ValueError unless the tensors have the names and shapes of the expected ones."""
        for key in sorted(self.keys() ^ expected.keys()):
            fault = "is missing" if key in expected else "is one too many"
            raise ValueError(
                f"Expected {len(expected)} tensors of this kind in {self.place}; {cut(key)} {fault}. Make it "
                f"anew."
            )
        for key, tensor in expected.items():
            if self[key].shape != tensor.shape or self[key].is_floating_point() != tensor.is_floating_point():
                self._refuse(key, tuple(tensor.shape))

    def check_state_of(self, make: Callable[[], nn.Module]) -> None:
        """Raise ValueError unless they are the state of the module that a call makes, without its memory."""
        try:
            with torch.device("meta"):
                expected = make().state_dict()
        except RuntimeError as error:
            raise ValueError(
                f"Expected sizes that tensors can have in {self.place}; {cut(error)}. Make the file anew."
            ) from error
        self.check_like(expected)

    def _refuse(self, key: str, shape: tuple[int | None, ...]) -> None:
        sizes = ["N" if size is None else size for size in shape]
        raise ValueError(
            f"Expected {cut(key)} {_shown(sizes)} in {self.place}; got {_shown(list(self[key].shape))} "
            f"{self[key].dtype}. Make the file anew."
        )


def load_tensors(path: Path, what: str, advice: str = "Make it anew.") -> Tensors:
    """Return the tensors of a safetensors file, which errors call ``what``: FileNotFoundError, ValueError."""
    return _finite(_read(path, what, None, advice)[0])


def write_tensors(path: str | Path, kind: str, tensors: Mapping[str, Tensor], header: dict) -> None:
    """Write tensors and, under the metadata's key ``kind``, JSON values; complete or not at all."""
    stored = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    # One entry: the order of several would differ from file to file.
    content = save(stored, metadata={kind: json.dumps({**header, _CHECKSUM: _checksum(stored)})})
    write_whole(Path(path), content)


def read_tensors(path: str | Path, kind: str, *, mapped: bool = False) -> tuple[Tensors, Fields]:
    """Return what `write_tensors` wrote. Raises FileNotFoundError, or ValueError for a file that is none.

    ``mapped`` leaves tensors in the file, for those that are larger than memory: as long as one is held,
    Windows neither replaces nor removes the file.
    """
    tensors, text = _read(Path(path), f"a {kind} file", kind, mapped=mapped)
    header = json_object(text, f"the {kind} of {path}")
    if header.pop(_CHECKSUM, None) not in (None, _checksum(tensors)):  # early versions wrote none
        blank = sum(not tensor.any() for tensor in tensors.values())
        raise ValueError(
            f"Expected a {kind} file as it was written; {path} is damaged (its checksum differs; {blank} of "
            f"{len(tensors)} tensors hold only zeros). Copy it again, or make it anew; where you changed "
            f"it, leave {_CHECKSUM} out of the {kind} in its metadata."
        )
    return _finite(tensors), header


def _read(
    path: Path, what: str, kind: str | None, advice: str = "Make it anew.", mapped: bool = False
) -> tuple[Tensors, str]:
    """Return the tensors of a file, and its metadata of a kind, without which nothing is read."""
    if path.is_dir():
        raise ValueError(f"Expected {what}; {path} is a folder. Name the file.")
    if not path.is_file():
        raise FileNotFoundError(f"Expected {what}; there is no file {path}. {advice}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(kind, "")
            if kind is not None and not text:
                raise ValueError("it is a safetensors file of another kind")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if not mapped:
                tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    except (SafetensorError, ValueError, OSError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f"Expected {what}; {path} cannot be read ({cut(error)}). {advice}") from error
    for key, tensor in tensors.items():
        if tensor.dtype not in _KINDS:
            raise ValueError(f"Expected {what}; {cut(key)} in {path} holds {tensor.dtype}. {advice}")
    return Tensors(tensors, path), text


def _finite(tensors: Tensors) -> Tensors:
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not (good := tensor.isfinite()).all():
            raise ValueError(
                f"Expected finite numbers in {tensors.place}; {int((~good).sum())} of {tensor.numel()} in "
                f"{cut(key)} are NaN or infinite. Make the file anew."
            )
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    checksum = 0
    for key in sorted(tensors):
        checksum = zlib.crc32(tensors[key].flatten().view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"
