"""Users' own renders as training data: folders of scenes, read and checked before training starts.

A scene is a folder as `write_views` leaves it, or a D-NeRF or nerfstudio data set whose pictures form a full
grid of cameras and times.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..cameras import DEFAULT_FOV_DEG, Cameras
from ..data.clips import VIDEO_SUFFIXES
from ..data.reader import read_dataset
from ..data.transforms import TRANSFORMS_FILES, transforms_file
from ..data.views_folder import CAMERAS_FILE, RUN_FILE, read_views
from ..files import (
    file_fingerprint,
    fingerprint_of,
    read_tensors,
    remove_unfinished,
    write_tensors,
    write_whole,
)
from ..video.foreground import SPECK_SHARE, masks_of, near_white_masks
from ..video.read import IMAGE_SUFFIXES, natural_key, read_pictures
from ..views import ViewGrid
from ..world.body import framed, parts_at
from ..world.render import render_parts
from ..world.suite import TRAINING_SEEDS, draw_object

# The least that shows motion.
FEWEST_FRAMES = 2
# The network is not told the field of view. A wide lens bends the object otherwise than the model's does;
# a narrow one, as the curation's enlargement leaves it, only flattens it a little.
_FOVS_DEG = (10.0, 51.0)
# The network is told the same of two views that are closer than this.
_SMALLEST_ANGLE_DEG = 0.1
# A mask that covers more of a picture leaves no background, or is inverted.
_LARGEST_SHARE = 0.95
# How far the matrices of a cameras.json may be from its angles.
_MATRIX_TOLERANCE = 1e-3


def wrong_pictures(files: list[Path], known: str) -> Iterator[str]:
    """Yield what is wrong with the pictures of a scene that cannot be read, beyond the ``known`` reason."""
    missing = [file for file in files if not file.is_file()]
    if len(missing) > 1:
        yield f"{len(missing)} of {len(files)} pictures are missing, the first is {missing[0]}."
    sizes: Counter[tuple[int, int]] = Counter()
    for file in files:
        if file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES:
            try:
                height, width = read_pictures(file, slice(0, 1, 1))[0][0].shape[:2]
                sizes[width, height] += 1
            except (ValueError, OSError) as error:
                if str(file) not in known:
                    yield " ".join(str(error).split())
    if len(sizes) > 1:
        counts = ", ".join(f"{n} of {width} x {height}" for (width, height), n in sizes.most_common())
        yield f"Expected pictures of one size; got {counts}. Render or crop them alike."


def wrong_matrices(file: Path, cameras: Cameras) -> Iterator[str]:
    """Yield where the matrices of a ``cameras.json``, if it has any, say something else than its angles."""
    expected = cameras.c2w_opengl()
    try:
        views = json.loads(file.read_text(encoding="utf-8")).get("views", [])
        stated = torch.tensor([view["c2w_opengl"] for view in views], dtype=torch.float64)
    except (ValueError, TypeError, KeyError) as error:
        yield f"Expected 4 x 4 numbers as c2w_opengl of every view in {file}; {error!r}. Write it again."
        return
    if not views:
        return
    if stated.shape != expected.shape:
        yield f"Expected matrices {list(expected.shape)} in {file}; got {list(stated.shape)}. Write it again."
        return
    error = (stated - expected).abs().amax(dim=(1, 2))
    if not error.max() <= _MATRIX_TOLERANCE:  # NaN is not
        yield (
            f"Expected matrices that agree with the angles in {file} (to {_MATRIX_TOLERANCE:g}); c2w_opengl "
            f"of view {int(error.argmax())} is off by {error.max():.3g}. Write the cameras again."
        )


def wrong_cameras(cameras: Cameras, n_views: int) -> Iterator[str]:
    """Yield why a model of ``n_views`` novel views cannot learn from these cameras."""
    if cameras.n_views < n_views:
        yield (
            f"Expected at least {n_views + 1} cameras (the input view and the model's {n_views} novel "
            f"views); got {cameras.n_views + 1}. Render more views."
        )
    lowest, highest = _FOVS_DEG
    if not lowest <= cameras.fov_deg <= highest:
        yield (
            f"Expected a field of view of about {DEFAULT_FOV_DEG:g} degrees ({lowest:g} to {highest:g}), as "
            f"the model is not told it; got {cameras.fov_deg:.4g}. Render with another lens, at the distance "
            f"that shows the object as large."
        )
    towards = cameras.eyes() / cameras.radius
    chord = (towards[:, None] - towards).norm(dim=-1)
    angles = torch.rad2deg(2 * torch.asin((chord / 2).clamp(max=1))).triu(1)
    angles += 360 * torch.ones_like(angles).tril()
    if angles.min() < _SMALLEST_ANGLE_DEG:
        first, second = divmod(int(angles.argmin()), len(angles))
        yield (
            f"Expected views from different angles; views {first} and {second} are {angles.min():.3g} "
            f"degrees apart (elevation {cameras.elevations_deg[first]:g}, azimuth "
            f"{cameras.azimuths_deg[first]:g}). Leave one of them out."
        )


def wrong_views(grid: ViewGrid, size: int) -> Iterator[str]:
    """Yield why views, with masks, cannot be trained on as pictures of ``size`` pixels."""
    pixels = grid.images.shape[2]
    if not grid.trained:
        yield "Expected pictures of an object; these views are noise that an untrained model made."
    if grid.n_frames < FEWEST_FRAMES:
        yield f"Expected at least {FEWEST_FRAMES} frames; got {grid.n_frames}. Render a clip that moves."
    if pixels < size:
        yield (
            f"Expected pictures of at least {size} x {size}; got {pixels} x {pixels}. Render larger ones, or "
            f"train at a smaller size."
        )
    covered = masks_of(grid).mean(dim=(2, 3))
    seen = torch.minimum(covered, near_white_masks(grid.images).mean(dim=(2, 3)))
    for bad, what in (
        (seen < SPECK_SHARE, f"show none (less than {100 * SPECK_SHARE:g} % that is not white)"),
        (covered > _LARGEST_SHARE, f"are covered by it (more than {100 * _LARGEST_SHARE:g} %)"),
    ):
        if bad.any():
            frame, view = bad.nonzero()[0].tolist()
            yield (
                f"Expected an object on white in every picture; {int(bad.sum())} of {bad.numel()} {what}, "
                f"the first is frame {frame} of view {view}. Render them again, check the masks, or leave "
                f"out these frames."
            )


_log = logging.getLogger(__name__)
# Lines of a refusal.
_LISTED = 20


def find_training_scenes(root: Path) -> list[Path]:
    """Return the scenes at ``root`` in natural order: itself, or the folders in it that are scenes.

    Raises:
        FileNotFoundError: there is nothing at ``root``.
    """
    root = Path(root).expanduser().resolve()
    if not root.exists():
        raise FileNotFoundError(f"Expected a folder with training scenes; there is nothing at {root}.")
    return [root] if _is_scene(root) else [folder for folder in _folders(root) if _is_scene(folder)]


def read_training_scene(path: Path, size: int) -> ViewGrid:
    """Return the views of a scene as square pictures of ``size`` pixels, with masks and without latents.

    Raises:
        FileNotFoundError: pictures or camera files are missing.
        ValueError: damaged files, cameras on no orbit, a grid with gaps, pictures that do not fit together.
    """
    return _read(Path(path).expanduser()).resized(size)


def check_training_folder(root: Path, *, size: int, n_views: int, n_frames: int) -> list[Path]:
    """Return the scenes at ``root`` after reading every picture of all of them.

    Args:
        root: a scene, or a folder of scenes.
        size: pixels of the square pictures to train on; those of a scene must not be smaller.
        n_views: V of the model: a scene needs one view more, the input.
        n_frames: T of the model. Clips of fewer frames (at least 2) are played back and forth, which is said.

    Raises:
        FileNotFoundError: there is nothing at ``root``.
        ValueError: all that is wrong, scene by scene.
    """
    scenes = find_training_scenes(root)
    root = Path(root).expanduser().resolve()
    wrong: dict[str, list[str]] = {}
    short = []
    _log.info("Reading all pictures of %d scenes before training starts.", len(scenes))
    for place in scenes if scenes == [root] else _folders(root):
        if place not in scenes:
            wrong.update({place.name: why} if (why := _why_no_scene(place)) else {})
            continue
        grid, wrong[place.name] = _checked(place, size, n_views)
        if grid is not None and grid.n_frames < n_frames:
            short.append(f"{place.name} ({grid.n_frames})")
    if not scenes and not any(wrong.values()):
        raise ValueError(_nothing_in(root))
    if any(wrong.values()):
        raise ValueError(_refusal(root, wrong, size, n_views))
    if short:
        _log.warning(
            "%d of %d scenes have fewer than the model's %d frames and are played back and forth: %s%s.",
            len(short),
            len(scenes),
            n_frames,
            ", ".join(short[:3]),
            " ..." if len(short) > 3 else "",
        )
    return scenes


def _is_scene(place: Path) -> bool:
    if place.is_file():
        return place.suffix.lower() == ".json"
    return (place / CAMERAS_FILE).is_file() or transforms_file(place) is not None


def _folders(root: Path) -> list[Path]:
    entries = root.iterdir() if root.is_dir() else ()
    return sorted((e for e in entries if e.is_dir() and not e.name.startswith(".")), key=natural_key)


def _is_dataset(place: Path) -> bool:
    is_ours = all((place / name).is_file() for name in (RUN_FILE, CAMERAS_FILE))
    return place.is_file() or (transforms_file(place) is not None and not is_ours)


def _read(place: Path) -> ViewGrid:
    if _is_dataset(place):
        _check_kinds_of_pictures(place)
    grid = read_dataset(place) if _is_dataset(place) else read_views(place)
    height, width = grid.images.shape[2:4]
    if height != width:
        raise ValueError(f"Expected square pictures; got {width} x {height}. Crop or pad them.")
    masks = masks_of(grid)
    return replace(grid, masks=masks, latents=None)


def _check_kinds_of_pictures(place: Path) -> None:
    """Raise ValueError for frames in files such as OpenEXR.

    FFmpeg would decode them, but as if linear light were colours, and NaN as some colour without a word.
    """
    files = _frame_files(place)
    odd = [file for file in files if file.is_file() and file.suffix.lower() not in IMAGE_SUFFIXES]
    if odd:
        raise ValueError(
            f"Expected pictures ({' '.join(IMAGE_SUFFIXES)}); {len(odd)} of {len(files)} frames are of "
            f"another kind, the first is {odd[0]}. Save them as 8-bit PNG, free of NaN and infinite values."
        )


def _frame_files(place: Path) -> list[Path]:
    """Return the files of a scene's frames as its camera file states them; none when that is damaged."""
    if not _is_dataset(place):
        return sorted((place / "frames").rglob("*.png"), key=natural_key)
    file = place if place.is_file() else transforms_file(place)
    try:
        frames = json.loads(file.read_text(encoding="utf-8"))["frames"] if file else []
        return [_frame_file(place if place.is_dir() else place.parent, f["file_path"]) for f in frames]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []


def _frame_file(folder: Path, stated: str) -> Path:
    """Return a frame's file; a path without extension means PNG. ValueError: it leads out of the folder."""
    file = folder / os.path.normpath(stated.replace("\\", "/"))
    if ".." in file.relative_to(folder).parts:
        raise ValueError(f"Expected a file inside {folder}; got {stated!r}.")
    is_complete = file.is_file() or file.suffix.lower() in IMAGE_SUFFIXES
    return file if is_complete else file.with_name(f"{file.name}.png")


def _checked(scene: Path, size: int, n_views: int) -> tuple[ViewGrid | None, list[str]]:
    """Return the views of a scene, None where they cannot be read, and what is wrong with it."""
    try:
        grid = _read(scene)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        return None, [reason, *wrong_pictures(_frame_files(scene), reason)]
    matrices = () if _is_dataset(scene) else wrong_matrices(scene / CAMERAS_FILE, grid.cameras)
    return grid, [*matrices, *wrong_cameras(grid.cameras, n_views), *wrong_views(grid, size)]


def _why_no_scene(folder: Path) -> list[str]:
    """Return why a folder beside the scenes is none; nothing when it holds no pictures either."""
    if scenes := [scene.name for scene in _folders(folder) if _is_scene(scene)]:
        return [
            f"Expected a scene; it holds {len(scenes)} of them, the first is {scenes[0]}. Give that folder."
        ]
    suffixes = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    found = sum(file.suffix.lower() in suffixes for file in folder.rglob("*"))
    files = f"{CAMERAS_FILE}, {' or '.join(TRANSFORMS_FILES)}"
    return [f"Expected a file with cameras ({files}); got {found} pictures without one."] if found else []


def _nothing_in(root: Path) -> str:
    entries = len(list(root.iterdir())) if root.is_dir() else 0
    what = f"{entries} entries, no scene among them" if entries else "nothing in it"
    return (
        f"Expected training scenes in {root}: folders with {TRANSFORMS_FILES[0]}, or folders of views as "
        f"`sv4d2 scenes` writes them; got {what}. Give the folder that holds your renders."
    )


def _refusal(root: Path, wrong: dict[str, list[str]], size: int, n_views: int) -> str:
    lines = [f"{name}: {problem}" for name, problems in wrong.items() for problem in problems]
    shown = [f"  {line}" for line in lines[:_LISTED]]
    if len(lines) > _LISTED:
        shown.append(f"  and {len(lines) - _LISTED} more")
    spoilt = sum(map(bool, wrong.values()))
    head = (
        f"Expected training scenes of {n_views + 1} or more cameras and {FEWEST_FRAMES} or more frames of "
        f"at least {size} x {size} pixels in {root}; {spoilt} of {len(wrong)} cannot be used:"
    )
    end = (
        "Repair these scenes or move them out of the folder; `sv4d2 curate` centres objects, and sorts out "
        "scenes that can be read but would spoil the training."
    )
    return "\n".join([head, *shown, end])


@dataclass(frozen=True)
class FolderScenes:
    """Scenes that `check_training_folder` found.

    Args:
        paths: of the scenes.
        size: H and W to read them at, pixels.
    """

    paths: tuple[Path, ...]
    size: int

    def scene(self, index: int) -> ViewGrid:
        """Return scene ``index``."""
        return read_training_scene(self.paths[index], self.size)

    def identity(self) -> dict[str, str]:
        """Return a hash of each scene's files under its folder's name."""
        return {path.name: _content(path) for path in self.paths}


def _content(scene: Path) -> str:
    folder = scene if scene.is_dir() else scene.parent
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return fingerprint_of([(str(path.relative_to(folder)), file_fingerprint(path)) for path in files])


ELEVATIONS_DEG = (-10.0, 40.0)
# Seconds do not exist in the world: a frame's share of an object's whole motion, slow to fast.
_FRAME_STEP = (0.02, 0.1)
# Between the first scenes of neighbouring seeds.
_APART = 0x9E3779B1
# How far the object reaches from the middle of the picture, in halves of its side.
_FILL = (0.8, 0.95)


@dataclass(frozen=True)
class ProceduralScenes:
    """Seeded scenes without end; scene ``i`` is the same on every machine.

    Args:
        seed: another seed gives other objects, cameras and times.
        size: H and W, pixels.
        n_cameras: cameras per scene, any of which may be the input view.
        n_frames: moments per scene.
        ring_share: share of the scenes with cameras all around at one elevation, as the official orbits have
            them; the others are seen from cameras anywhere.
    """

    seed: int = 0
    size: int = 32
    n_cameras: int = 12
    n_frames: int = 4
    ring_share: float = 0.9

    def scene(self, index: int) -> ViewGrid:
        """Return scene ``index`` with its masks."""
        # A generator uses no more than 32 bits of its seed.
        dice = torch.Generator("cpu").manual_seed((self.seed * _APART + index) % 2**32)
        thing = draw_object(int(torch.randint(len(TRAINING_SEEDS), (), generator=dice)))
        cameras = self._cameras(dice)
        step = float(_between(*_FRAME_STEP, torch.rand((), generator=dice)))
        step = min(step, 1 / max(1, self.n_frames - 1))
        start = float(torch.rand((), generator=dice)) * (1 - step * (self.n_frames - 1))
        times = start + step * torch.arange(self.n_frames, dtype=torch.float64)
        fill = float(_between(*_FILL, torch.rand((), generator=dice)))
        rendering = render_parts(framed(parts_at(thing, times), cameras, fill), cameras, self.size)
        return ViewGrid(rendering.rgb, cameras, rendering.mask, times=tuple(times.tolist()))

    def _cameras(self, dice: torch.Generator) -> Cameras:
        n = self.n_cameras
        if float(torch.rand((), generator=dice)) < self.ring_share:
            azimuths = 360 * torch.arange(n) / n
            elevations = _between(*ELEVATIONS_DEG, torch.rand((), generator=dice)).expand(n)
        else:
            azimuths = 360 * torch.rand(n, generator=dice)
            elevations = _between(*ELEVATIONS_DEG, torch.rand(n, generator=dice))
        relative = (elevations - elevations[0]).tolist()
        turned = ((azimuths - azimuths[0]) % 360).tolist()
        return Cameras(tuple(relative), tuple(turned), input_elevation_deg=float(elevations[0]))


def _between(low: float, high: float, share: torch.Tensor) -> torch.Tensor:
    return low + (high - low) * share


_FORMAT = "sv4d2.training_scene"
_SETTINGS = "scenes.json"
# Characters of the settings in a message.
_LONGEST = 200


class SceneSource(Protocol):
    """Where scenes come from; sent to other processes, so plain data."""

    def scene(self, index: int) -> ViewGrid:
        """Return scene ``index``, the same at every call."""
        ...


@dataclass(frozen=True)
class SceneStore:
    """The scenes of a source in a folder, each made when it is first wanted.

    Args:
        folder: belongs to the store.
        source: makes a scene.
        settings: JSON values that tell this source from others.
        keeps: False makes a scene at every reading, where pictures would fill the disk and are read once.
        workers: the processes of `made_ahead`.
    """

    folder: Path
    source: SceneSource
    settings: dict
    keeps: bool = True
    workers: list[BaseProcess] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / _SETTINGS
        if not file.exists():
            write_whole(file, json.dumps(self.settings, indent=1).encode())
        elif (found := json.loads(file.read_text())) != self.settings:
            raise ValueError(
                f"Expected scenes of the same source in {self.folder}; those there are made with "
                f"{_short(found)}, not {_short(self.settings)}. Choose another folder."
            )

    def path(self, index: int) -> Path:
        """Return the file of a scene, there or not."""
        return self.folder / f"{index:08d}.safetensors"

    def make(self, index: int) -> None:
        """Write a scene's file, unless it is there."""
        if self.path(index).exists():
            return
        images, cameras = self._made(index)
        write_tensors(self.path(index), _FORMAT, {"images": images}, {"cameras": cameras.to_json()})

    def _made(self, index: int) -> tuple[Tensor, Cameras]:
        grid = self.source.scene(index)
        return (grid.images * 255).round().to(torch.uint8), grid.cameras

    def read(self, index: int) -> tuple[Tensor, Cameras]:
        """Return pictures [F, C, H, W, 3] uint8 of a scene and its C cameras; made here if nobody did.

        Workers go in order and may come to a late scene last of all, so nobody waits for them.
        """
        if not self.keeps:
            return self._made(index)
        self.make(index)
        tensors, header = read_tensors(self.path(index), _FORMAT)
        return tensors["images"], Cameras.from_json(header["cameras"])

    @contextmanager
    def made_ahead(self, n_scenes: int, n_workers: int) -> Iterator[None]:
        """Let other processes make the first scenes in order, as long as the block runs."""
        context = multiprocessing.get_context("spawn")
        plain = replace(self, workers=[])
        for k in range(n_workers if self.keeps else 0):
            arguments = (plain, k, n_workers, n_scenes)
            self.workers.append(context.Process(target=_make_every, args=arguments, daemon=True))
            self.workers[-1].start()
        try:
            yield
        finally:
            for worker in self.workers:
                worker.terminate()
                worker.join()
            self.workers.clear()
            # Without workers, what is being written belongs to another process.
            if n_workers:
                remove_unfinished(self.folder)


def _short(settings: dict) -> str:
    text = json.dumps(settings)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _make_every(store: SceneStore, first: int, stride: int, n_scenes: int) -> None:
    # Ctrl-C reaches all processes of a terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    for index in range(first, n_scenes, stride):
        # A killed parent takes no care of its children.
        if parent is not None and not parent.is_alive():
            return
        store.make(index)
