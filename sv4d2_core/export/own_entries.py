"""What an export may replace in a folder: only what an earlier export of its kind wrote there."""

from __future__ import annotations

import json
import re
from pathlib import Path


def replaceable(folder: Path, marker: str, names: re.Pattern[str], overwrite: bool) -> list[str]:
    """Return which entries of ``folder`` a new export of this kind replaces, none in a new folder.

    Args:
        folder: of the export.
        marker: the JSON file that lists, under "entries", what the earlier export wrote.
        names: what exports of this kind call their entries; whatever else is listed does not count.
        overwrite: whether an earlier export may be replaced.

    Raises:
        FileExistsError: the folder holds entries of such names from elsewhere, or an earlier export and
            ``overwrite`` is off.
    """
    if not folder.is_dir():
        return []
    found = sorted(entry.name for entry in folder.iterdir() if names.fullmatch(entry.name))
    listed = _listed(folder / marker)
    if foreign := [name for name in found if name not in listed]:
        some = ", ".join(foreign[:3]) + (" ..." if len(foreign) > 3 else "")
        raise FileExistsError(
            f"{folder} holds {some}, which no export of this kind wrote and which is never replaced. Choose "
            f"another folder or move them away."
        )
    if found and not overwrite:
        raise FileExistsError(
            f"Expected a folder without an earlier export; {folder / found[0]} exists already. Choose "
            f"another folder or overwrite it (--overwrite)."
        )
    return found


def _listed(marker: Path) -> list[str]:
    try:
        names = json.loads(marker.read_text()).get("entries", [])
    except (OSError, ValueError, AttributeError):
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
