"""A ComfyUI server of our own: a free port, an empty base folder, our pack linked into it."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

_SHIM = Path(__file__).parent / "shims"
_FOLDERS = (
    "custom_nodes",
    "models/checkpoints",
    "models/diffusion_models",
    "input",
    "output",
    "user/default",
)
_NOT_COPIED = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "*.egg-info")
# Nothing may lie on top of the graph: no tour, no map.
_PAGE_SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
_START_SECONDS = 300
_LAST_EVENTS = {
    "execution_success": "success",
    "execution_error": "error",
    "execution_interrupted": "interrupted",
}

Graph = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Event:
    """One message of the websocket, and when it came (seconds of `time.perf_counter`)."""

    kind: str
    data: dict[str, Any]
    seconds: float


@dataclass
class Outcome:
    """What became of a prompt."""

    status: str = ""  # "success", "error" (while running), "interrupted" or "refused" (by the validation)
    message: str = ""  # the error as a user reads it
    events: list[Event] = field(default_factory=list)  # in order, but for pictures of previews
    n_previews: int = 0
    # From the request to the server's answer. Newer versions collect garbage before, for a second or two.
    interrupt_seconds: float | None = None

    @property
    def outputs(self) -> dict[str, dict[str, Any]]:
        """What each node showed in the page, by the node's number."""
        return {e.data["node"]: e.data["output"] or {} for e in self.events if e.kind == "executed"}

    @property
    def cached_nodes(self) -> set[str]:
        """Numbers of the nodes that did not run again."""
        return {node for e in self.events if e.kind == "execution_cached" for node in e.data["nodes"]}

    def progress(self, node: str) -> list[tuple[int, int]]:
        """Return the (value, total) pairs that the node reported, in order."""
        events = [e.data for e in self.events if e.kind == "progress"]
        return [(round(d["value"]), round(d["max"])) for d in events if d["node"] == node]


class ComfyServer:
    """A running ComfyUI with our pack and an empty base folder, stopped at the end of the ``with`` block.

    ``frontend`` is the static folder of another web page than the installed one.
    """

    def __init__(self, comfyui: Path, pack: Path, base: Path, frontend: Path | None = None) -> None:
        self.base = base
        self._log_file = base / "server.log"
        for folder in _FOLDERS:
            (base / folder).mkdir(parents=True)
        (base / "user/default/comfy.settings.json").write_text(json.dumps(_PAGE_SETTINGS))
        _link(pack, base / "custom_nodes" / "sv4d2")
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, str(comfyui / "main.py"), "--cpu", "--listen", "127.0.0.1"]
        self._command += ["--port", str(port), "--base-directory", str(base), "--disable-api-nodes"]
        self._command += ["--database-url", "sqlite:///:memory:", "--preview-method", "auto"]
        if frontend is not None:
            self._command += ["--front-end-root", str(frontend)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "ComfyServer":
        environment = {**os.environ, "PYTHONPATH": str(_SHIM), "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONSAFEPATH", None)
        with self._log_file.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=self.base
            )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """Everything that the server printed so far."""
        return self._log_file.read_text(errors="replace")

    def stop(self) -> None:
        """End the server; further calls do nothing."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def read(self, path: str) -> bytes:
        """Return the answer to a GET request. Raises HTTPError where there is none."""
        with urllib.request.urlopen(self.url + urllib.parse.quote(path), timeout=30) as answer:
            return answer.read()

    def get(self, path: str) -> Any:
        """Return the JSON answer to a GET request."""
        return json.loads(self.read(path))

    def post(self, path: str, **content: Any) -> None:
        """Send JSON values. Raises HTTPError where the server refuses them."""
        request = urllib.request.Request(self.url + path, json.dumps(content).encode())
        with urllib.request.urlopen(request, timeout=30):
            pass

    @property
    def pid(self) -> int:
        """The number of the server's process."""
        assert self._process is not None
        return self._process.pid

    def object_info(self) -> dict[str, dict[str, Any]]:
        """Return the description of every node."""
        return self.get("/object_info")

    def prompt(
        self, graph: Graph, timeout: float = 300, interrupt_when: Callable[[Event], bool] | None = None
    ) -> Outcome:
        """Run an API-format graph to its end and return what happened.

        The first event for which ``interrupt_when`` returns True leads to a request to interrupt.
        """
        outcome = Outcome()
        try:
            asyncio.run(asyncio.wait_for(self._run(graph, outcome, interrupt_when), timeout))
        except (TimeoutError, asyncio.TimeoutError):
            kinds = [event.kind for event in outcome.events[-10:]]
            raise TimeoutError(
                f"The prompt did not end within {timeout:g} s. Last events: {kinds}. "
                f"Server log:\n{self.log[-3000:]}"
            ) from None
        return outcome

    async def _run(
        self, graph: Graph, outcome: Outcome, interrupt_when: Callable[[Event], bool] | None
    ) -> None:
        client, asked = uuid.uuid4().hex, None
        async with aiohttp.ClientSession(self.url) as session:
            async with session.ws_connect(f"/ws?clientId={client}", max_msg_size=0) as socket_:
                async with session.post("/prompt", json={"prompt": graph, "client_id": client}) as answer:
                    body = await answer.json()
                if answer.status != 200 or body.get("node_errors"):
                    outcome.status, outcome.message = "refused", _refusal(body)
                    return
                async for message in socket_:
                    if message.type == aiohttp.WSMsgType.BINARY:
                        outcome.n_previews += 1
                    if message.type != aiohttp.WSMsgType.TEXT:
                        continue
                    content = message.json()
                    event = Event(content["type"], content["data"], time.perf_counter())
                    if event.data.get("prompt_id", body["prompt_id"]) != body["prompt_id"]:
                        continue
                    outcome.events.append(event)
                    if event.kind in _LAST_EVENTS:
                        outcome.status = _LAST_EVENTS[event.kind]
                        outcome.message = event.data.get("exception_message", "").strip()
                        if asked is not None:
                            outcome.interrupt_seconds = event.seconds - asked
                        return
                    if asked is None and interrupt_when is not None and interrupt_when(event):
                        asked = time.perf_counter()
                        await session.post("/interrupt", json={"prompt_id": body["prompt_id"]})
        raise RuntimeError(f"The server closed the connection. Its log:\n{self.log[-3000:]}")

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            try:
                self.get("/system_stats")
            except (urllib.error.URLError, OSError):
                time.sleep(0.25)
            else:
                return
        raise RuntimeError(
            f"ComfyUI did not answer at {self.url} within {_START_SECONDS} s (exit code "
            f"{self._process.poll()}). End of its log:\n{self.log[-4000:]}"
        )


def _refusal(body: dict[str, Any]) -> str:
    """Return what the validation says about the graph and its nodes, one line each."""
    error = body.get("error") or {}
    lines = [f"{error.get('message', '')} {error.get('details', '')}".strip()]
    for node in (body.get("node_errors") or {}).values():
        lines += [f"{node['class_type']}: {e['message']}: {e['details']}" for e in node["errors"]]
    return "\n".join(line for line in lines if line)


def _link(pack: Path, place: Path) -> None:
    """Make the pack appear at ``place``; a copy where links need rights that we lack (Windows)."""
    try:
        place.symlink_to(pack, target_is_directory=True)
    except OSError:
        shutil.copytree(pack, place, ignore=_NOT_COPIED)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
