"""The folder of views: what a run leaves for people and for reconstruction programs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from ..cameras import Cameras
from ..files import all_or_nothing, json_in, plain_names, replaceable
from ..messages import listed
from ..stored import Fields, load_tensors, read_json_object
from ..video.crop import CropPath
from ..video.decode import check_room
from ..video.pictures import UNTRAINED_LABEL, contact_sheet, read_frames, write_frames
from ..video.write import write_video
from ..views import FPS_RANGE, ViewGrid

# From our world (+y up) to that of D-NeRF and nerfstudio (+z up), a quarter turn about +x: (x, y, z) ->
# (x, -z, y). The input camera, on our +z side, comes to stand at -y: Blender's front view.
Y_UP_TO_Z_UP = torch.tensor([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)

CONVENTIONS = {
    "world": "Right-handed, +y up, the object at the origin and about 1 large; the input camera is on the +z "
    "side, or input_azimuth_deg counter-clockwise from it, where that is stated.",
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


def cameras_json(cameras: Cameras, size: int, fps: float, times: Sequence[float], crop: dict | None) -> dict:
    """Return the content of ``cameras.json``; `Cameras.from_json` reads the cameras back from it."""
    K, opengl, opencv = cameras.intrinsics(size), cameras.c2w_opengl(), cameras.c2w_opencv()
    angles = zip(cameras.azimuths_deg, cameras.elevations_deg, strict=True)
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
        for v, (azimuth, elevation) in enumerate(angles)
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


def check_square(height: int, width: int, even: bool) -> None:
    """Raise ValueError for pictures, made or not yet, that are not square or, for videos, of even size."""
    if height != width or (even and height % 2):
        expected = "Expected square images of even size" if even else "Expected square images"
        raise ValueError(
            f"{expected} (the cameras are square); got {height} x {width}. Resize or pad the views."
        )


def transforms_json(
    cameras: Cameras, size: int, fps: float, times: Sequence[float], has_masks: bool, suffix: str = ""
) -> dict:
    """Return what ``transforms_train.json`` and ``transforms.json`` hold: D-NeRF's fields, nerfstudio's lens.

    World +z up, camera axes OpenGL's (x right, y up, z backward). Frames are time by time, v fastest.
    D-NeRF adds ".png" to the names itself, nerfstudio wants it as their ``suffix``.
    """
    K = cameras.intrinsics(size)
    matrices = (Y_UP_TO_Z_UP @ cameras.c2w_opengl()).tolist()
    frames = []
    for t, time in enumerate(times):
        for v, matrix in enumerate(matrices):
            path = f"./frames/view_{v:02d}/{t:05d}{suffix}"
            frame = {"file_path": path, "time": time, "transform_matrix": matrix}
            if has_masks:
                frame["mask_path"] = f"./masks/view_{v:02d}/{t:05d}.png"
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


RUN_FILE = "run.json"
CAMERAS_FILE = "cameras.json"
CONTACT_SHEET = "contact_sheet.png"
_LATENTS_FILE = "latents/latents.safetensors"
_LATENTS_KEY = "latents"
_MOST_FRAMES, _MOST_MISSING = 100_000, 1000  # of a folder that we wrote, and that are looked for in vain
# How the names begin that `read_views` reads; the others are for people and for other programs.
_NEEDED_TO_READ = ("frames/", "masks/", "latents", CAMERAS_FILE)
# Every name that `write_views` may make.
_NAMES = re.compile(
    r"run\.json|cameras\.json|transforms(_train)?\.json|contact_sheet\.png|view_\d+\.mp4|frames|masks|latents"
)


def write_views(
    folder: Path,
    grid: ViewGrid,  # square images of even size
    *,
    crop: dict | None = None,  # how the input was cut out of the source clip, JSON values
    run: dict | None = None,  # settings, versions, timings, JSON values
    save_latents: bool = False,  # also the sampled latents, float16
    overwrite: bool = False,
) -> list[Path]:
    """Write views as videos, frames, masks, contact sheet, camera files and ``run.json``, all or nothing.

    The grid's own settings join the ``settings`` of ``run``, its facts win over equal names there. ``folder``
    is made if missing; files of other names in it are left alone, ``overwrite`` replaces what an earlier call
    wrote. Returns the entries made, ``run.json`` last.

    Raises:
        FileExistsError: views are there already and ``overwrite`` is off, or such entries of other origin.
        ValueError: images that are not square and even, latents that are not there, values JSON cannot hold.
        OSError: the disk is full or read-only; the text says which folder and what to do.
    """
    folder = Path(folder)
    height, width = grid.images.shape[2:4]
    check_square(height, width, even=True)
    if save_latents and grid.latents is None:
        raise ValueError("Expected latents to save; these views have none. Leave save_latents off.")
    size, has_masks = grid.images.shape[2], grid.masks is not None
    times = grid.frame_times()
    cameras = _json(cameras_json(grid.cameras, size, grid.fps, times, crop))
    transforms = {
        name: _json(transforms_json(grid.cameras, size, grid.fps, times, has_masks, suffix))
        for name, suffix in (("transforms_train.json", ""), ("transforms.json", ".png"))
    }
    settings = {**(grid.settings or {}), **(run or {}).get("settings", {})}
    names = ("variant", "trained", "seed", "steps", "fps", "n_frames", "times", "n_views")
    facts = {**{name: getattr(grid, name) for name in names}, "size": size}
    warning = {} if grid.trained else {"warning": UNTRAINED_LABEL}
    run = {**(run or {}), "settings": settings, **facts, **warning}
    _json(run)

    # The uncompressed frames, masks and latents are more than the folder will take.
    needed = 4 * grid.images.numel() // 3 + (0 if grid.latents is None else 2 * grid.latents.numel())
    replaced = partial(replaceable_views, folder, overwrite)
    with all_or_nothing(folder, replaced, RUN_FILE, needed) as staging:
        for v in range(grid.n_views + 1):
            write_video(staging / f"view_{v:02d}.mp4", grid.images[:, v], grid.fps)
            write_frames(staging / "frames" / f"view_{v:02d}", grid.images[:, v])
            if grid.masks is not None:
                write_frames(staging / "masks" / f"view_{v:02d}", grid.masks[:, v])
        contact_sheet(grid).save(staging / CONTACT_SHEET)
        if save_latents and grid.latents is not None:
            (staging / _LATENTS_FILE).parent.mkdir()
            half = grid.latents.detach().to("cpu", torch.float16).contiguous()
            (staging / _LATENTS_FILE).write_bytes(save({_LATENTS_KEY: half}))
        (staging / CAMERAS_FILE).write_text(cameras)
        for name, text in transforms.items():
            (staging / name).write_text(text)
        names = [*sorted(path.name for path in staging.iterdir()), RUN_FILE]
        (staging / RUN_FILE).write_text(_json({**run, "entries": names}))
    return [folder / name for name in names]


def read_crop(folder: str | Path) -> CropPath | None:
    """Return how the input of a folder of views was cut out of its clip; None where that is not known."""
    file = Path(folder).expanduser() / CAMERAS_FILE
    content = json_in(file)  # others write files of this name, too
    crop = content.get("crop") if isinstance(content, dict) else None
    return CropPath.from_json(Fields(crop, file)) if isinstance(crop, dict) else None


def read_views(folder: Path) -> ViewGrid:
    """Return the grid that `write_views` wrote: images and masks to 8 bits, latents to 16 bits.

    Raises FileNotFoundError for a folder that is incomplete, ValueError for damaged files.
    """
    folder = Path(folder)
    for name in (RUN_FILE, CAMERAS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"Expected a complete folder of views; {folder} has no {name}. Give the folder that holds "
                f"{RUN_FILE} and view_00.mp4, or make the views again."
            )
    run = read_json_object(folder / RUN_FILE, "views")
    cameras = Cameras.from_json(read_json_object(folder / CAMERAS_FILE, "cameras"))
    if missing := [name for name in missing_files(folder) if name.startswith(_NEEDED_TO_READ)]:
        raise FileNotFoundError(
            f"Expected a complete folder of views; {folder} lacks {len(missing)} of its files: "
            f"{listed(missing)}. Bring them back, or make the views again."
        )
    n_cameras = cameras.n_views + 1
    shape = n_cameras, run.count("n_frames", 1, max(_MOST_FRAMES // n_cameras, 1))
    images = _read_grid(folder / "frames", *shape, 3)
    masks = _read_grid(folder / "masks", *shape) if (folder / "masks").is_dir() else None
    latents = None
    if (folder / _LATENTS_FILE).is_file():
        sizes = shape[1], cameras.n_views, 4, None, None
        latents = load_tensors(folder / _LATENTS_FILE, "latents").shaped(_LATENTS_KEY, *sizes).float()
    return ViewGrid(
        images,
        cameras,
        masks,
        run.number("fps", *FPS_RANGE),
        latents,
        run.text("variant"),
        run.flag("trained"),
        *(run.count(key, -(2**63), 2**64) if run.has(key) else None for key in ("seed", "steps")),
        settings=dict(run.object("settings")) if run.get("settings") else None,
        times=run.times("times") if run.get("times") else None,
    )


def read_run(folder: Path) -> Fields:
    """Return the content of ``run.json``, or nothing when there is none that can be read."""
    run = json_in(folder / RUN_FILE)
    return Fields(run if isinstance(run, dict) else {}, folder / RUN_FILE)


def entries_of(run: dict) -> list[str]:
    """Return the names that a folder's ``run.json`` says `write_views` made there."""
    return [name for name in plain_names(run.get("entries")) if _NAMES.fullmatch(name)]


def replaceable_views(folder: Path, overwrite: bool) -> list[str]:
    """Return which entries of ``folder`` new views would replace; raise as `write_views` does."""
    foreign = "which this program did not write and never replaces"
    return replaceable(folder, RUN_FILE, _NAMES, overwrite, foreign=foreign)


def missing_files(folder: Path) -> list[str]:
    """Return which files of a folder of views are gone, relative to it; the first thousand, if so many are.

    Raises ValueError where ``run.json`` does not say how many there have to be.
    """
    run = read_run(folder)
    expected = entries_of(run)
    names = [*expected, *([_LATENTS_FILE] if "latents" in expected else [])]
    kinds = [kind for kind in ("frames", "masks") if kind in expected]
    views = range(run.count("n_views", 1) + 1 if kinds else 0)
    frames = range(run.count("n_frames", 1, _MOST_FRAMES) if kinds else 0)
    pictures = (f"{kind}/view_{v:02d}/{t:05d}.png" for kind in kinds for v in views for t in frames)
    missing = (name for name in chain(names, pictures) if not (folder / name).exists())
    return [*islice(missing, _MOST_MISSING)]


def _json(content: dict) -> str:
    """Return JSON text; ValueError, before anything is written, for values that it cannot hold."""
    try:
        return json.dumps(content, indent=2, allow_nan=False) + "\n"
    except TypeError as error:
        raise ValueError(
            f"Expected plain JSON values in crop and run; {error}. Convert them first."
        ) from error


def _read_grid(folder: Path, n_cameras: int, n_frames: int, *channels: int) -> torch.Tensor:
    check_room([folder / f"view_{v:02d}" / f"{t:05d}.png" for v in range(n_cameras) for t in range(n_frames)])
    views = [read_frames(folder / f"view_{v:02d}", n_frames) for v in range(n_cameras)]
    if wrong := [view.shape for view in views if view.shape != (*views[0].shape[:3], *channels)]:
        raise ValueError(
            f"Expected 8-bit pictures {[*views[0].shape[1:3], *channels]} of all views in {folder}; got "
            f"{[*wrong[0][1:]]}. Make the views again, or bring its files back."
        )
    return torch.from_numpy(np.stack(views, axis=1)).float() / 255
