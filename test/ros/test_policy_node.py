"""The policy node end to end: real processes over real DDS."""

import itertools
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope='module')
def node(start, random_checkpoint):
    process = start(checkpoint=random_checkpoint, rate_hz=20.0)
    process.wait_for('active: ')
    return process


def ros2(*words, timeout=30):
    return subprocess.run([shutil.which('ros2') or Path(sys.executable).with_name('ros2'), *words],
                          capture_output=True, text=True, timeout=timeout)


def test_a_chunk_answers_the_observation_whose_stamp_it_carries(node, robot):
    from robot import JOINTS, stamp_of
    stamps = robot.until(lambda: len(robot.chunks) >= 5)
    for chunk in robot.chunks:
        assert stamp_of(chunk) in stamps
        assert chunk.valid and not chunk.reason
        assert (chunk.horizon, chunk.action_dim) == (10, 5) and len(chunk.actions) == 50
        assert np.isfinite(chunk.actions).all()
        assert list(chunk.names) == JOINTS and chunk.absolute
        assert chunk.control_period.sec == 0 and chunk.control_period.nanosec == 100_000_000
        assert chunk.instruction == 'touch the red cube' and chunk.variant == 'default'
        assert chunk.total_ms >= chunk.decode_ms > 0 < min(chunk.vision_ms, chunk.prefill_ms)
    sequences = [chunk.sequence for chunk in robot.chunks]
    assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
    stats = [stats for stats in robot.stats if stats.state == 'inference'][-1]
    assert stats.chunks_valid == stats.chunks_published > 0
    assert stats.target_passes > 0 and stats.prefix_tokens > stats.prompt_tokens > 0


@pytest.mark.parametrize(('saying', 'words'), [
    ({'encoding': 'yuv422'}, "bad image: base_0_rgb: encoding: found 'yuv422', expected one of"),
    ({'data': b'too short'}, 'bad image: base_0_rgb: data: found 9 bytes, expected 12288'),
    ({'instruction': '  '}, 'empty instruction: '),
    ({'cameras': ['base']}, 'stale camera: wrist_0_rgb is ')])
def test_what_is_broken_is_refused_and_the_node_goes_on(node, robot, saying, words):
    robot.until(lambda: robot.chunks)
    robot.forget()
    robot.until(lambda: any(reason.startswith(words) for reason in robot.reasons), **saying)
    robot.forget()  # Chunks of before the fault are gone now; the fault still stands.
    robot.until(lambda: len(robot.reasons) > 2, **saying)
    assert not robot.chunks
    kind = words.partition(':')[0]
    refused = dict(zip(robot.stats[-1].refusal_reasons, robot.stats[-1].refusal_counts,
                       strict=True))
    assert refused[kind] > 0 and robot.stats[-1].refused == sum(refused.values())
    robot.until(lambda: robot.chunks)
    assert robot.chunks[0].valid and node.running()


def test_parameters_change_while_it_runs(node, robot):
    robot.until(lambda: robot.chunks)
    done = ros2('param', 'set', '/policy_node', 'malformed', 'reject')
    assert done.returncode == 0, done.stdout + done.stderr
    robot.forget()
    robot.until(lambda: robot.chunks, timeout=60)
    assert not robot.chunks[-1].valid and len(robot.chunks[-1].actions) == 0
    assert robot.chunks[-1].reason.startswith('malformed: ')
    refused = ros2('param', 'set', '/policy_node', 'malformed', 'zeros')
    assert "found 'zeros', expected one of constrain, reject" in refused.stdout + refused.stderr
    for name, value in (('rate_hz', '1000.0'), ('checkpoint', '/elsewhere')):
        assert 'success' not in ros2('param', 'set', '/policy_node', name, value).stdout
    assert ros2('param', 'set', '/policy_node', 'malformed', 'constrain').returncode == 0
    robot.forget()
    robot.until(lambda: robot.chunks)
    assert robot.chunks[-1].valid


def test_deactivated_it_publishes_nothing(node, robot):
    robot.until(lambda: robot.chunks)
    assert ros2('lifecycle', 'set', '/policy_node', 'deactivate').returncode == 0
    robot.forget()
    said = itertools.count()
    robot.until(lambda: next(said) == 15)
    assert not robot.chunks and not robot.stats
    assert ros2('lifecycle', 'set', '/policy_node', 'activate').returncode == 0
    robot.until(lambda: robot.chunks)
    assert robot.chunks[0].valid and robot.chunks[0].sequence == 1


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_even_while_it_compiles(start, random_checkpoint, number):
    process = start('-r', '__node:=other_node', checkpoint=random_checkpoint)
    process.wait_for('compiling for prompts')
    assert process.stop(number) == 0, process.output


def test_a_bad_checkpoint_is_told_and_leaves_the_node_up(start, tmp_path):
    process = start('-r', '__node:=bad_node', checkpoint=tmp_path)
    process.wait_for('cannot configure: ')
    assert str(tmp_path) in process.output
    assert 'unconfigured' in ros2('lifecycle', 'get', '/bad_node').stdout
    again = ros2('lifecycle', 'set', '/bad_node', 'configure')
    assert again.returncode != 0 and process.running()
    assert process.stop() == 0


def test_it_ends_cleanly_while_it_serves(node):
    assert node.stop() == 0, node.output
    assert 'Traceback' not in node.output
