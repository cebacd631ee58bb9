"""One door to all files of a scene: what each format is called, what it needs and who writes it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ..fourd.scene import Scene4D
from ..views import ViewGrid
from .animations import ANIMATION_SUFFIXES
from .colmap import COLMAP_FILE, write_colmap
from .export_settings import ExportCallback, Exported, ExportSettings
from .formats.single_file import refuse_existing
from .scene_meshes import export_mesh_sequence, export_moving_mesh, export_usd
from .scene_pictures import export_colmap, export_dataset, export_turntable
from .scene_splats import export_splats, export_trajectories
from .split_dataset import DATASET_FILE, write_dataset

_Writer = Callable[[Scene4D, Path, ExportSettings, ExportCallback | None], Exported]


class Format(NamedTuple):
    """One way to export.

    Args:
        purpose: for the help.
        write: makes it.
        suffixes: ends of the names of its file.
        may_be_folder: a name with none of the suffixes is a folder; otherwise it is refused.
        marker: the file in the folder whose presence says that an export is there.
    """

    purpose: str
    write: _Writer
    suffixes: tuple[str, ...] = ()
    may_be_folder: bool = True
    marker: str = ""


FORMATS = {
    "glb": Format(
        "one mesh that moves, for Blender, Unity, three.js, browsers", export_moving_mesh, (".glb",), False
    ),
    "glb-sequence": Format("a GLB per frame", partial(export_mesh_sequence, kind="glb")),
    "obj": Format("an OBJ per frame", partial(export_mesh_sequence, kind="obj")),
    "ply": Format("a PLY mesh per frame", partial(export_mesh_sequence, kind="ply")),
    "usd": Format("meshes over time for Houdini, Omniverse, Blender", export_usd, (".usdc", ".usda"), False),
    "splat-ply": Format(
        "Gaussians as 3DGS PLY: a .ply of one time, or a folder",
        partial(export_splats, kind="ply"),
        (".ply",),
    ),
    "splat": Format(
        "Gaussians for browsers: a .splat of one time, or a folder",
        partial(export_splats, kind="splat"),
        (".splat",),
    ),
    "splat-glb": Format(
        "Gaussians by glTF's KHR_gaussian_splatting: a .glb of one time, or a folder",
        partial(export_splats, kind="glb"),
        (".glb",),
    ),
    "npz": Format("how every Gaussian moves, for numpy", export_trajectories, (".npz",), False),
    "dataset": Format(
        "pictures, masks, times, cameras for D-NeRF, nerfstudio and their like",
        export_dataset,
        marker=DATASET_FILE,
    ),
    "colmap": Format("the same for readers of COLMAP, a model per frame", export_colmap, marker=COLMAP_FILE),
    "turntable": Format(
        "around the object: .mp4, .webm, .gif, or a folder of PNG", export_turntable, ANIMATION_SUFFIXES
    ),
}
VIEWS_FORMATS = ("dataset", "colmap")


def export_scene(
    scene: Scene4D,
    path: str | Path,
    kind: str,
    settings: ExportSettings | None = None,
    callback: ExportCallback | None = None,
) -> Exported:
    """Write a scene in one of `FORMATS`; complete or not at all.

    Args:
        scene: to be written.
        path: of the file or folder.
        kind: a key of ``FORMATS``.
        settings: how; None: as `ExportSettings` begins.
        callback: called with (steps done, all steps, None); may raise to cancel.

    Raises:
        FileExistsError: something is there already and may not be replaced.
        ModuleNotFoundError: an optional package is missing; the text names it.
        ValueError: an unknown format, a name that does not fit it, a scene that it cannot hold, settings out
            of range.
        OSError: the disk is full or read-only; the text says which folder and what to do.
    """
    path, settings = Path(path), settings or ExportSettings()
    check_place(path, kind, settings.overwrite)
    return FORMATS[kind].write(scene, path, settings, callback)


def export_views(
    grid: ViewGrid, folder: str | Path, kind: str, *, crop: dict | None = None, overwrite: bool = False
) -> Exported:
    """Write views in one of `VIEWS_FORMATS`, which need no scene; errors as `export_scene`.

    Args:
        grid: the views.
        folder: made if missing.
        kind: dataset or colmap.
        crop: how the input was cut out of the source clip, JSON values, or None.
        overwrite: replace an earlier export.
    """
    if kind not in VIEWS_FORMATS:
        raise ValueError(
            f"Expected {' or '.join(VIEWS_FORMATS)} for a folder of views; {kind} needs a scene. Make one "
            f"with sv4d2 refine."
        )
    if kind == "colmap":
        return Exported(tuple(write_colmap(folder, grid, overwrite=overwrite)))
    return Exported(tuple(write_dataset(folder, grid, crop=crop, overwrite=overwrite)))


def check_place(path: Path, kind: str, overwrite: bool) -> None:
    """Raise, before long work rather than after it, where an export cannot be written to a place.

    Raises:
        FileExistsError: something is there already and may not be replaced.
        ValueError: an unknown format, or a name that does not fit it.
    """
    if kind not in FORMATS:
        raise ValueError(f"Expected a format among {', '.join(FORMATS)}; got {kind!r}.")
    chosen = FORMATS[kind]
    is_file = path.suffix.lower() in chosen.suffixes
    if not is_file and not chosen.may_be_folder:
        raise ValueError(
            f"Expected a name that ends in {' or '.join(chosen.suffixes)} for {kind}; got {path.name!r}."
        )
    if is_file and path.is_dir():
        raise ValueError(f"Expected the name of a file for {kind}; {path} is a folder.")
    if is_file:
        refuse_existing(path, overwrite)
    elif chosen.marker and (path / chosen.marker).exists() and not overwrite:
        raise FileExistsError(f"{path} holds such an export already. Choose another folder, or --overwrite.")
