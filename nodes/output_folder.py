"""Files of nodes below ComfyUI's folders, and how its page shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from ..sv4d2_core.files import find_inside
from ..sv4d2_core.messages import cut

# Where the host lists a file of a node's result, by the end of its name. No page shows what is in "files";
# the history and the assets count it all the same.
_LISTS = {
    **dict.fromkeys((".glb", ".obj", ".ply", ".splat"), "3d"),
    **dict.fromkeys((".mp4", ".webm", ".gif", ".png"), "images"),
    **dict.fromkeys((".npz", ".safetensors", ".usdc"), "files"),
}
_VIDEOS = (".mp4", ".webm")


def output_place(filename_prefix: str, size: int) -> tuple[Path, str]:
    """Return the parent, which it makes, and the name, still without number, of a folder to come.

    The host fills in %year% and so on (``size``: %width%, %height%) and refuses what leads out of the output.
    """
    output = folder_paths.get_output_directory()
    parent, name, *_ = folder_paths.get_save_image_path(filename_prefix, output, size, size)
    if name.strip(". ") == "":
        raise ValueError(
            f"Expected a name for the folder; got {cut(repr(filename_prefix))}. Write one such as "
            f"sv4d2/views."
        )
    return Path(parent), name


def found_inside(name: str, is_one: Callable[[Path], bool], what: str) -> Path:
    """Return a file or folder of the output folder, looked at first, or the input folder (`find_inside`)."""
    roots = [Path(folder_paths.get_output_directory()), Path(folder_paths.get_input_directory())]
    return find_inside(name, roots, is_one, what)


def relative_to_output(folder: Path) -> str:
    """Return the path of a folder below the output folder, as the host's page and our nodes name it."""
    return folder.relative_to(folder_paths.get_output_directory()).as_posix()


def shown_files(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the `ui` result by which the host's page, history and assets find saved files.

    Of COLMAP models the pictures of the first frame are shown; descriptions and other folders are not.
    """
    files = [path for path in paths if path.suffix in _LISTS] or sorted(paths[0].glob("images/*.png"))
    shown: dict[str, Any] = {}
    for file in files:
        below = file.parent.relative_to(folder_paths.get_output_directory())
        entry = ui.SavedResult(file.name, "/".join(below.parts), io.FolderType.output)
        shown.setdefault(_LISTS[file.suffix], []).append(entry)
    if any(file.suffix in _VIDEOS for file in files):
        shown["animated"] = (True,)  # by this the page tells videos from pictures
    return shown


def last_change(name: str | None, find: Callable[[str], Path]) -> int:
    """Return when a name's files last changed, so that they are read again; 0 for a wrong or unknown name."""
    if name is None:
        return 0
    try:
        place = find(name)
        return max(path.stat().st_mtime_ns for path in (place, *place.rglob("*")))
    except (OSError, ValueError):
        return 0


def host() -> dict[str, str]:
    try:
        from comfyui_version import __version__
    except ImportError:
        __version__ = "unknown"
    return {"name": "ComfyUI", "version": __version__}
