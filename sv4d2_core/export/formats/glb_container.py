"""The binary glTF container: arrays become accessors, and all of it becomes one block of bytes."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

_COMPONENT_TYPES = {"float32": 5126, "uint32": 5125, "uint16": 5123}
_TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
_MAX_BYTES = 2**32 - 1


class GLBContainer:
    """Collects binary data and the JSON entries that describe it.

    Source: glTF 2.0 specification, sections 3.6 (data) and 4 (GLB).
    """

    def __init__(self) -> None:
        self.accessors: list[dict[str, Any]] = []
        self.views: list[dict[str, Any]] = []
        self._parts: list[bytes] = []
        self._length = 0

    def add_bytes(self, content: bytes, target: int | None = None) -> int:
        """Return the number of a new buffer view; ``target`` is what vertex data is for."""
        view = {"buffer": 0, "byteOffset": self._length, "byteLength": len(content)}
        if target is not None:
            view["target"] = target
        self.views.append(view)
        content += bytes(-len(content) % 4)
        self._parts.append(content)
        self._length += len(content)
        return len(self.views) - 1

    def add_array(
        self,
        values: np.ndarray,  # [count] or [count, 2..4], float32, uint32 or uint16
        target: int | None = None,
        *,
        limits: bool = False,
        normalized: bool = False,
    ) -> int:
        """Return the number of a new accessor.

        Args:
            values: one row for each element.
            target: what vertex data is for.
            limits: state the smallest and largest values, which positions and key times must have.
            normalized: integers stand for 0..1.
        """
        rows = values.reshape(len(values), -1)
        accessor: dict[str, Any] = {
            "bufferView": self.add_bytes(rows.astype(rows.dtype.newbyteorder("<")).tobytes(), target),
            "componentType": _COMPONENT_TYPES[values.dtype.name],
            "count": len(rows),
            "type": _TYPES[rows.shape[1]],
        }
        if limits:
            accessor |= {"min": rows.min(0).tolist(), "max": rows.max(0).tolist()}
        if normalized:
            accessor["normalized"] = True
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def to_bytes(self, document: dict[str, Any]) -> bytes:
        """Return the file whose JSON is ``document`` with this container's entries added.

        Raises:
            ValueError: it would be longer than the format allows.
        """
        document = {
            **document,
            "accessors": self.accessors,
            "bufferViews": self.views,
            "buffers": [{"byteLength": self._length}],
        }
        text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + self._length
        if total > _MAX_BYTES:
            raise ValueError(
                f"Expected a GLB below 4.3 GB, the most that its header can state; this one would have "
                f"{total / 1e9:.1f} GB. Export fewer frames or fewer faces."
            )
        header = struct.pack("<4sII", b"glTF", 2, total)
        chunks = (struct.pack("<I4s", len(text), b"JSON"), text, struct.pack("<I4s", self._length, b"BIN\0"))
        return b"".join((header, *chunks, *self._parts))
