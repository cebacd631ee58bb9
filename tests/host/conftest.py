"""Fixtures of the tests that run inside a real ComfyUI's interpreter; `tests/test_host.py` starts them.

By hand: ``COMFYUI_PATH=... PYTHONSAFEPATH=1 <host python> -m pytest -c tests/host/pytest.ini
--rootdir tests/host tests/host/test_server.py``.
"""

import asyncio
import importlib
import importlib.util
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
COMFYUI = Path(os.environ.get("COMFYUI_PATH", "~/comfy/ComfyUI")).expanduser().absolute()

torch.set_num_threads(1)


def _load(name: str, file: Path, **options: Any) -> ModuleType:
    """Import a file under a name of its own, so that no folder of ours gets onto sys.path."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file, **options)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


_load("sv4d2_shims", HERE / "shims" / "sitecustomize.py")
comfy_server = _load("sv4d2_comfy_server", HERE / "comfy_server.py")
media = _load("sv4d2_host_media", HERE / "media.py")
schemas = _load("sv4d2_recorded_schemas", HERE.parent / "recorded_schemas.py")


@dataclass(frozen=True)
class HostDirs:
    """The folders that ComfyUI reads and writes during the tests."""

    output: Path
    input: Path
    temp: Path
    models: Path


@pytest.fixture(scope="session")
def cuda():
    """Return the pretend CUDA device that ComfyUI works on; None: it works on the CPU."""
    return None


@pytest.fixture(scope="session")
def pretend():
    """Return the module of the pretend CUDA device."""
    return _load("sv4d2_pretend_cuda", HERE.parent / "pretend" / "cuda.py")


@pytest.fixture(scope="session")
def host(cuda):
    """Return ComfyUI's ``nodes`` module, imported for the CPU or a pretend device."""
    if not (COMFYUI / "comfy" / "sd.py").is_file():
        pytest.fail(f"Expected a ComfyUI checkout at {COMFYUI}. Set COMFYUI_PATH.")
    own = {str(REPOSITORY), str(HERE), ""}
    sys.path[:] = [str(COMFYUI), *(entry for entry in sys.path if entry not in own)]
    from comfy.cli_args import LatentPreviewMethod, args

    args.cpu = cuda is None
    args.preview_method = LatentPreviewMethod.Auto
    nodes = importlib.import_module("nodes")
    import comfy.utils

    # Newer versions leave out steps of a progress bar that come fast; the tests count them.
    comfy.utils.PROGRESS_THROTTLE_MIN_INTERVAL = 0
    assert Path(str(nodes.__file__)).parent == COMFYUI, f"nodes is {nodes.__file__}, not ComfyUI's"
    return nodes


@pytest.fixture(scope="session")
def pack(host):
    """Return our node classes by node id, loaded as ComfyUI loads a pack."""
    before = dict(host.NODE_CLASS_MAPPINGS)
    loaded = asyncio.run(host.load_custom_node(str(REPOSITORY)))
    assert loaded, "ComfyUI could not load the pack; the captured log says why"
    ours = {name: cls for name, cls in host.NODE_CLASS_MAPPINGS.items() if before.get(name) is not cls}
    assert ours, "The pack loaded but lists no nodes"
    return ours


@pytest.fixture(scope="session")
def core(pack):
    """Return an importer of the loaded pack's own modules: ``core("views")`` is its ``sv4d2_core.views``."""
    package = next(iter(pack.values())).__module__.rsplit(".nodes", 1)[0]
    return lambda name: importlib.import_module(f"{package}.sv4d2_core.{name}")


@pytest.fixture(scope="session")
def nodes_of(pack):
    """Return an importer of the pack's own modules in nodes/: ``nodes_of("load_model")``."""
    package = next(iter(pack.values())).__module__.rsplit(".", 1)[0]
    return lambda name: importlib.import_module(f"{package}.{name}")


@pytest.fixture(scope="session")
def loaded(nodes_of, tiny_checkpoint):
    """Return MODEL, CLIP_VISION and VAE of the tiny checkpoint, as our loader makes them."""
    return nodes_of("load_model").load_checkpoint(str(tiny_checkpoint), "auto", "default")


@pytest.fixture(scope="session")
def clip():
    """Return 7 frames, which are three windows of the tiny checkpoint."""
    return torch.rand(7, 32, 32, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def cameras(core):
    """Return the cameras of the tiny checkpoint's two novel views."""
    return core("cameras").Cameras.ring(2)


@pytest.fixture(scope="session")
def window(pack, loaded, clip, cameras):
    """Return what SV4D2 Conditioning makes of the clip's first window."""
    return pack["SV4D2Conditioning"].execute(*loaded, clip, cameras, 0).args


@pytest.fixture(scope="session")
def guided(pack, loaded):
    """Return the tiny checkpoint's MODEL with the official guidance."""
    return pack["SV4D2Guidance"].execute(loaded[0], "official", 1.0, 2.0)[0]


@pytest.fixture(scope="session")
def ksampler(host, window):
    """Return the host's KSampler: ``ksampler(model)`` makes latents [T * V, 4, h, w] of the window."""

    def run(
        model: Any, given: tuple = (), steps: int = 4, cfg: float = 1.0, sampler: str = "euler"
    ) -> torch.Tensor:
        with torch.inference_mode():
            arguments = (model, 5, steps, cfg, sampler, "karras", *(given or window[:3]))
            return host.KSampler().sample(*arguments)[0]["samples"]

    return run


@pytest.fixture
def host_dirs(host, tmp_path, monkeypatch):
    """Return fresh folders that ComfyUI uses in place of its own."""
    import folder_paths

    dirs = HostDirs(*(tmp_path / name for name in ("output", "input", "temp", "models")))
    for folder in (dirs.output, dirs.input, dirs.temp):
        folder.mkdir()
    monkeypatch.setattr(folder_paths, "output_directory", str(dirs.output))
    monkeypatch.setattr(folder_paths, "input_directory", str(dirs.input))
    monkeypatch.setattr(folder_paths, "temp_directory", str(dirs.temp))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    for kind in ("checkpoints", "diffusion_models"):
        folder = dirs.models / kind
        folder.mkdir(parents=True)
        extensions = folder_paths.folder_names_and_paths[kind][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(folder)], extensions))
    return dirs


@pytest.fixture(scope="session")
def write_checkpoint(tmp_path_factory):
    """Return a writer of untrained checkpoints: ``write_checkpoint(n_frames, n_views, vae_levels)``."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def write(n_frames: int = 3, n_views: int = 2, vae_levels: int = 2) -> Path:
        path = folder / f"micro_{n_frames}x{n_views}_{vae_levels}.safetensors"
        return path if path.exists() else media.write_micro_checkpoint(path, n_frames, n_views, vae_levels)

    return write


@pytest.fixture(scope="session")
def tiny_checkpoint(write_checkpoint):
    """Return an untrained checkpoint with T = 3 and V = 2 whose forward pass takes milliseconds."""
    return write_checkpoint()


@pytest.fixture(scope="session")
def start_server(tmp_path_factory, write_checkpoint):
    """Return a maker of servers that hold the tiny checkpoints and the sample media."""

    def start(frontend: Path | None = None) -> Any:
        base = tmp_path_factory.mktemp("server")
        server = comfy_server.ComfyServer(COMFYUI, REPOSITORY, base, frontend)
        # The workflows find tiny files under the official names.
        names = {"sv4d2": (3, 4), "sv4d2_8views": (3, 8), "sv4d2_long": (21, 1)}
        for name, sizes in names.items():
            shutil.copy(
                write_checkpoint(*sizes, vae_levels=4), base / f"models/checkpoints/{name}.safetensors"
            )
        shutil.copy(
            base / "models/checkpoints/sv4d2.safetensors",
            base / "models/diffusion_models/sv4d2_unet.safetensors",
        )
        media.write_other_model(base / "models/diffusion_models/other.safetensors")
        media.write_media(base / "input")
        return server

    return start


@pytest.fixture(scope="session")
def recorded_schemas():
    """Return the reader and writer of the recorded descriptions of nodes."""
    return schemas


@pytest.fixture(scope="session")
def tiny_settings():
    """Return what a workflow runs with here, by node type and input: small files, sizes and steps."""
    table = json.loads((HERE / "tiny_settings.json").read_text())

    def settings(workflow: str) -> dict[str, dict[str, Any]]:
        own = table.get(workflow, {})
        return {kind: {**table["all"].get(kind, {}), **own.get(kind, {})} for kind in {*table["all"], *own}}

    return settings


@pytest.fixture(scope="session")
def server(start_server):
    """Return a running ComfyUI with our pack, the tiny checkpoints and the sample media."""
    with start_server() as running:
        yield running


@pytest.fixture(scope="session")
def need(server):
    """Return a function that skips the test where the server lacks a node, and says so."""
    info, version = server.object_info(), server.get("/system_stats")["system"]["comfyui_version"]

    def check(*kinds: str) -> None:
        if missing := sorted({*kinds} - info.keys()):
            pytest.skip(f"ComfyUI {version} has no {', '.join(missing)}")

    return check


@pytest.fixture(scope="session")
def refused(server):
    """Return a check that a graph ends in a short error of whole sentences, in which some words are."""

    def check(graph: dict[str, Any], words: list[str]) -> None:
        outcome = server.prompt(graph)
        assert outcome.status == "error", outcome.status
        assert all(word in outcome.message for word in words), outcome.message
        assert len(outcome.message) < 500 and outcome.message.endswith((".", ")")), outcome.message

    return check
