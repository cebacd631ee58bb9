"""What pygltflib reads from a GLB."""

import numpy as np
import pygltflib

_TYPES = {5126: np.float32, 5125: np.uint32, 5123: np.uint16}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


def read_accessor(glb: pygltflib.GLTF2, number: int) -> np.ndarray:
    """Return the rows of an accessor, and check what it says about its own range."""
    accessor = glb.accessors[number]
    start, kind = glb.bufferViews[accessor.bufferView].byteOffset, _TYPES[accessor.componentType]
    shape = accessor.count, _WIDTHS[accessor.type]
    rows = np.frombuffer(glb.binary_blob(), kind, shape[0] * shape[1], start).reshape(shape)
    if accessor.max:
        assert rows.min(0).tolist() == accessor.min and rows.max(0).tolist() == accessor.max
    return rows
