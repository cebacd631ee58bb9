"""Where a node saves below ComfyUI's output folder, and which ComfyUI that is."""

from __future__ import annotations

from pathlib import Path

import folder_paths


def output_place(filename_prefix: str, size: int) -> tuple[Path, str]:
    """Return the parent and the name of a folder to come, without its number; makes the parent.

    Args:
        filename_prefix: path below the output folder; %year%, %width% and the like are filled in.
        size: width and height of the pictures, for %width% and %height%.

    Raises:
        ValueError: the prefix ends without a name.
        Exception: the prefix leads out of the output folder (the host's own error).
    """
    output = folder_paths.get_output_directory()
    parent, name, *_ = folder_paths.get_save_image_path(filename_prefix, output, size, size)
    if name.strip(". ") == "":
        raise ValueError(
            f"Expected a name for the folder; got {filename_prefix!r}. Write one such as sv4d2/views."
        )
    return Path(parent), name


def relative_to_output(folder: Path) -> str:
    """Return the path of a folder below the output folder, as the host's page and our nodes name it."""
    return folder.relative_to(folder_paths.get_output_directory()).as_posix()


def host() -> dict[str, str]:
    """Return the host's name and version."""
    try:
        from comfyui_version import __version__
    except ImportError:
        __version__ = "unknown"
    return {"name": "ComfyUI", "version": __version__}
