"""The simulated tabletop: repeatable, solvable by the expert, and judged strictly."""

import numpy as np
import pytest

from ros_pi0_fast.sim import arm
from ros_pi0_fast.sim.episodes import EpisodeConfig, generate_dataset, generate_episode
from ros_pi0_fast.sim.expert import expert_chunk, solves
from ros_pi0_fast.sim.tabletop import Tabletop
from ros_pi0_fast.sim.tasks import (
    COLOURS,
    EVALUATION_SEEDS,
    TASKS,
    asked_otherwise,
    sample_layout,
)


@pytest.fixture(scope='module')
def table():
    return Tabletop()


@pytest.mark.parametrize('seed', range(20))
def test_inverse_kinematics_is_the_inverse(seed):
    rng = np.random.default_rng(seed)
    radius, angle = rng.uniform(0.12, 0.30), rng.uniform(-1, 1)
    tip = np.array([radius * np.cos(angle), radius * np.sin(angle), rng.uniform(0.01, 0.12)])
    joints = arm.inverse_kinematics(tip)
    np.testing.assert_allclose(arm.forward_kinematics(joints), tip, atol=1e-9)


def test_a_seed_is_a_scene(table):
    # The scenes between leave a fourth cube behind, of another colour each.
    assert len(table.reset(13, 'push').cubes) == len(table.reset(14, 'push').cubes) == 4
    assert len(table.reset(8, 'push').cubes) == 3
    first = table.observe()
    overview = table.render(160, 120)
    table.step(expert_chunk(table)[0])
    table.reset(13, 'push')
    table.reset(8, 'push')
    again = table.observe()
    assert again.instruction == first.instruction
    np.testing.assert_array_equal(again.state, first.state)
    for key, picture in first.images.items():
        np.testing.assert_array_equal(again.images[key], picture)
    table.reset(8, 'push')
    np.testing.assert_array_equal(table.render(160, 120), overview)
    table.reset(9, 'push')
    assert np.any(table.observe().images['base_0_rgb'] != first.images['base_0_rgb'])


def test_the_instruction_names_one_cube_of_the_scene():
    for seed in range(200):
        layout = sample_layout(seed)
        named = layout.colours[layout.target]
        assert layout.instruction.split().count(named) >= 1
        assert len(set(layout.colours)) == len(layout.cubes) >= 3


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('execute', [1, 5])
def test_the_expert_solves_unseen_scenes(table, task, execute):
    done = sum(solves(table, EVALUATION_SEEDS + 500 + i, task, execute) for i in range(30))
    assert done >= 28


@pytest.mark.parametrize('task', TASKS)
def test_standing_still_solves_nothing(table, task):
    for seed in range(5):
        table.reset(seed, task)
        start = np.array([*table.joints, 0.0])
        while not table.over():
            table.step(start)
        assert not table.success()


def test_touching_another_cube_fails_reach(table):
    layout = table.reset(3, 'reach')
    other = (layout.target + 1) % len(layout.cubes)
    x, y = layout.cubes[other]
    for height in (0.09, 0.09, 0.09, 0.06, 0.026, 0.024):
        for _ in range(3):
            table.step([*arm.inverse_kinematics((x, y, height)), 1.0])
    assert table.first_touched == other
    assert table.over() and not table.success()


def test_the_expert_recovers_from_where_it_never_goes(table):
    recovered = 0
    for seed in range(10):
        table.reset(seed, 'pick')
        rng = np.random.default_rng(seed)
        for _ in range(4):
            table.step(np.array([*table.joints + rng.normal(0, 0.15, 4), rng.random()]))
        while not table.over():
            for action in expert_chunk(table)[:5]:
                table.step(action)
        recovered += table.success()
    assert recovered >= 8


@pytest.mark.parametrize('action', [np.zeros(4), np.full(5, np.nan)])
def test_a_wrong_action_is_refused(table, action):
    with pytest.raises(ValueError, match='expected 5 finite numbers'):
        table.step(action)


def test_an_unknown_task_is_named(table):
    with pytest.raises(ValueError, match="task: 'dance', expected one of reach, push, pick"):
        table.reset(0, 'dance')


def test_evaluation_scenes_cannot_be_trained_on():
    with pytest.raises(ValueError, match='is for evaluation'):
        generate_episode(EVALUATION_SEEDS)


def test_episodes_are_the_same_from_workers_and_without():
    config = EpisodeConfig()
    here = list(generate_dataset(range(4), workers=0, config=config))
    there = list(generate_dataset(range(4), workers=2, config=config))
    for a, b in zip(here, there, strict=True):
        assert (a.seed, a.task, a.success) == (b.seed, b.task, b.success)
        for here, there in zip(a.states, b.states, strict=True):
            assert here.instructions == there.instructions
            np.testing.assert_array_equal(here.chunks, there.chunks)
        np.testing.assert_array_equal(a.states[-1].observation.images['wrist_0_rgb'],
                                      b.states[-1].observation.images['wrist_0_rgb'])


def test_a_picture_is_labelled_for_several_orders():
    """Each label is what the expert does when that order is the one that is given."""
    table = Tabletop()
    for state in generate_episode(7, 'pick').states[:3]:
        assert len(set(state.instructions)) == len(state.instructions) == 4
        assert state.instructions[0] == state.observation.instruction
        assert len({chunk.tobytes() for chunk in state.chunks}) >= 3
    layout = table.reset(7, 'pick')
    for other in asked_otherwise(layout, np.random.default_rng(0), 100):
        assert (other.task, other.target) != (layout.task, layout.target)
        chunk = expert_chunk(table, other)
        table.layout = other
        np.testing.assert_array_equal(chunk, expert_chunk(table))
        table.layout = layout


def test_of_some_scenes_only_the_first_look_is_kept():
    config = EpisodeConfig(first_look_only=0.5)
    lengths = [len(generate_episode(seed, config=config).states) for seed in range(12)]
    assert 1 in lengths and max(lengths) > 1


def test_a_cube_is_where_the_projection_says(table):
    """At its place in the base camera's picture is its colour, unless something is in front."""
    right = seen = 0
    for seed in range(40):
        layout = table.reset(seed, 'reach')
        picture = table.render(256, 256, 'base').astype(float) / 255
        for index, colour in enumerate(layout.colours):
            place = table.place_in_picture(table.cube(index), 'base')
            if np.isnan(place).any():
                continue
            column, row = (place * 256).astype(int)
            found = picture[row, column] / np.linalg.norm(picture[row, column])
            names = {name: found @ np.array(rgb) / np.linalg.norm(rgb)
                     for name, rgb in COLOURS.items()}
            right += max(names, key=names.__getitem__) == colour
            seen += 1
    assert seen > 80 and right > 0.9 * seen
    assert np.isnan(table.place_in_picture(np.array([-5.0, 0.0, 0.0]), 'base')).all()
