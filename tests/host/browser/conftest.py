"""The web pages that the browser tests open."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SECONDS = 600


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


@pytest.fixture(scope="module")
def browse(frontend, tmp_path_factory):
    """Return a runner of our scripts in a browser: ``browse(server, "shot.js", workflows=[...])``."""

    def run(server: Any, script: str, **job: Any) -> Any:
        folder = tmp_path_factory.mktemp("browser")
        job |= {"url": server.url, "newNodes": frontend.new_nodes, "profile": str(folder / "profile")}
        job["chromium"] = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        (folder / "job.json").write_text(json.dumps(job))
        command = [os.environ.get("NODE", "node"), str(Path(__file__).parent / script)]
        done = subprocess.run(
            [*command, str(folder / "job.json")], capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 0, f"{done.stderr[-3000:]}\nServer log:\n{server.log[-3000:]}"
        return json.loads(done.stdout)

    return run
