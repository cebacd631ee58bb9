"""The benchmark scenes are the same everywhere, and show what they promise."""

from dataclasses import replace

import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.world import parts_at, render_creature
from sv4d2_core.world.body import Bone, Creature
from sv4d2_core.world.suite import HELD_OUT, BenchmarkScene, benchmark_scenes

SCENES = {scene.name: scene for scene in benchmark_scenes()}
RIGS = (Cameras.official("sv4d2"), Cameras.official("sv4d2_8views"), HELD_OUT)
# One number for all places, sizes and colours of a scene's parts, see `fingerprint`, and its traits, which
# hold for these numbers: scenes must never drift.
RECORDED = {
    "walker": (45.529950, {"slow", "articulated", "textured"}),
    "runner": (205.916370, {"fast", "articulated", "crossing"}),
    "rocking_horse": (-69.107629, {"slow", "rigid", "textured"}),
    "windmill": (5.314372, {"fast", "articulated", "thin"}),
    "carousel": (95.051619, {"articulated", "thin", "self-occluded", "textured"}),
    "robot_arm": (71.454371, {"slow", "articulated"}),
    "aeroplane": (-42.987342, {"fast", "rigid", "crossing"}),
    "flamingo": (-20.162678, {"slow", "articulated", "thin"}),
    "owl": (-3.263135, {"slow", "articulated", "self-occluded", "textured"}),
    "butterfly": (-52.318446, {"fast", "articulated", "thin", "textured"}),
}


def test_the_scenes_are_fixed_whatever_the_global_generator_did():
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    assert benchmark_scenes() == tuple(SCENES[name] for name in RECORDED)
    assert torch.equal(torch.random.get_rng_state(), state)


def fingerprint(creature: Creature, *more: torch.Tensor) -> float:
    parts = parts_at(creature, torch.linspace(0, 1, 4))
    coat = parts.coat
    tables = (parts.centres, parts.rotations, parts.radii, coat.colours, coat.phases, *more)
    numbers = torch.cat([table.flatten() for table in (*tables, coat.patterns.double())]) * coat.frequency
    return float((numbers * torch.arange(len(numbers)).double().sin()).sum())


@pytest.mark.parametrize("name", RECORDED)
def test_the_scenes_are_those_that_were_recorded(name):
    assert fingerprint(SCENES[name].creature) == pytest.approx(RECORDED[name][0], abs=1e-5)
    assert SCENES[name].n_frames == 12


def test_a_trait_is_what_it_says():
    """Rigid scenes keep all distances, the others do not; markings are seen."""
    for scene in SCENES.values():
        centres = parts_at(scene.creature, torch.linspace(0, 1, 12)).centres
        distances = (centres[:, :, None] - centres[:, None]).norm(dim=-1)
        change = float((distances - distances[:1]).abs().max())
        assert change < 1e-9 if "rigid" in RECORDED[scene.name][1] else change > 0.02, scene.name
    owl = SCENES["owl"].creature
    bare = replace(owl, bones=tuple(replace(bone, pattern="plain") for bone in owl.bones))
    marked, plain = (render_creature(c, RIGS[0], torch.zeros(1), 64) for c in (owl, bare))
    change = (marked.rgb - plain.rgb).abs().amax(-1) > 0.2
    assert float(change.sum() / (plain.mask > 0.5).sum()) > 0.08


def test_a_path_carries_the_root_evenly_and_turns_with_the_heading():
    ball = Bone("ball", "", (0, 0, 0), (0, 0, 0), (0.1, 0.1, 0.1))
    creature = Creature((ball,), heading_deg=90.0, scale=0.5, origin=(0.0, 0.2, 0.0), path=(0.0, 0.0, 2.0))
    centres = parts_at(creature, torch.tensor([0.0, 0.25, 0.5, 1.0])).centres[:, 0]
    expected = torch.tensor([[-0.5, 0.2, 0.0], [-0.25, 0.2, 0.0], [0.0, 0.2, 0.0], [0.5, 0.2, 0.0]])
    assert torch.allclose(centres, expected.double(), atol=1e-12)


def test_held_out_views_are_on_no_training_rig():
    def places(cameras):
        return set(zip(cameras.elevations_deg[1:], (a % 360 for a in cameras.azimuths_deg[1:]), strict=True))

    assert len(places(HELD_OUT)) == 5
    assert not places(HELD_OUT) & (places(RIGS[0]) | places(RIGS[1]))
    assert len({e for e, _ in places(HELD_OUT)}) >= 3


def test_views_and_between_show_the_times_they_promise():
    scene = BenchmarkScene("x", "", SCENES["owl"].creature, n_frames=5)
    shown, hidden = scene.views(HELD_OUT, 24), scene.between(HELD_OUT, 24)
    for grid, times in ((shown, (0, 0.25, 0.5, 0.75, 1)), (hidden, (0.125, 0.375, 0.625, 0.875))):
        truth = render_creature(scene.creature, HELD_OUT, torch.tensor(times), 24)
        assert torch.equal(grid.images, truth.rgb)
        assert torch.equal(grid.masks, truth.mask)
        assert grid.cameras == HELD_OUT
        assert grid.settings == {"scene": "x"} and grid.times == times
