"""Access to hosts of any age: sockets, widgets, schema fields, memory, gradients."""

from __future__ import annotations

import functools
import inspect
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io
from torch import Tensor

from ..sv4d2_core.files import is_out_of_memory
from ..sv4d2_core.views import ViewGrid

log = logging.getLogger(__name__)

CamerasType = io.Custom("SV4D2_CAMERAS")  # carries a `Cameras`
ViewsType = io.Custom("SV4D2_VIEWS")  # carries a `ViewGrid`
SceneType = io.Custom("SV4D2_SCENE")  # carries a `Scene4D`

_BATCH = 4  # images per call of a network: a job can be cancelled between two calls

_SCHEMA_FIELDS = {field.name for field in fields(io.Schema)}


def aliases(*words: str) -> dict[str, Any]:
    """Return further search words of a node as keyword of `io.Schema`, or nothing where it has none."""
    return {"search_aliases": list(words)} if "search_aliases" in _SCHEMA_FIELDS else {}


def shows_a_picture() -> dict[str, Any]:
    """Return the keyword of `io.Schema` with which newer hosts show a node's picture again after a reload."""
    return {"has_intermediate_output": True} if "has_intermediate_output" in _SCHEMA_FIELDS else {}


def advanced() -> dict[str, Any]:
    """Return the keyword of an input that newer hosts show on demand only, or nothing where there is none."""
    return {"advanced": True} if "advanced" in inspect.signature(io.Combo.Input).parameters else {}


@functools.cache
def _texts() -> dict[str, Any]:
    """Return names and help of all nodes, from where the host's page has its translations, too."""
    file = Path(__file__).parent.parent / "locales" / "en" / "nodeDefs.json"
    return json.loads(file.read_text(encoding="utf-8"))


def described(define: Callable[[Any], io.Schema]) -> classmethod[Any, [], io.Schema]:
    """Make ``define_schema`` a class method; name and all help come from locales/en/nodeDefs.json."""

    @functools.wraps(define)
    def complete(cls: Any) -> io.Schema:
        schema = define(cls)
        texts = _texts()[schema.node_id]
        schema.display_name, schema.description = texts["display_name"], texts["description"]
        for widget in schema.inputs:
            widget.tooltip = texts["inputs"][widget.id]["tooltip"]
        tooltips = {output["name"]: output["tooltip"] for output in texts["outputs"].values()}
        for output in schema.outputs:
            output.tooltip = tooltips[output.display_name]
        return schema

    return classmethod(complete)


def number(name: str, default: float, limits: tuple[float, ...], **options: Any) -> io.Input:
    """Return the widget of a number, whole as its default is; limits: least, greatest and maybe the step."""
    kind, socket = type(default), io.Float if isinstance(default, float) else io.Int
    given = dict(zip(("min", "max", "step"), map(kind, limits), strict=False))
    return socket.Input(name, default=default, **given, **options)


def choice(name: str, options: Iterable[str], **more: Any) -> io.Input:
    """Return the widget of a choice; the first one is the default unless ``more`` has another."""
    options = list(options)
    return io.Combo.Input(name, options=options, **{"default": options[0], **more})


def outputs(**sockets: Any) -> list[io.Output]:
    """Return a node's outputs by their names, in their order."""
    return [socket.Output(display_name=name) for name, socket in sockets.items()]


def seed_input(default: int, **options: Any) -> io.Input:
    """Return the widget of a seed, which stays as it is unless the user wants another one each time."""
    # Newer hosts know a start value for the control; on others it starts with randomize.
    fixed = getattr(getattr(io, "ControlAfterGenerate", None), "fixed", True)
    return number("seed", default, (0, 0xFFFFFFFFFFFFFFFF), control_after_generate=fixed, **options)


@contextmanager
def gradients() -> Iterator[None]:
    """Allow gradients, which the host switches off, for tensors that are made inside; copy others first."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def copied(views: ViewGrid) -> ViewGrid:
    """Return views whose pictures may take part in gradients; call it inside `gradients`."""
    masks = None if views.masks is None else views.masks.clone()
    return replace(views, images=views.images.clone(), masks=masks, latents=None)


def is_oom(error: BaseException) -> bool:
    """Return whether an error says that memory ran out; newer hosts know more kinds than one class."""
    known = getattr(comfy.model_management, "is_oom", None)
    return is_out_of_memory(error) or (known is not None and known(error))


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Put ``advice`` before an error of missing memory, as OOM_EXCEPTION: the host then unloads models."""
    try:
        yield
    except Exception as error:
        if not is_oom(error):
            raise
        raise comfy.model_management.OOM_EXCEPTION(f"{advice} ({error})") from error


def check_main_memory(needed: float, what: str, advice: str) -> None:
    """Raise ValueError where fewer than ``needed`` bytes are free; ``what`` ends with "need" or "needs"."""
    free = comfy.model_management.get_free_memory(torch.device("cpu"))
    if needed > free:
        raise ValueError(
            f"{what} about {needed / 2**30:.1f} GiB of main memory; {free / 2**30:.1f} GiB are free. {advice}"
        )


def check_cancelled(*_: object) -> None:
    """Raise when the user cancels; a callback of whatever counts its steps."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def batches(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a few rows at a time; raises between them when the user cancels."""
    for batch in tensor.split(_BATCH):
        check_cancelled()
        yield batch


@functools.cache
def say_once(level: int, text: str) -> None:
    log.log(level, "SV4D2: %s", text)
