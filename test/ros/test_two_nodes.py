"""Two policy nodes on one machine, each in a namespace: neither notices the other."""

import itertools
import signal

import pytest
import rclpy

NAMES = ('left', 'right')


@pytest.fixture
def robots(context):
    from robot import Robot
    nodes = {name: Robot(namespace=name) for name in NAMES}
    yield nodes
    for node in nodes.values():
        node.destroy_node()


def let_both_live(robots, count, **saying):
    said = itertools.count()
    robots['left'].until(lambda: next(said) == count, **saying)
    for _ in range(100):
        rclpy.spin_once(robots['right'], timeout_sec=0.0)


def test_neither_notices_the_other(start, robots, random_checkpoint, profile_file, tmp_path):
    nodes = {name: start('-r', f'__ns:=/{name}', checkpoint=random_checkpoint, rate_hz=20.0,
                         robot_profile=profile_file, compilation_cache=tmp_path / 'cache')
             for name in NAMES}
    for node in nodes.values():
        node.wait_for('active: ')
    left, right = robots['left'], robots['right']
    left.until(lambda: left.chunks)
    let_both_live(robots, 10)
    assert left.chunks[-1].valid and not right.chunks
    assert {reason.partition(':')[0] for reason in right.reasons} == {'missing camera'}
    right.until(lambda: right.chunks, instruction='push the blue cube')
    assert right.chunks[-1].instruction == 'push the blue cube'
    assert {chunk.instruction for chunk in left.chunks} == {'touch the red cube'}
    # A parameter of one is none of the other.
    assert not left.set_parameter('dry_run', True)
    left.forget()
    right.forget()
    left.until(lambda: left.of_state('inference'))
    right.until(lambda: right.of_state('inference'))
    assert left.of_state('inference')[-1].dry_run and not left.chunks
    assert not right.of_state('inference')[-1].dry_run and right.chunks
    # Nor is its end.
    nodes['left'].stop(signal.SIGKILL)
    right.forget()
    right.until(lambda: right.chunks)
    assert right.chunks[-1].valid
    assert nodes['right'].stop() == 0, nodes['right'].output
