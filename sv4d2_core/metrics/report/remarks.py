"""What the report says about its numbers: what is missing, what may be compared with what."""

from __future__ import annotations

from collections.abc import Sequence

from ..catalogue import CLIP_NAME, FVD_NAMES, LPIPS_NAME
from ..i3d import I3D_HELP
from ..lpips import LPIPS_HELP
from ..scores import Summary
from .comparison import SceneComparison, method_names
from .pictures import REFERENCE

BEST = "Bold: the best of at least two methods, by the digits that are printed."
INCOMPLETE = (
    "† The value leaves out views, images or scenes that the others are judged by (see the notes); it is "
    "never marked as the best."
)
NOT_FVD = (
    "FHD-F, FHD-V, FHD-Diag and FH4D watch the same clips as FVD-F, FVD-V, FVD-Diag and FV4D, but describe "
    "them by HOG3D (directions of edges and motion) and colours instead of the I3D network. They need no "
    "file, are not FVD, and cannot be compared with any FVD."
)
FEW_CLIPS = (
    "Where clips are not more than features, a covariance has no full rank: such distances compare only with "
    "each other, at equal n, T and shrinkage, never with published ones."
)
_NO_REFERENCE = (
    "There are no true views, so only what needs none was measured. LPIPS, CLIP-S, FVD, PSNR, SSIM and mask "
    "IoU need them: give REFERENCE on the command line, or connect reference of SV4D2 Metrics in ComfyUI."
)
_MISSING = {
    "lpips": f"{LPIPS_NAME} is missing: give its weights with --lpips FILE. {LPIPS_HELP}",
    "clip": f"{CLIP_NAME} is missing: give an image encoder of CLIP with --clip FILE.",
    "i3d": f"{', '.join(FVD_NAMES.values())} are missing: give the I3D network with --i3d FILE. {I3D_HELP}",
}
_NODE = (
    "In ComfyUI put the files of LPIPS and I3D into models/sv4d2_metrics and choose them in SV4D2 Metrics; "
    "for CLIP-S connect its clip_vision. Nothing is ever downloaded."
)
_NAMED_AT_MOST = 4


def what_was_compared(comparisons: Sequence[SceneComparison]) -> dict[str, str]:
    """Return methods, scenes and sizes in words."""
    scores = [score for scene in comparisons for score in scene.scores]
    with_truth = sum(scene.has_reference for scene in comparisons)
    sizes = dict.fromkeys(f"{width} x {height} pixels" for s in comparisons for width, height in s.sizes)
    return {
        "Methods": ", ".join(method_names(comparisons)),
        "Scenes": ", ".join(scene.scene or "one without a name" for scene in comparisons),
        "Frames": _range([score.n_frames for score in scores]),
        "Novel views": _range([score.cameras.n_views for score in scores]),
        "Size": ", ".join(sizes),
        "True views": {0: "none", len(comparisons): "yes"}.get(
            with_truth, f"of {with_truth} of {len(comparisons)} scenes"
        ),
    }


def untrained_warning(comparisons: Sequence[SceneComparison]) -> str:
    """Return a warning where views come from weights that were never trained, else nothing."""
    untrained = frozenset[str]().union(*(scene.untrained for scene in comparisons))
    names = [name for name in method_names(comparisons) if name in untrained]
    return f"{', '.join(names)}: UNTRAINED WEIGHTS, noise is expected" if names else ""


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def missing_lines(comparisons: Sequence[SceneComparison]) -> tuple[str, ...]:
    """Return what was not given, and so what could not be measured: a line for each."""
    if not any(scene.has_reference for scene in comparisons):
        return (_NO_REFERENCE,)
    given = frozenset[str]().union(*(scene.networks for scene in comparisons))
    lines = tuple(line for name, line in _MISSING.items() if name not in given)
    return (*lines, _NODE) if lines else ()


def notes(comparisons: Sequence[SceneComparison], summaries: Sequence[Summary]) -> list[str]:
    """Return the notes of all methods and scenes, equal ones as one, with whom they concern."""
    scenes: dict[tuple[str, str], list[str]] = {}
    for scene in comparisons:
        for score in scene.scores:
            for note in score.notes:
                scenes.setdefault((note, score.method), []).append(scene.scene)
    for summary in summaries:
        for note in summary.notes:
            scenes.setdefault((note, summary.method), [])
    methods: dict[tuple[str, str], list[str]] = {}
    for (note, method), places in scenes.items():
        everywhere = len(comparisons) == 1 or not places or len(places) == len(comparisons)
        methods.setdefault((note, "" if everywhere else f" in {_listed(places)}"), []).append(method)
    everyone = method_names(comparisons)
    lines = [f"{_whom(names, everyone)}{where}: {note}" for (note, where), names in methods.items()]
    absent = [
        f"{s.method}: {s.n_scenes} of {len(comparisons)} scenes."
        for s in summaries
        if s.method != REFERENCE and s.n_scenes < len(comparisons)
    ]
    return [*absent, *lines]


def _whom(names: Sequence[str], everyone: Sequence[str]) -> str:
    return "All methods" if len(everyone) > 1 and set(everyone) <= set(names) else _listed(names)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED_AT_MOST])
    return f"{shown} and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else shown
