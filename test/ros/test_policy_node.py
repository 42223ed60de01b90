"""The policy node end to end: real processes over real DDS."""

import itertools
import math
import re
import signal
import struct
import zlib

import numpy as np
import pytest

from ros_pi0_fast.types import InferenceStats


@pytest.fixture(scope='module')
def node(start, random_checkpoint, profile_file):
    process = start(checkpoint=random_checkpoint, robot_profile=profile_file, rate_hz=20.0)
    process.wait_for('active: ')
    return process


def png_that_claims(width, height):
    """Build a PNG of a few bytes whose header claims a picture of any size."""
    chunks = (b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0),
              b'IDAT' + zlib.compress(bytes(100)), b'IEND')
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(chunk) - 4) + chunk + struct.pack('>I', zlib.crc32(chunk))
        for chunk in chunks)


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
    stats = robot.of_state('inference')[-1]
    assert stats.chunks_valid == stats.chunks_published > 0
    assert stats.target_passes > 0 and stats.prefix_tokens > stats.prompt_tokens > 0


@pytest.mark.parametrize(('saying', 'words'), [
    ({'encoding': 'yuv422'}, "bad image: base_0_rgb: encoding: found 'yuv422', expected one of"),
    ({'data': b'too short'}, 'bad image: base_0_rgb: data: found 9 bytes, expected 12288'),
    ({'height': 0}, 'bad image: base_0_rgb: height x width: found 0 x 64'),
    ({'wrist': b'no picture'}, "bad image: wrist_0_rgb: data: found 10 bytes of format 'png'"),
    ({'wrist': png_that_claims(100_000, 100_000)},
     'bad image: wrist_0_rgb: data: found a picture too large to be opened'),
    ({'joints': {'position': [1.0]}}, 'bad joint state: found 1 positions for 5 names'),
    ({'joints': {'position': [0.0, float('nan'), 0.0, 0.0, 0.0]}},
     'bad joint state: shoulder is nan'),
    ({'instruction': '  '}, 'empty instruction: '),
    ({'instruction': 'touch ' * 200}, 'bad observation: instruction: the prompt has '),
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


def test_a_failed_inference_is_told_without_actions_and_the_node_goes_on(node, robot):
    """The engine cannot fit a picture of one row into a square."""
    robot.until(lambda: robot.chunks)
    robot.forget()
    robot.until(lambda: robot.of_state('failed'), height=1, width=4000, step=12_000,
                data=bytes(12_000))
    assert robot.of_state('failed')[-1].reason.startswith('inference failed: ValueError: image: ')
    robot.until(lambda: any(not chunk.valid for chunk in robot.chunks), height=1, width=4000,
                step=12_000, data=bytes(12_000))
    told = next(chunk for chunk in robot.chunks if not chunk.valid)
    assert told.reason.startswith('inference failed: ')
    assert told.horizon == 0 and len(told.actions) == 0
    assert told.total_ms == InferenceStats().total_ms
    robot.forget()
    robot.until(lambda: robot.chunks)
    assert robot.chunks[0].valid and node.running()


def test_an_instruction_taken_back_is_answered_no_more(node, robot):
    robot.until(lambda: robot.chunks)
    robot.forget()
    robot.until(lambda: robot.reasons, instruction='')
    robot.forget()
    robot.until(lambda: len(robot.reasons) > 5, instruction=None)
    assert not robot.chunks
    assert robot.reasons[-1].startswith('no instruction: ')


def test_malformed_changes_while_it_runs(node, robot):
    robot.until(lambda: robot.chunks)
    assert not robot.set_parameter('malformed', 'reject')
    robot.until(lambda: not robot.chunks[-1].valid, timeout=60)  # Compiled meanwhile.
    assert len(robot.chunks[-1].actions) == 0
    assert robot.chunks[-1].reason.startswith('malformed: ')
    assert not robot.set_parameter('malformed', 'constrain')
    robot.forget()
    robot.until(lambda: robot.chunks)
    assert robot.chunks[-1].valid


def test_the_rate_changes_while_it_runs(node, robot):
    def chunks_of_two_seconds():
        robot.forget()
        said = itertools.count()
        robot.until(lambda: next(said) == 20)
        return len(robot.chunks)

    assert not robot.set_parameter('rate_hz', 0.5)
    assert chunks_of_two_seconds() <= 2
    assert not robot.set_parameter('rate_hz', 20.0)
    assert chunks_of_two_seconds() > 2


def values_of(declaration):
    """Return values that a parameter must take, and values that it must refuse."""
    default, low, high = declaration.default, declaration.low, declaration.high
    if declaration.choices:
        return [*declaration.choices, default], ['no such choice', '', True, [default]]
    if isinstance(default, bool):
        return [not default, default], ['true', 1, 1.0]
    if isinstance(default, str):
        return ['$(exit 3)', default], [True, 1.5, [default]]
    beyond = [high * 2, low - 1, *([math.nan, math.inf] if isinstance(default, float) else [])]
    return [low, high, default], [*beyond, str(default), [default]]


def test_every_parameter_takes_what_is_declared_and_says_why_not(node, robot):
    """Made from the declarations: what is in range is taken while chunks go on, the rest is not.
    """
    from ros_pi0_fast.engine.variant import NEEDS, Variant, parameter_of
    from ros_pi0_fast.node.parameters import DECLARATIONS
    needed = {parameter_of(needed) for name, needed in NEEDS.items() if Variant().is_on(name)}
    refused_by_checkpoint = {('speculative.drafter', 'head'), ('speculative.drafter', 'ngram')}
    for declaration in DECLARATIONS:
        name = declaration.name
        valid, wrong = values_of(declaration)
        if declaration.read_only or declaration.at_configure:
            valid, wrong = [], valid + wrong
        for value in valid:
            reason = robot.set_parameter(name, value)
            if name in needed and value is False:
                assert re.match(rf'[\w.]+: .*, expected {name} to be true with it', reason)
            elif reason:
                assert (name, value) in {('speculative.enabled', True), *refused_by_checkpoint}
                assert 'speculative.drafter: head, expected one that the checkpoint has' in reason
        for value in wrong:
            reason = robot.set_parameter(name, value)
            assert name in reason or 'Wrong parameter type' in reason, (name, value, reason)
    assert not robot.set_parameter('rate_hz', 20.0)
    robot.forget()
    robot.until(lambda: robot.chunks and robot.chunks[-1].variant == 'default', timeout=90)
    assert robot.chunks[-1].valid and node.running()


def test_the_command_line_sets_and_explains(node, ros2):
    done = ros2('param', 'set', '/policy_node', 'max_camera_skew_s', '0.3')
    assert done.returncode == 0, done.stdout + done.stderr
    refused = ros2('param', 'set', '/policy_node', 'malformed', 'zeros')
    assert "found 'zeros', expected one of constrain, reject" in refused.stdout + refused.stderr


def test_deactivated_it_publishes_nothing_and_forgets_what_it_saw(node, robot, ros2):
    robot.until(lambda: robot.chunks)
    assert ros2('lifecycle', 'set', '/policy_node', 'deactivate').returncode == 0
    robot.forget()
    said = itertools.count()
    robot.until(lambda: next(said) == 15)
    assert not robot.chunks and not robot.stats
    assert ros2('lifecycle', 'set', '/policy_node', 'activate').returncode == 0
    robot.until(lambda: robot.reasons, cameras=['base'])
    missing = 'missing camera: nothing for wrist_0_rgb on image/wrist yet'
    robot.until(lambda: missing in robot.reasons, cameras=['base'])
    assert not robot.chunks
    robot.until(lambda: robot.chunks)
    assert robot.chunks[0].valid and robot.chunks[0].sequence == 1


def test_a_configuration_that_fails_can_be_put_right(node, robot, ros2, random_checkpoint,
                                                     tmp_path):
    def follow(transition):
        return ros2('lifecycle', 'set', '/policy_node', transition, timeout=90).returncode == 0

    assert follow('deactivate') and follow('cleanup'), node.output
    assert not robot.set_parameter('checkpoint', str(tmp_path))
    assert not follow('configure')
    assert 'cannot configure: ' in node.output and str(tmp_path) in node.output
    assert 'unconfigured' in ros2('lifecycle', 'get', '/policy_node').stdout
    assert not robot.set_parameter('checkpoint', str(random_checkpoint))
    assert follow('configure') and follow('activate'), node.output
    assert 'read when the node is configured' in robot.set_parameter('checkpoint', str(tmp_path))
    robot.forget()
    robot.until(lambda: robot.chunks)
    assert robot.chunks[0].valid


def test_it_ends_cleanly_while_it_serves(node, robot):
    robot.until(lambda: robot.chunks)
    assert node.stop(signal.SIGTERM) == 0, node.output
    assert 'Traceback' not in node.output
