"""Camera files beside the frames: our ``cameras.json``, and ``transforms.json`` for D-NeRF and nerfstudio."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..cameras import Cameras

# D-NeRF and nerfstudio have +z up, our world +y up. A quarter turn about +x takes one to the other:
# (x, y, z) -> (x, -z, y). The input camera, on our +z side, comes to stand at -y: Blender's front view.
Y_UP_TO_Z_UP = torch.tensor(
    [[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]],
    dtype=torch.float64,
)

CONVENTIONS = {
    "world": "Right-handed, +y up, the object at the origin and about 1 large; the input camera is on the +z "
    "side.",
    "angles": "Degrees. azimuth_deg and elevation_deg are relative to the input view (index 0). A positive "
    "azimuth moves the camera to the viewer's right, counter-clockwise seen from above; a positive elevation "
    "lifts it. absolute_elevation_deg = elevation_deg + input_elevation_deg.",
    "c2w_opengl": "Camera to world, rows of a 4 x 4 matrix, p_world = c2w p_camera; camera axes x right, "
    "y up, z backward.",
    "c2w_opencv": "The same camera with axes x right, y down, z forward.",
    "K": "Pinhole matrix in pixels of the square image; pixel (row i, column j) covers [j, j + 1) x "
    "[i, i + 1).",
    "times": "What each frame shows, from 0 for the clip's first frame to 1 for its last; fps is the rate of "
    "the videos.",
    "crop": "How the processed input was cut out of the source clip, to undo it; null when not known.",
}


def frame_path(view: int, frame: int) -> str:
    """Return the place of a frame below the folder, without extension."""
    return f"frames/view_{view:02d}/{frame:05d}"


def mask_path(view: int, frame: int) -> str:
    """Return the place of a mask below the folder, with extension."""
    return f"masks/view_{view:02d}/{frame:05d}.png"


def cameras_json(cameras: Cameras, size: int, fps: float, times: Sequence[float], crop: dict | None) -> dict:
    """Return the content of ``cameras.json``; `Cameras.from_json` reads the cameras back from it."""
    K, opengl, opencv = cameras.intrinsics(size), cameras.c2w_opengl(), cameras.c2w_opencv()
    views = [
        {
            "index": v,
            "azimuth_deg": azimuth,
            "elevation_deg": elevation,
            "absolute_elevation_deg": elevation + cameras.input_elevation_deg,
            "K": K.tolist(),
            "c2w_opengl": opengl[v].tolist(),
            "c2w_opencv": opencv[v].tolist(),
        }
        for v, (azimuth, elevation) in enumerate(
            zip(cameras.azimuths_deg, cameras.elevations_deg, strict=True)
        )
    ]
    return {
        "conventions": CONVENTIONS,
        "size": size,
        "fps": fps,
        "n_frames": len(times),
        "times": list(times),
        **cameras.to_json(),
        "crop": crop,
        "views": views,
    }


def transforms_json(
    cameras: Cameras,
    size: int,
    fps: float,
    times: Sequence[float],
    has_masks: bool,
    *,
    views: Sequence[int] | None = None,
    suffix: str = "",
) -> dict:
    """Return the content of ``transforms_train.json``: D-NeRF's fields and nerfstudio's intrinsics.

    The world is turned to +z up; the camera axes are OpenGL's (x right, y up, z backward). Frames are listed
    time by time, v fastest: all ``views``, or only the given ones. ``suffix`` ends the names of the pictures:
    D-NeRF adds ".png" itself, nerfstudio wants it in the file.
    """
    K = cameras.intrinsics(size)
    matrices = (Y_UP_TO_Z_UP @ cameras.c2w_opengl()).tolist()
    frames = []
    for t, time in enumerate(times):
        for v in range(len(matrices)) if views is None else views:
            frame = {
                "file_path": f"./{frame_path(v, t)}{suffix}",
                "time": time,
                "transform_matrix": matrices[v],
            }
            if has_masks:
                frame["mask_path"] = f"./{mask_path(v, t)}"
            frames.append(frame)
    return {
        "camera_angle_x": math.radians(cameras.fov_deg),
        "camera_model": "OPENCV",
        "fl_x": float(K[0, 0]),
        "fl_y": float(K[1, 1]),
        "cx": float(K[0, 2]),
        "cy": float(K[1, 2]),
        "w": size,
        "h": size,
        "fps": fps,
        "frames": frames,
    }
