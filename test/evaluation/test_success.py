"""Success is counted right, on scenes that nobody trained on, whoever simulates."""

import json
import re

import numpy as np
import pytest

from ros_pi0_fast.evaluation.closed_loop import Episode, EpisodeResult, LoopSettings, Simulations
from ros_pi0_fast.evaluation.success import (
    SEEDS_A_RUN,
    evaluation_episodes,
    main,
    report_lines,
    summarize,
)
from ros_pi0_fast.sim.arm import ACTION_NAMES
from ros_pi0_fast.sim.tasks import EVALUATION_SEEDS
from ros_pi0_fast.types import ActionChunk


def result(task, *, success, swap=False, touched=False, malformed=0, error=0.1):
    return EpisodeResult(episode=Episode(task=task, seed=1, swap=swap), success=success,
                         touched_target_first=touched, steps=10, plans=4, malformed=malformed,
                         error=np.full((3, 5), error))


def test_rates_errors_and_malformed_chunks_are_counted():
    results = [result('reach', success=True), result('reach', success=False, malformed=1),
               result('pick', success=True, error=0.3),
               result('reach', success=False, swap=True, touched=True)]
    summary = summarize(results)
    assert summary['tasks']['reach']['successes'] == 1 and summary['tasks']['reach']['rate'] == 0.5
    assert summary['tasks']['pick']['rate'] == 1 and summary['swapped_reach']['rate'] == 1
    assert summary['malformed'] == 1 and summary['chunks'] == 16
    assert summary['action_error'] == pytest.approx(dict.fromkeys(ACTION_NAMES, 0.5 / 3))
    lines = report_lines(summary)
    assert re.fullmatch(r'reach 50\.0 % \[9\.5, 90\.5\] 1/2', lines[0])
    assert lines[-1] == 'malformed chunks: 1 of 16'


def test_seeds_are_evaluation_s_and_runs_share_none():
    first, second = (evaluation_episodes(3, seed, latency=0, swap_instruction=True)
                     for seed in (0, 1))
    assert len(first) == 12 and sum(episode.swap for episode in first) == 3
    assert min(episode.seed for episode in first) == EVALUATION_SEEDS
    assert not {e.seed for e in first} & {e.seed for e in second}
    for wrong in ((0, 0), (3, -1), (SEEDS_A_RUN + 1, 0)):
        with pytest.raises(ValueError, match='expected a seed of 0 or more'):
            evaluation_episodes(*wrong, latency=0)


def hold(observations):
    """Plan to stay where the arm is."""
    return [ActionChunk(actions=np.tile(observation.state, (10, 1)), valid=True)
            for observation in observations]


def refuse(observations):
    return [ActionChunk(actions=np.zeros((0, 5), np.float32), valid=False, reason='no')
            for _ in observations]


EPISODES = [Episode(task=task, seed=EVALUATION_SEEDS + i, latency=i % 2)
            for i, task in enumerate(('reach', 'push', 'pick', 'reach'))]


def test_workers_change_nothing():
    found = []
    for workers in (0, 2):
        with Simulations(workers) as simulations:
            results, _ = simulations.run(EPISODES, LoopSettings(slots=2), hold)
        found.append(results)
    for here, there in zip(*found, strict=True):
        assert (here.episode, here.success, here.steps, here.plans) == (
            there.episode, there.success, there.steps, there.plans)
        np.testing.assert_array_equal(here.error, there.error)
    assert not any(each.success for each in found[0])
    assert [each.steps for each in found[0]] == [60] * 4


def test_a_chunk_that_is_not_valid_is_never_executed():
    with Simulations(0) as simulations:
        (refused,), _ = simulations.run(EPISODES[:1], LoopSettings(), refuse)
        (held,), _ = simulations.run(EPISODES[:1], LoopSettings(), hold)
    assert refused.malformed == refused.plans == held.plans and held.malformed == 0
    assert len(refused.error) == 0 and not refused.success


def test_the_command_prints_and_writes_the_same(repository, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(repository)
    arguments = ['--episodes', '2', '--seed', '5', '--slots', '4', '--swap-instruction',
                 '--tasks', 'reach', 'push']
    main([*arguments, '--json', str(tmp_path / 'out' / 'success.json')])
    printed = capsys.readouterr().out
    data = json.loads((tmp_path / 'out' / 'success.json').read_text('utf-8'))
    for task in ('reach', 'push'):
        rate = data['tasks'][task]
        assert f'{task} {100 * rate["rate"]:.1f} % [' in printed and rate['episodes'] == 2
    assert data['swapped_reach']['episodes'] == 2 and data['variant'] == 'plain'
    assert f'malformed chunks: {data["malformed"]} of {data["chunks"]}' in printed
    main([*arguments, '--set', 'early_stop=false', '--json', str(tmp_path / 'engine.json')])
    engine = json.loads((tmp_path / 'engine.json').read_text('utf-8'))
    # The engine's tokens are those of the plain policy, and so is all that comes of them.
    assert engine['variant'] == 'early_stop=false'
    assert engine['tasks'] == data['tasks'] and engine['chunks'] == data['chunks']


def test_the_shipped_policy_does_what_it_is_told(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(repository)
    main(['--episodes', '20', '--seed', '7', '--swap-instruction', '--workers', '2',
          '--json', str(tmp_path / 'success.json')])
    data = json.loads((tmp_path / 'success.json').read_text('utf-8'))
    for task, least in (('reach', 19), ('push', 16), ('pick', 18)):
        assert data['tasks'][task]['successes'] >= least, data['tasks'][task]
    assert data['swapped_reach']['successes'] >= 18
    assert data['malformed'] == 0


def test_what_cannot_be_run_is_named(repository, monkeypatch):
    monkeypatch.chdir(repository)
    with pytest.raises(SystemExit, match="error: 'turbo': no switch of the engine"):
        main(['--episodes', '1', '--set', 'turbo=true'])
    with pytest.raises(SystemExit, match='error: seed 0 and 0 episodes'):
        main(['--episodes', '0'])
