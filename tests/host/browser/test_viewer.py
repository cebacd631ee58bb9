"""An exported mesh in the page's own viewer: it plays."""

import itertools
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sv4d2_recorded_schemas import defaults

HERE = Path(__file__).parent
SECONDS = 300
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


def test_the_exported_mesh_moves(frontend, start_server, tmp_path):
    pictures = Path(os.environ.get("SV4D2_SCREENSHOTS", tmp_path)) / frontend.name
    pictures.mkdir(parents=True, exist_ok=True)
    still, moving = ([pictures / f"viewer {kind} {i}.png" for i in range(4)] for kind in ("still", "moving"))
    with start_server(frontend.folder) as server:
        if "Preview3DAdvanced" not in server.object_info():
            version = server.get("/system_stats")["system"]["comfyui_version"]
            pytest.skip(f"ComfyUI {version} has no Preview3DAdvanced, whose viewer takes a 3D file")
        job = {
            "url": server.url,
            "newNodes": frontend.new_nodes,
            "chromium": os.environ.get("CHROMIUM", "/usr/bin/chromium"),
            "profile": str(tmp_path / "profile"),
            "prompt": PROMPT,
            "node": 4,
            "still": list(map(str, still)),
            "moving": list(map(str, moving)),
            # The motion takes two seconds.
            "every_ms": 300,
            "page": str(pictures / "viewer.png"),
        }
        job_file = tmp_path / "job.json"
        job_file.write_text(json.dumps(job))
        done = subprocess.run(
            [os.environ.get("NODE", "node"), str(HERE / "viewer.js"), str(job_file)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, f"{done.stderr[-3000:]}\nServer log:\n{server.log[-3000:]}"
    said = json.loads(done.stdout)
    assert said["status"] == "execution_success", said["message"]
    assert changed_pixels(still) == 0
    assert changed_pixels(moving) > 100
