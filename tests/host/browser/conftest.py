"""The web pages that the browser tests open."""

import os
from pathlib import Path
from typing import NamedTuple

import pytest


class Page(NamedTuple):
    """A web page of ComfyUI."""

    name: str
    folder: Path | None  # of its static files; None: the host's own page
    new_nodes: bool  # whether it draws nodes in its new way


_OTHER = os.environ.get("COMFYUI_FRONTEND_ROOT")
_ANOTHER = pytest.mark.skipif(
    not _OTHER,
    reason="Only the host's own frontend: COMFYUI_FRONTEND_ROOT=<unpacked newest>/static tests another, as "
    "`make host` does",
)
_PAGES = [
    pytest.param(Page("installed", None, False), id="installed"),
    pytest.param(Page("other", Path(_OTHER or ""), False), id="other", marks=_ANOTHER),
    pytest.param(Page("other_new_nodes", Path(_OTHER or ""), True), id="other_new_nodes", marks=_ANOTHER),
]


@pytest.fixture(scope="module", params=_PAGES)
def frontend(request):
    """Return one page after the other."""
    return request.param
