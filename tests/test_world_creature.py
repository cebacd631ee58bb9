"""The kinematics of the procedural animals: joints hold, the walk is periodic, seeds are reproducible."""

import math
from collections import Counter

import pytest
import torch

from sv4d2_core.world.body import Bone, Creature, make_creature, parts_at


def test_a_seed_gives_the_same_animal_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    assert make_creature(5) == make_creature(5) != make_creature(6)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_every_animal_has_the_parts_of_an_animal():
    expected = {"head": 1, "eye": 2, "ear": 2, "muzzle": 1, "thigh": 4, "paw": 4, "tail": 3}
    for seed in range(10):
        names = [bone.name for bone in make_creature(seed).bones]
        assert len(set(names)) == len(names)
        kinds = Counter(name.split()[0] for name in names)
        assert {kind: kinds[kind] for kind in expected} == expected


def test_hinge_of_two_bones_follows_the_closed_form():
    """A pendulum on a pendulum, positions written out by hand."""
    bones = (
        Bone("upper", "", (0, 0, 0), (0, -0.5, 0), (0.1, 0.5, 0.1), swing_deg=30.0),
        Bone("lower", "upper", (0, -1, 0), (0, -0.25, 0), (0.1, 0.25, 0.1), swing_deg=20.0, phase=0.25),
    )
    times = torch.tensor([0.0, 0.1, 0.6])
    parts = parts_at(Creature(bones, scale=2.0, origin=(0.0, 0.3, 0.0)), times)
    for t, time in enumerate(times.double().tolist()):
        a = math.radians(30) * math.sin(2 * math.pi * time)
        b = a + math.radians(20) * math.cos(2 * math.pi * time)
        knee = (0, 0.3 - 2 * math.cos(a), -2 * math.sin(a))
        upper = (0, 0.3 - math.cos(a), -math.sin(a))
        lower = (0, knee[1] - 0.5 * math.cos(b), knee[2] - 0.5 * math.sin(b))
        assert parts.centres[t].tolist() == [pytest.approx(upper, abs=1e-7), pytest.approx(lower, abs=1e-7)]
    assert parts.radii.tolist() == [pytest.approx((0.2, 1.0, 0.2)), pytest.approx((0.2, 0.5, 0.2))]


@pytest.mark.parametrize("heading", [0.0, 90.0, -60.0])
def test_heading_is_an_azimuth(heading):
    nose = Bone("nose", "", (0, 0, 0), (0, 0, 1), (0.1, 0.1, 0.1))
    centre = parts_at(Creature((nose,), heading_deg=heading), torch.zeros(1)).centres[0, 0]
    a = math.radians(heading)
    assert centre.tolist() == pytest.approx([math.sin(a), 0, math.cos(a)], abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_walk_is_periodic_rigid_and_moves_the_limbs(seed):
    creature = make_creature(seed)
    parts = parts_at(creature, torch.linspace(0, 1, 25))
    assert torch.allclose(parts.centres[0], parts.centres[-1], atol=1e-9)
    eye = torch.eye(3, dtype=torch.float64).expand_as(parts.rotations)
    assert torch.allclose(parts.rotations @ parts.rotations.mT, eye, atol=1e-12)
    travel = parts.centres.amax(0) - parts.centres.amin(0)
    paws = [i for i, bone in enumerate(creature.bones) if bone.name.startswith("paw")]
    assert float(travel[paws].norm(dim=-1).min()) > 0.08
    belly = [bone.name for bone in creature.bones].index("belly")
    assert float(travel[belly].norm()) < 0.05


@pytest.mark.parametrize("seed", range(3))
def test_diagonal_or_sequential_gait_puts_left_and_right_out_of_phase(seed):
    creature = make_creature(seed)
    names = [bone.name for bone in creature.bones]
    parts = parts_at(creature, torch.linspace(0, 1, 49)[:-1])
    heading = math.radians(creature.heading_deg)
    forward = torch.tensor([math.sin(heading), 0, math.cos(heading)], dtype=torch.float64)
    left, right = (parts.centres[:, names.index(f"paw front {side}")] @ forward for side in ("left", "right"))
    assert float(torch.corrcoef(torch.stack([left, right]))[0, 1]) < -0.9


def test_a_path_carries_the_root_evenly_and_turns_with_the_heading():
    ball = Bone("ball", "", (0, 0, 0), (0, 0, 0), (0.1, 0.1, 0.1))
    creature = Creature((ball,), heading_deg=90.0, scale=0.5, origin=(0.0, 0.2, 0.0), path=(0.0, 0.0, 2.0))
    centres = parts_at(creature, torch.tensor([0.0, 0.25, 0.5, 1.0])).centres[:, 0]
    expected = torch.tensor([[-0.5, 0.2, 0.0], [-0.25, 0.2, 0.0], [0.0, 0.2, 0.0], [0.5, 0.2, 0.0]])
    assert torch.allclose(centres, expected.double(), atol=1e-12)


def test_a_wheel_turns_on_and_comes_round():
    hand = Bone("hand", "", (0, 0, 0), (0, 1, 0), (0.1, 0.1, 0.1), axis=(0.0, 0.0, 1.0), turns=1.0)
    centres = parts_at(Creature((hand,)), torch.tensor([0.0, 0.25, 0.5, 1.0])).centres[:, 0]
    expected = torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, -1, 0], [0, 1, 0]])
    assert torch.allclose(centres, expected.double(), atol=1e-12)
    twice = parts_at(Creature((hand,), cycles=2), torch.tensor([0.25])).centres[0, 0]
    assert torch.allclose(twice, expected[2].double(), atol=1e-12)
