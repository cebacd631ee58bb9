"""Files of nodes below ComfyUI's folders, and how its page shows them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from ..sv4d2_core.files import fingerprint_of
from ..sv4d2_core.lookup import find_inside
from ..sv4d2_core.messages import cut

# Where the host lists a file of a node's result, by the end of its name. No page shows what is in "files";
# the history and the assets count it all the same.
_LISTS = {
    **dict.fromkeys((".glb", ".obj", ".ply", ".splat"), "3d"),
    **dict.fromkeys((".mp4", ".webm", ".gif", ".png"), "images"),
    **dict.fromkeys((".npz", ".safetensors", ".usdc"), "files"),
}
_VIDEOS = (".mp4", ".webm")

_LONGEST, _LONGEST_NAME = 1000, 200  # characters, bytes; names of new files get numbers and suffixes
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d) *(\..*)?", re.IGNORECASE)  # Windows, with any suffix
_BREAK = "\x1f"  # stands for "/" where there is to be none
_ADVICE = "Write one such as sv4d2/views."


def checked(text: object, what: str) -> str:
    """Return what a user gave as place below ComfyUI's folders, with "/" between its parts on every system.

    Raises ValueError for what is no such text; whether it leads out only the folders tell. No disk is asked.
    """
    if not isinstance(text, str):
        raise ValueError(f"Expected {what} as text; got {type(text).__name__}. {_ADVICE}")
    plain = text.strip().replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".", "..")]
    longest = max((len(part.encode(errors="replace")) for part in parts), default=0)
    odd = next((part for part in parts if _DEVICE.fullmatch(part) or not part.strip(". ")), None)
    wrong = None
    if _CONTROL.search(plain):
        wrong = "holds characters that no name has"
    elif len(plain) > _LONGEST or longest > _LONGEST_NAME:
        wrong = f"has {len(plain)} characters of {_LONGEST}, a name of {longest} bytes of {_LONGEST_NAME}"
    elif plain.startswith(("//", "~")) or (re.match("[A-Za-z]:", plain) and not Path(plain).is_absolute()):
        wrong = "leads outside"
    elif odd is not None:
        wrong = f"holds {odd!r}, which some systems take for something else"
    if wrong is not None:
        raise ValueError(f"Expected {what} inside ComfyUI's folders; {cut(repr(text))} {wrong}. {_ADVICE}")
    return plain


def output_place(filename_prefix: str, size: int) -> tuple[Path, str]:
    """Return the parent, which need not be there, and the name, still without number, of a result to come.

    The host fills in %year% and so on (``size``: %width%, %height%). Raises ValueError for what leads out of
    the output folder.
    """
    output = folder_paths.get_output_directory()
    prefix = checked(filename_prefix, "a name for the result").replace("/", _BREAK)
    # As one name: the host makes the folders of a longer one before anybody sees where links lead.
    _, filled, *_ = folder_paths.get_save_image_path(prefix, output, size, size)
    whole = Path(os.path.normpath(os.path.join(output, filled.replace(_BREAK, "/"))))
    root, parent = Path(os.path.realpath(output)), Path(os.path.realpath(whole.parent))
    if not parent.is_relative_to(root):
        raise ValueError(
            f"Expected a name for the result inside {output}; {cut(repr(filename_prefix))} is or leads (by a "
            f"link or ..) outside, or has no name. {_ADVICE}"
        )
    there = next(path for path in (parent, *parent.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise ValueError(f"Expected a folder for the result; {there} is none. Choose another name.")
    return Path(output, parent.relative_to(root)), whole.name


def found_inside(name: str, is_one: Callable[[Path], bool], what: str) -> Path:
    """Return a file or folder of the output folder, looked at first, or the input folder (`find_inside`).

    Raises ValueError, too, for a folder in which a link leads out of both.
    """
    roots = [Path(folder_paths.get_output_directory()), Path(folder_paths.get_input_directory())]
    place = find_inside(checked(name, what), roots, is_one, what)
    real = [os.path.realpath(root) for root in roots]
    for link in filter(Path.is_symlink, place.rglob("*")):
        if not any(Path(os.path.realpath(link)).is_relative_to(root) for root in real):
            raise ValueError(f"Expected {what}; {link} in it is a link that leads outside. Remove it.")
    return place


def listed_model(kind: str, name: str, help_text: str = "") -> Path:
    """Return a file of a model folder that the host lists. Raises FileNotFoundError for any other name."""
    listed = name in folder_paths.get_filename_list(kind)
    path = folder_paths.get_full_path(kind, name) if listed else None
    if path is None:
        places = " or ".join(folder_paths.get_folder_paths(kind))
        raise FileNotFoundError(
            f"Expected {cut(repr(name))} in the model folder models/{kind} ({places}); it is not there. Put "
            f"it there and press R, or choose another. {help_text}".strip()
        )
    return Path(path)


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


def fingerprint_of_files(name: str | None, find: Callable[[str], Path]) -> str:
    """Return what changes when a name's files do, so that they are read again; "" for an unknown name.

    Their latest time alone would miss a file that keeps an older time of its own, as out of a backup.
    """
    if name is None:
        return ""
    try:
        place = find(name)
        about = [(str(path), path.stat()) for path in (place, *sorted(place.rglob("*")))]
    except (OSError, ValueError):
        return ""
    return fingerprint_of([(path, stat.st_size, stat.st_mtime_ns) for path, stat in about])


def host() -> dict[str, str]:
    try:
        from comfyui_version import __version__
    except ImportError:
        __version__ = "unknown"
    return {"name": "ComfyUI", "version": __version__}
