"""What the command chooses and computes without a second process."""

import argparse
import os
from collections.abc import Iterator

import pytest
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from ros2cli.errors import did_you_mean
from ros2cli.graph import command_node
from ros2cli.param_values import parse_value, plain_value
from ros2cli.qos import add_qos_arguments, describe_qos, given_qos, matching_qos
from ros2cli.topic_hz import Rate
from std_msgs.msg import String

RELIABLE = QoSProfile(depth=3)
SENSOR = QoSProfile(depth=3, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(depth=3, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setenv('ROS_DOMAIN_ID', str(100 + os.getpid() % 100))
    with command_node() as node:
        yield node


@pytest.mark.parametrize(('offered', 'reliability', 'durability', 'said'), [
    ((RELIABLE, RELIABLE), 'RELIABLE', 'VOLATILE', []),
    ((SENSOR,), 'BEST_EFFORT', 'VOLATILE', []),
    ((LATCHED, LATCHED), 'RELIABLE', 'TRANSIENT_LOCAL', []),
    ((RELIABLE, SENSOR), 'BEST_EFFORT', 'VOLATILE', ['BEST_EFFORT']),
    ((RELIABLE, LATCHED), 'RELIABLE', 'VOLATILE', ['VOLATILE']),
    ((), 'BEST_EFFORT', 'VOLATILE', []),
])
def test_subscriptions_fit_all_publishers(node: Node, capsys, offered, reliability, durability,
                                          said) -> None:
    for qos in offered:
        node.create_publisher(String, '/topic', qos)
    chosen = matching_qos(node, '/topic')
    assert (chosen.reliability.name, chosen.durability.name) == (reliability, durability)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(said)
    for line, fallback in zip(lines, said, strict=True):
        assert line.startswith('Some, but not all, publishers are offering ')
        assert f'Policy.{fallback} as it will connect to all publishers' in line


def test_qos_options() -> None:
    parser = argparse.ArgumentParser()
    add_qos_arguments(parser, 'sensor_data')
    assert given_qos(parser.parse_args([]), 'sensor_data') is None
    qos = given_qos(parser.parse_args(['--qos-depth', '2', '--qos-durability', 'transient_local']),
                    'sensor_data')
    assert (qos.depth, qos.reliability, qos.durability) == (
        2, ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.TRANSIENT_LOCAL)
    qos = given_qos(parser.parse_args(['--qos-profile', 'default', '--qos-history', 'keep_all']),
                    'sensor_data')
    assert (qos.reliability, qos.history) == (ReliabilityPolicy.RELIABLE, HistoryPolicy.KEEP_ALL)
    assert '  History (Depth): KEEP_ALL\n' in describe_qos(qos)
    assert '  History (Depth): KEEP_LAST (3)\n' in describe_qos(SENSOR)


def test_rate() -> None:
    rate = Rate(window=3)
    rate.arrived(0.0)
    assert rate.report() is None
    for now in (9.0, 9.1, 9.3, 9.6):  # the first interval leaves the window
        rate.arrived(now)
    assert rate.report() == ('average rate: 5.000\n'
                             '\tmin: 0.100s max: 0.300s std dev: 0.08165s window: 3')


@pytest.mark.parametrize(('text', 'value'), [
    ('1', 1), ('1.0', 1.0), ('true', True), ('on', True), ('text', 'text'), ("'1'", '1'),
    ('[1, 2]', [1, 2]), ('[1.5, 2.5]', [1.5, 2.5]), ('[a, b]', ['a', 'b']), ('[]', []),
    ('[1, a]', '[1, a]'), ('{a: 1}', '{a: 1}'), ('2024-01-01', '2024-01-01'), ('[', '['),
    ('', ''), ('-3', -3),
])
def test_parameter_values(text: str, value: object) -> None:
    plain = plain_value(parse_value(text))
    assert plain == value
    assert type(plain) is type(value)


@pytest.mark.parametrize(('name', 'found'), [
    ('/stats', '\nDid you mean: /pi0/stats?'), ('/pi0/stat', '\nDid you mean: /pi0/stats?'),
    ('/nothing_like_it', ''),
])
def test_near_names(name: str, found: str) -> None:
    assert did_you_mean(name, ['/pi0/stats', '/chatter', '/chatter']) == found
