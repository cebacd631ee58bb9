"""An exported mesh in the page's own viewer: it plays."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sv4d2_recorded_schemas import defaults

# The page rounds numbers to the steps of their widgets.
EXPORT = defaults("SV4D2Export4D", filename_prefix="4d/block", resolution=32)
PROMPT = {
    "1": {"class_type": "SV4D2LoadScene", "inputs": {"file": "block.safetensors"}},
    "2": {"class_type": "SV4D2Export4D", "inputs": {"scene": ["1", 0], **EXPORT}},
    "3": {"class_type": "SV4D2CamerasToCameraInfo", "inputs": {"cameras": ["1", 1], "view": 0}},
    "4": {
        "class_type": "Preview3DAdvanced",
        "inputs": {"model_3d": ["2", 2], "camera_info": ["3", 0], "width": 512, "height": 512},
    },
}


def changed_pixels(files):
    """Return how many pixels differ clearly between the two pictures that differ most."""
    pictures = [np.asarray(Image.open(file).convert("RGB")).astype(int) for file in files]
    return max(int((abs(a - b).max(-1) > 40).sum()) for a, b in itertools.combinations(pictures, 2))


def test_the_exported_mesh_moves(frontend, browse, start_server, tmp_path):
    pictures = Path(os.environ.get("SV4D2_SCREENSHOTS", tmp_path)) / frontend.name
    pictures.mkdir(parents=True, exist_ok=True)
    still, moving = ([pictures / f"viewer {kind} {i}.png" for i in range(4)] for kind in ("still", "moving"))
    with start_server(frontend.folder) as server:
        if "Preview3DAdvanced" not in server.object_info():
            version = server.get("/system_stats")["system"]["comfyui_version"]
            pytest.skip(f"ComfyUI {version} has no Preview3DAdvanced, whose viewer takes a 3D file")
        # The motion takes two seconds.
        files = {"still": list(map(str, still)), "moving": list(map(str, moving)), "every_ms": 300}
        said = browse(server, "viewer.js", prompt=PROMPT, node=4, **files, page=str(pictures / "viewer.png"))
    assert said["status"] == "execution_success", said["message"]
    assert changed_pixels(still) == 0
    assert changed_pixels(moving) > 100
