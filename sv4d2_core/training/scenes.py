"""Scenes to train on: users' own renders, checked before training starts, or generated ones.

Renders are folders of `write_views`, or D-NeRF or nerfstudio data sets with a full grid of cameras and times.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from torch import Tensor

from ..cameras import DEFAULT_FOV_DEG, Cameras
from ..data.clips import VIDEO_SUFFIXES
from ..data.reader import frame_file, is_dataset, is_folder_of_views, read_dataset
from ..data.transforms import TRANSFORMS_FILES, transforms_file
from ..data.views_folder import CAMERAS_FILE, read_views
from ..files import file_fingerprint, fingerprint_of, remove_unfinished, write_whole
from ..messages import listed
from ..stored import read_json_object, read_tensors, write_tensors
from ..video.foreground import SPECK_SHARE, masks_of, near_white_masks
from ..video.places import IMAGE_SUFFIXES, natural_key
from ..video.read import Pick, read_pictures
from ..views import ViewGrid
from ..world.body import Parts, framed, parts_at
from ..world.render import render_parts
from ..world.suite import HELD_OUT_OBJECTS, TRAINING_SEEDS, draw_object

# The least that shows motion.
_FEWEST_FRAMES = 2
# The network is not told the field of view. A wide lens bends the object otherwise than the model's does;
# a narrow one, as the curation's enlargement leaves it, only flattens it a little.
_FOVS_DEG = (10.0, 51.0)
# The network is told the same of two views that are closer than this.
_SMALLEST_ANGLE_DEG = 0.1
# A mask that covers more of a picture leaves no background, or is inverted.
_LARGEST_SHARE = 0.95
# How far the matrices of a cameras.json may be from its angles.
_MATRIX_TOLERANCE = 1e-3
# Lines in the log about a refusal.
_LISTED = 20

_log = logging.getLogger(__name__)


def check_training_folder(root: Path, *, size: int, n_views: int, n_frames: int) -> list[Path]:
    """Return the scenes at ``root``, itself or its folders, in natural order, after reading every picture.

    A scene has pictures of ``size`` pixels or more, ``n_views`` + 1 views and 2 frames or more; of fewer than
    ``n_frames``, played back and forth. Raises FileNotFoundError, or ValueError; the log has
    all that is wrong.
    """
    root = Path(root).expanduser().resolve()
    if not root.exists():
        raise FileNotFoundError(f"Expected a folder with training scenes; there is nothing at {root}.")
    places = [root] if _is_scene(root) else _folders(root)
    scenes = [place for place in places if _is_scene(place)]
    _log.info("Reading all pictures of %d scenes before training starts.", len(scenes))
    wrong: dict[str, list[str]] = {}
    short = []
    for place in places:
        if place in scenes:
            grid, wrong[place.name] = _checked(place, size, n_views)
            if grid is not None and grid.n_frames < n_frames:
                short.append(f"{place.name} ({grid.n_frames})")
        elif why := _why_no_scene(place):
            wrong[place.name] = [why]
    if not wrong:
        entries = len(list(root.iterdir())) if root.is_dir() else 0
        what = f"{entries} entries, no scene among them" if entries else "nothing in it"
        raise ValueError(
            f"Expected training scenes in {root}: folders with {TRANSFORMS_FILES[0]}, or folders of views as "
            f"`sv4d2 scenes` writes them; got {what}. Give the folder that holds your renders."
        )
    if any(wrong.values()):
        raise ValueError(_refusal(root, wrong, size, n_views))
    if short:
        _log.warning(
            f"{len(short)} of {len(scenes)} scenes have fewer than the model's {n_frames} frames and are "
            f"played back and forth: {listed(short)}."
        )
    return scenes


def _is_scene(place: Path) -> bool:
    if place.is_file():
        return place.suffix.lower() == ".json"
    return (place / CAMERAS_FILE).is_file() or transforms_file(place) is not None


def _folders(root: Path) -> list[Path]:
    entries = root.iterdir() if root.is_dir() else ()
    return sorted((e for e in entries if e.is_dir() and not e.name.startswith(".")), key=natural_key)


def _is_foreign_dataset(place: Path) -> bool:
    return is_dataset(place) and not is_folder_of_views(place)


def _why_no_scene(folder: Path) -> str:
    """Return why a folder beside the scenes is none; nothing when it holds no pictures either."""
    if scenes := [scene.name for scene in _folders(folder) if _is_scene(scene)]:
        return (
            f"Expected a scene; it holds {len(scenes)} of them, the first is {scenes[0]}. Give that folder."
        )
    found = sum(file.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES) for file in folder.rglob("*"))
    files = f"{CAMERAS_FILE}, {' or '.join(TRANSFORMS_FILES)}"
    return f"Expected a file with cameras ({files}); got {found} pictures without one." if found else ""


def _refusal(root: Path, wrong: dict[str, list[str]], size: int, n_views: int) -> str:
    """Say what is wrong with each scene in the log, and return the sum of it."""
    lines = [f"{name}: {problem}" for name, problems in wrong.items() for problem in problems]
    for line in [*lines[:_LISTED], *([f"and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else [])]:
        _log.warning("  %s", line)
    spoilt = [name for name, problems in wrong.items() if problems]
    return (
        f"Expected training scenes of {n_views + 1} or more cameras and {_FEWEST_FRAMES} or more frames of "
        f"at least {size} x {size} in {root}; {len(spoilt)} of {len(wrong)} cannot be used: {listed(spoilt)}"
        ". The log says why. Repair them or move them out of the folder; `sv4d2 curate` sorts out what "
        "would spoil a training."
    )


def _checked(scene: Path, size: int, n_views: int) -> tuple[ViewGrid | None, list[str]]:
    """Return the views of a scene, None where they cannot be read, and what is wrong with it."""
    try:
        grid = _read(scene)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        return None, [reason, *_wrong_pictures(_frame_files(scene), reason)]
    matrices = () if _is_foreign_dataset(scene) else _wrong_matrices(scene / CAMERAS_FILE, grid.cameras)
    return grid, [*matrices, *wrong_cameras(grid.cameras, n_views), *_wrong_views(grid, size)]


def _read(place: Path) -> ViewGrid:
    """Return the views of a scene, with masks and without latents."""
    if not _is_foreign_dataset(place):
        grid = read_views(place)
    else:
        files = _frame_files(place)
        # FFmpeg would decode what compositing programs write, but as if logarithms were colours.
        if odd := [file for file in files if file.is_file() and file.suffix.lower() not in IMAGE_SUFFIXES]:
            raise ValueError(
                f"Expected pictures ({' '.join(IMAGE_SUFFIXES)}); {len(odd)} of {len(files)} frames are of "
                f"another kind, the first is {odd[0]}. Save them as 8-bit PNG, free of NaN and infinite "
                f"values."
            )
        grid = read_dataset(place)
    height, width = grid.images.shape[2:4]
    if height != width:
        raise ValueError(f"Expected square pictures; got {width} x {height}. Crop or pad them.")
    return replace(grid, masks=masks_of(grid), latents=None)


def _frame_files(place: Path) -> list[Path]:
    """Return the files of a scene's frames as its camera file states them; none when that is damaged."""
    if not _is_foreign_dataset(place):
        return sorted((place / "frames").rglob("*.png"), key=natural_key)
    file = place if place.is_file() else transforms_file(place) or place
    found = []
    with suppress(OSError, ValueError):
        for frame in read_json_object(file, "cameras").objects("frames"):
            with suppress(ValueError):  # outside the folder
                found.append(frame_file(file.parent, frame.text("file_path"), ""))
    return found


def _wrong_pictures(files: list[Path], known: str) -> Iterator[str]:
    """Yield what is wrong with the pictures of a scene that cannot be read, beyond the ``known`` reason."""
    missing = [file for file in files if not file.is_file()]
    if len(missing) > 1:
        yield f"{len(missing)} of {len(files)} pictures are missing, the first is {missing[0]}."
    sizes: Counter[tuple[int, int]] = Counter()
    for file in files:
        if file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES:
            try:
                height, width = read_pictures(file, Pick(count=1)).pictures[0].shape[:2]
                sizes[width, height] += 1
            except (ValueError, OSError) as error:
                if str(file) not in known:
                    yield " ".join(str(error).split())
    if len(sizes) > 1:
        counts = ", ".join(f"{n} of {width} x {height}" for (width, height), n in sizes.most_common())
        yield f"Expected pictures of one size; got {counts}. Render or crop them alike."


def _wrong_matrices(file: Path, cameras: Cameras) -> Iterator[str]:
    """Yield where the matrices of a ``cameras.json``, if it has any, say something else than its angles."""
    expected = cameras.c2w_opengl()
    try:
        content = read_json_object(file, "cameras")
        views = content.objects("views", len(expected)) if content.get("views") else []
        stated = [torch.from_numpy(view.numbers("c2w_opengl", 4, 4)) for view in views]
    except ValueError as error:
        yield str(error)
        return
    errors = (torch.stack(stated) - expected).abs().amax(dim=(1, 2)) if views else torch.zeros(1)
    if errors.max() > _MATRIX_TOLERANCE:
        yield (
            f"Expected matrices that agree with the angles in {file} (to {_MATRIX_TOLERANCE:g}); c2w_opengl "
            f"of view {int(errors.argmax())} is off by {errors.max():.3g}. Write the cameras again."
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
            f"the model is not told it; got {cameras.fov_deg:.4g}. Render with another lens."
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


def _wrong_views(grid: ViewGrid, size: int) -> Iterator[str]:
    """Yield why views, with masks, cannot be trained on as pictures of ``size`` pixels."""
    pixels = grid.images.shape[2]
    if not grid.trained:
        yield "Expected pictures of an object; these views are noise that an untrained model made."
    if grid.n_frames < _FEWEST_FRAMES:
        yield f"Expected at least {_FEWEST_FRAMES} frames; got {grid.n_frames}. Render a clip that moves."
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
                f"the first is frame {frame} of view {view}. Render them again, or check the masks."
            )


@dataclass(frozen=True)
class FolderScenes:
    """Scenes that `check_training_folder` found, read as pictures of ``size`` pixels."""

    paths: tuple[Path, ...]
    size: int

    def scene(self, index: int) -> ViewGrid:
        return _read(self.paths[index]).resized(self.size)

    def identity(self) -> dict[str, str]:
        """Return a hash of each scene's files under its folder's name."""
        hashes = {}
        for path in self.paths:
            folder = path if path.is_dir() else path.parent
            files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name not in LOOKED_AT)
            parts = [(str(file.relative_to(folder)), file_fingerprint(file)) for file in files]
            hashes[path.name] = fingerprint_of(parts)
        return hashes


# What file managers leave in a folder that somebody looked at.
LOOKED_AT = {".DS_Store", "Thumbs.db", "desktop.ini"}
_ELEVATIONS_DEG = {"things": (-10.0, 40.0), "animals": (-10.0, 30.0)}
# Seconds do not exist in the world: a frame's share of an object's whole motion, slow to fast.
_FRAME_STEP, _HELD_OUT_STEP = (0.02, 0.1), 0.05
# How far the object reaches from the middle of the picture, in halves of its side.
_FILL, _HELD_OUT_FILL = (0.8, 0.95), 0.9
# Between the first scenes of neighbouring seeds.
_APART = 0x9E3779B1


@dataclass(frozen=True)
class ProceduralScenes:
    """Seeded scenes without end; scene ``i`` is the same on every machine."""

    seed: int = 0
    size: int = 32  # H and W, pixels
    n_cameras: int = 12  # any of which may be the input view
    n_frames: int = 4
    ring_share: float = 0.9  # with cameras all around at one elevation, as the official orbits; else any
    family: str = "things"  # one of `FAMILIES`

    def scene(self, index: int) -> ViewGrid:
        return _rendered(*self.framed(index), self.size)

    def framed(self, index: int) -> tuple[Parts, Cameras, Tensor]:
        """Return the object of a scene, its cameras and times."""
        # A generator uses no more than 32 bits of its seed.
        dice = torch.Generator("cpu").manual_seed((self.seed * _APART + index) % 2**32)
        thing = draw_object(int(torch.randint(len(TRAINING_SEEDS), (), generator=dice)), self.family)
        cameras = self._cameras(dice)
        step = float(_between(*_FRAME_STEP, torch.rand((), generator=dice)))
        step = min(step, 1 / max(1, self.n_frames - 1))
        start = float(torch.rand((), generator=dice)) * (1 - step * (self.n_frames - 1))
        times = start + step * torch.arange(self.n_frames, dtype=torch.float64)
        fill = float(_between(*_FILL, torch.rand((), generator=dice)))
        return framed(parts_at(thing, times), cameras, fill), cameras, times

    def _cameras(self, dice: torch.Generator) -> Cameras:
        n, range_deg = self.n_cameras, _ELEVATIONS_DEG[self.family]
        if float(torch.rand((), generator=dice)) < self.ring_share:
            azimuths = 360 * torch.arange(n) / n
            elevations = _between(*range_deg, torch.rand((), generator=dice)).expand(n)
        else:
            azimuths = 360 * torch.rand(n, generator=dice)
            elevations = _between(*range_deg, torch.rand(n, generator=dice))
        relative = (elevations - elevations[0]).tolist()
        turned = ((azimuths - azimuths[0]) % 360).tolist()
        return Cameras(tuple(relative), tuple(turned), input_elevation_deg=float(elevations[0]))


def held_out_views(
    number: int, n_frames: int, cameras: Cameras, size: int, family: str = "things"
) -> ViewGrid:
    """Return true views of the middle of a held-out object's motion, ``cameras`` at its own elevation."""
    seed = HELD_OUT_OBJECTS[number]
    low, high = _ELEVATIONS_DEG[family]
    share = float(torch.rand((), generator=torch.Generator("cpu").manual_seed(seed)))
    lifted = replace(cameras, input_elevation_deg=low + (high - low) * share)
    times = 0.5 + _HELD_OUT_STEP * (torch.arange(n_frames, dtype=torch.float64) - (n_frames - 1) / 2)
    parts = parts_at(draw_object(seed, family), times)
    return _rendered(framed(parts, lifted, _HELD_OUT_FILL), lifted, times, size)


def _rendered(parts: Parts, cameras: Cameras, times: Tensor, size: int) -> ViewGrid:
    rendering = render_parts(parts, cameras, size)
    return ViewGrid(rendering.rgb, cameras, rendering.mask, times=tuple(times.tolist()))


def _between(low: float, high: float, share: Tensor) -> Tensor:
    return low + (high - low) * share


_FORMAT = "sv4d2.training_scene"
# Characters of the settings in a message.
_LONGEST = 200


@dataclass(frozen=True)
class SceneStore:
    """The scenes of a source in a folder of their own, each made when it is first wanted."""

    folder: Path
    source: FolderScenes | ProceduralScenes  # sent to other processes
    settings: dict  # JSON values that tell this source from others
    keeps: bool = True  # False: made at every reading, where pictures would fill the disk and are read once
    mirrored: bool = False  # every scene twice: number 2 k + 1 is the mirror image of number 2 k

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "scenes.json"
        if not file.exists():
            write_whole(file, json.dumps(self.settings, indent=1).encode())
        elif (found := read_json_object(file, "settings")) != self.settings:
            there, wanted = (json.dumps(settings)[:_LONGEST] for settings in (found, self.settings))
            raise ValueError(
                f"Expected scenes of the same source in {self.folder}; those there are made with {there}, "
                f"not {wanted}. Choose another folder."
            )

    def make(self, index: int) -> Path:
        """Write a scene's file, unless it is there, and return its path."""
        file = self.folder / f"{index:08d}.safetensors"
        if not file.exists():
            images, cameras = self._made(index)
            write_tensors(file, _FORMAT, {"images": images}, {"cameras": cameras.to_json()})
        return file

    def _made(self, index: int) -> tuple[Tensor, Cameras]:
        grid = self.source.scene(index)
        return (grid.images * 255).round().to(torch.uint8), grid.cameras

    def read(self, index: int) -> tuple[Tensor, Cameras]:
        """Return pictures [F, C, H, W, 3] uint8 of a scene and its C cameras; made here if nobody did."""
        if not self.mirrored:
            return self._read(index)
        images, cameras = self._read(index // 2)
        if index % 2:
            images = images.flip(3)
            cameras = replace(cameras, azimuths_deg=tuple(-a % 360 for a in cameras.azimuths_deg))
        return images, cameras

    def _read(self, index: int) -> tuple[Tensor, Cameras]:
        # Workers go in order and may come to a late scene last of all, so nobody waits for them.
        if not self.keeps:
            return self._made(index)
        tensors, header = read_tensors(self.make(index), _FORMAT)
        images = tensors.shaped("images", None, None, None, None, 3)
        return images, Cameras.from_json(header.object("cameras"))

    @contextmanager
    def made_ahead(self, n_scenes: int, n_workers: int) -> Iterator[list[BaseProcess]]:
        """Let other processes, which it yields, make the first scenes in order as long as the block runs."""
        context, workers = multiprocessing.get_context("spawn"), []
        for k in range(n_workers if self.keeps else 0):
            arguments = (self, k, n_workers, n_scenes)
            workers.append(context.Process(target=_make_every, args=arguments, daemon=True))
            workers[-1].start()
        try:
            yield workers
        finally:
            for worker in workers:
                worker.terminate()
                worker.join()
            remove_unfinished(self.folder)


def start_worker() -> None:
    """Make this process one that makes scenes beside others."""
    # Ctrl-C reaches all processes of a terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _make_every(store: SceneStore, first: int, stride: int, n_scenes: int) -> None:
    start_worker()
    parent = multiprocessing.parent_process()
    for index in range(first, n_scenes, stride):
        # A killed parent takes no care of its children.
        if parent is not None and not parent.is_alive():
            return
        store.make(index)
