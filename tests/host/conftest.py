"""Fixtures of the tests that run inside a real ComfyUI's interpreter; `tests/test_host.py` starts them.

By hand: ``COMFYUI_PATH=... PYTHONSAFEPATH=1 <host python> -m pytest -c tests/host/pytest.ini
--rootdir tests/host tests/host/test_server.py``.
"""

from __future__ import annotations

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
def host():
    """Return ComfyUI's ``nodes`` module, imported for the CPU."""
    if not (COMFYUI / "comfy" / "sd.py").is_file():
        pytest.fail(f"Expected a ComfyUI checkout at {COMFYUI}. Set COMFYUI_PATH.")
    own = {str(REPOSITORY), str(HERE), ""}
    sys.path[:] = [str(COMFYUI), *(entry for entry in sys.path if entry not in own)]
    from comfy.cli_args import LatentPreviewMethod, args

    args.cpu = True
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
    """Return seven frames of noise: more than two windows of the tiny model."""
    return torch.rand(7, 32, 32, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def cameras(core):
    """Return as many cameras as the tiny model makes views."""
    return core("cameras").Cameras.ring(2)


@pytest.fixture(scope="session")
def window(pack, loaded, clip, cameras):
    """Return positive, negative and latents of the clip's first window, and its frames."""
    return pack["SV4D2Conditioning"].execute(*loaded, clip, cameras, 0).args


@pytest.fixture(scope="session")
def guided(pack, loaded):
    """Return the tiny model with the official guidance."""
    return pack["SV4D2Guidance"].execute(loaded[0], "official", 1.0, 2.0)[0]


@pytest.fixture(scope="session")
def ksampler(host, window):
    """Return a caller of the stock KSampler, on the first window: ``ksampler(model, steps=2)``."""

    def sample(model, given=window, *, steps=4, cfg=1.0, sampler="euler"):
        arguments = (model, 5, steps, cfg, sampler, "karras", *given[:3])
        with torch.inference_mode():
            return host.KSampler().sample(*arguments)[0]["samples"]

    return sample


@pytest.fixture
def cancelled(host):
    """Return a maker of blocks that the user's cancelling must end: ``with cancelled(): ...``."""
    from comfy.model_management import InterruptProcessingException

    return lambda: pytest.raises(InterruptProcessingException)


@pytest.fixture
def bar(host, monkeypatch):
    """Return the list of what the progress bar is told."""
    import comfy.utils

    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *args, **_kw: seen.append(args))
    return seen


@pytest.fixture
def cancel_at(host, monkeypatch):
    """Return a function that makes the user cancel when the bar stands at a value."""
    import comfy.model_management
    import comfy.utils

    def arrange(wanted):
        def hook(value, *_args, **_kw):
            if wanted(value):
                comfy.model_management.interrupt_current_processing()

        monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)

    return arrange


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
def tiny_prompt(tiny_settings):
    """Return a reader of committed prompts, with small sizes and few steps: ``tiny_prompt(name)``."""

    def read(name: str) -> dict[str, dict[str, Any]]:
        graph = json.loads((HERE.parent / "data/prompts" / f"{name}.json").read_text())
        for number, node in graph.items():
            changes = tiny_settings(name).get(node["class_type"], {})
            assert changes.keys() <= node["inputs"].keys(), (name, number)
            node["inputs"] |= changes
        return graph

    return read


@pytest.fixture(scope="session")
def server(start_server):
    """Return a running ComfyUI with our pack, the tiny checkpoints and the sample media."""
    with start_server() as running:
        yield running
