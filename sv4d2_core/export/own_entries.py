"""What an export may replace in a folder: only what an earlier export of its kind wrote there."""

from __future__ import annotations

import json
import re
from pathlib import Path


def replaceable(
    folder: Path,
    marker: str,
    names: re.Pattern[str],
    overwrite: bool,
    *,
    earlier: str = "an earlier export",
    foreign: str = "which no export of this kind wrote and which is never replaced",
) -> list[str]:
    """Return which entries of ``folder`` a new export of this kind replaces, none in a new folder.

    Args:
        folder: of the export.
        marker: the JSON file that lists, under "entries", what the earlier export wrote.
        names: what exports of this kind call their entries; whatever else is listed does not count.
        overwrite: whether an earlier export may be replaced.
        earlier: what the earlier export is called in errors.
        foreign: what is said of entries from elsewhere.

    Raises:
        FileExistsError: the folder holds entries of such names from elsewhere, an export of another kind
            under the same marker, or an earlier export and ``overwrite`` is off.
    """
    if not folder.is_dir():
        return []
    found = sorted(entry.name for entry in folder.iterdir() if names.fullmatch(entry.name))
    listed = _listed(folder / marker)
    if others := [name for name in found if name not in listed]:
        some = ", ".join(others[:3]) + (" ..." if len(others) > 3 else "")
        raise FileExistsError(f"{folder} holds {some}, {foreign}. Choose another folder or move them away.")
    if kept := [name for name in listed if not names.fullmatch(name) and (folder / name).exists()]:
        raise FileExistsError(
            f"{folder} holds an earlier export of another kind ({kept[0]}). Choose another folder."
        )
    if found and not overwrite:
        raise FileExistsError(
            f"Expected a folder without {earlier}; {folder / found[0]} exists already. Choose another folder "
            f"or overwrite it (--overwrite)."
        )
    return found


def _listed(marker: Path) -> list[str]:
    try:
        names = json.loads(marker.read_text()).get("entries", [])
    except (OSError, ValueError, AttributeError):
        return []
    names = names if isinstance(names, list) else []
    # What a list names elsewhere was not written into this folder.
    return [name for name in names if isinstance(name, str) and Path(name).name == name]
