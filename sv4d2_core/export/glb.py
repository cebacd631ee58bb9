"""Binary glTF of a mesh or of a mesh that moves, written here, as trimesh writes no morph targets.

glTF cannot animate vertices as such. What every viewer plays is a morph target per frame, whose weight is 1
at that frame's key time and 0 at all others: linear interpolation of weights is that of the frames.
"""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files import write_whole
from ..scene.tracking.mesh import Mesh, MeshAnimation, Texture, check_surface, srgb_to_linear

_COMPONENT_TYPES = {"float32": 5126, "uint32": 5125, "uint16": 5123}
_TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}
ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_MAX_BYTES = 2**32 - 1


class GLBContainer:
    """Collects binary data and the JSON entries that describe it (glTF 2.0, sections 3.6 and 4)."""

    def __init__(self) -> None:
        self._accessors: list[dict[str, Any]] = []
        self._views: list[dict[str, Any]] = []
        self._data = bytearray()

    def add_bytes(self, content: bytes, target: int | None = None) -> int:
        """Return the number of a new buffer view."""
        view = {"buffer": 0, "byteOffset": len(self._data), "byteLength": len(content)}
        if target is not None:
            view["target"] = target
        self._views.append(view)
        self._data += content + bytes(-len(content) % 4)
        return len(self._views) - 1

    def add_array(
        self,
        values: np.ndarray,  # [count] or [count, 2..4], float32, uint32 or uint16
        target: int | None = None,
        *,
        limits: bool = False,  # states the smallest and largest values: of positions and key times
        normalized: bool = False,  # integers that stand for 0..1
    ) -> int:
        """Return the number of a new accessor of one row per element."""
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
        self._accessors.append(accessor)
        return len(self._accessors) - 1

    def to_bytes(self, extension: str, document: dict[str, Any]) -> bytes:
        """Return the file that shows node 0 of a document; ValueError if that is longer than GLB allows."""
        document = {
            "asset": {"version": "2.0", "generator": "sv4d2"},
            "extensionsUsed": [extension],
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            **document,
            "accessors": self._accessors,
            "bufferViews": self._views,
            "buffers": [{"byteLength": len(self._data)}],
        }
        text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + len(self._data)
        if total > _MAX_BYTES:
            raise ValueError(
                f"Expected a GLB below 4.3 GB, the most that its header can state; this one would have "
                f"{total / 1e9:.1f} GB. Export fewer frames or fewer faces."
            )
        head = struct.pack("<4sIII4s", b"glTF", 2, total, len(text), b"JSON")
        return b"".join((head, text, struct.pack("<I4s", len(self._data), b"BIN\0"), self._data))


ANIMATION_NAME = "motion"
_NAME = "object"
_UNLIT = "KHR_materials_unlit"
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP_TO_EDGE = 9729, 9987, 33071
_MAX_SHORT_VERTICES = 65535  # as an index it starts a new strip in some interfaces and is not allowed


def write_animated_glb(
    path: str | Path, animation: MeshAnimation, *, texture: Texture | None = None, overwrite: bool = False
) -> int:
    """Write `glb_bytes` and return its size; what it raises, and `write_whole`."""
    return write_whole(Path(path), glb_bytes(animation, texture, "animation"), overwrite)


def glb_bytes(mesh: Mesh | MeshAnimation, texture: Texture | None = None, what: str = "mesh") -> bytes:
    """Return a GLB of a mesh, which errors call ``what``.

    Of one that moves the first frame is the mesh itself and each later frame ``t`` the target ``frame_00t``;
    keys are in seconds. A texture, of the same call of `bake_texture`, takes the place of the colours. Raises
    ValueError: no surface, numbers that are not finite, more than a GLB can hold.
    """
    check_surface(mesh, what)
    glb = GLBContainer()
    document = _document(glb, mesh if isinstance(mesh, Mesh) else mesh.at(0), texture)
    if isinstance(mesh, MeshAnimation) and len(mesh.positions) > 1:
        _add_motion(glb, document, mesh)
    return glb.to_bytes(_UNLIT, document)


def linear_colours(colours: np.ndarray, opacities: np.ndarray) -> np.ndarray:
    """Return COLOR_0, [N, 4] uint16, of display values [N, 3] and opacities [N], all in 0..1."""
    linear = np.concatenate([srgb_to_linear(colours), opacities[:, None]], axis=1)
    # In eight bits the darkest 26 display values would share three linear ones.
    return np.rint(linear * 65535).astype(np.uint16)


def _document(glb: GLBContainer, mesh: Mesh, texture: Texture | None) -> dict[str, Any]:
    # The colours hold the light of the pictures already, so the material asks for none. There are no normals,
    # as those of the first frame are wrong in the others.
    positions = mesh.vertices.numpy().astype(np.float32)
    # Double-sided, as an open or folded surface is better seen than missing.
    material: dict[str, Any] = {
        "name": "baked light",
        "doubleSided": True,
        "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0},
        "extensions": {_UNLIT: {}},
    }
    document: dict[str, Any] = {"nodes": [{"name": _NAME, "mesh": 0}], "materials": [material]}
    attributes = {"POSITION": glb.add_array(positions, ARRAY_BUFFER, limits=True)}
    if texture is None:
        colours = linear_colours(mesh.colours.numpy(), np.ones(len(positions)))
        attributes["COLOR_0"] = glb.add_array(colours, ARRAY_BUFFER, normalized=True)
    else:
        attributes["TEXCOORD_0"] = glb.add_array(texture.uvs.numpy().astype(np.float32), ARRAY_BUFFER)
        png = io.BytesIO()
        Image.fromarray(texture.pixels.numpy()).save(png, "PNG")
        view = glb.add_bytes(png.getvalue())
        image = {"name": "baked light", "bufferView": view, "mimeType": "image/png"}
        sampler = {"magFilter": _LINEAR, "minFilter": _LINEAR_MIPMAP_LINEAR}
        sampler |= {"wrapS": _CLAMP_TO_EDGE, "wrapT": _CLAMP_TO_EDGE}
        material["pbrMetallicRoughness"]["baseColorTexture"] = {"index": 0}
        document |= {"images": [image], "samplers": [sampler], "textures": [{"source": 0, "sampler": 0}]}
    index_type = np.uint16 if len(positions) <= _MAX_SHORT_VERTICES else np.uint32
    indices = glb.add_array(mesh.faces.numpy().astype(index_type).reshape(-1), _ELEMENT_ARRAY_BUFFER)
    primitive = {"attributes": attributes, "indices": indices, "material": 0}
    return document | {"meshes": [{"name": _NAME, "primitives": [primitive]}]}


def _add_motion(glb: GLBContainer, document: dict[str, Any], animation: MeshAnimation) -> None:
    """Add a morph target for each frame after the first, and the keys that show each at its time."""
    positions = animation.positions.numpy().astype(np.float32)
    n_targets = len(positions) - 1
    offsets = positions[1:] - positions[0]
    mesh = document["meshes"][0]
    targets = [glb.add_array(frame, ARRAY_BUFFER, limits=True) for frame in offsets]
    mesh["primitives"][0]["targets"] = [{"POSITION": target} for target in targets]
    mesh["weights"] = [0.0] * n_targets
    mesh["extras"] = {"targetNames": [f"frame_{t + 1:03d}" for t in range(n_targets)]}
    # Row t holds the weights at key t: none for the first frame, then one each.
    weights = np.eye(n_targets + 1, n_targets, -1, dtype=np.float32)
    sampler = {
        "input": glb.add_array(np.array(animation.seconds(), np.float32), limits=True),
        "interpolation": "LINEAR",
        "output": glb.add_array(weights.reshape(-1)),
    }
    channel = {"sampler": 0, "target": {"node": 0, "path": "weights"}}
    document["animations"] = [{"name": ANIMATION_NAME, "samplers": [sampler], "channels": [channel]}]
