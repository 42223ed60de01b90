"""Parameters, in the node and over their services."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import rclpy
from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    ParameterEvent,
    SetParametersResult,
)
from rcl_interfaces.srv import (
    DescribeParameters,
    GetParameters,
    GetParameterTypes,
    ListParameters,
    SetParameters,
    SetParametersAtomically,
)
from rclpy.exceptions import (
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterAlreadyDeclaredException,
    ParameterImmutableException,
    ParameterNotDeclaredException,
    ParameterUninitializedException,
)
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.parameter import Parameter, get_parameter_value

DOMAIN = 1 + os.getpid() % 100


@pytest.fixture
def make() -> Iterator[Callable[..., Node]]:
    rclpy.init(args=[], domain_id=DOMAIN)
    made = []

    def create(name: str = 'tester', **options: object) -> Node:
        made.append(Node(name, **options))
        return made[-1]

    yield create
    for node in made:
        node.destroy_node()
    rclpy.try_shutdown()


def set_one(node: Node, name: str, value: object) -> SetParametersResult:
    return node.set_parameters([Parameter(name, value=value)])[0]


def test_declared_values_come_from_overrides_first(make):
    node = make(cli_args=['--ros-args', '-p', 'rate:=5.0', '-p', 'names:=[]', '-p', 'wrong:=x'])
    assert node.declare_parameter('rate', 10.0).value == 5.0
    assert node.declare_parameter('names', ['a']).value == []
    assert node.get_parameter('names').type_ is Parameter.Type.STRING_ARRAY
    assert node.declare_parameter('plain', 3).value == 3
    assert node.declare_parameter('ignoring', 1, ignore_override=True).value == 1
    with pytest.raises(InvalidParameterTypeException, match=r"wrong.*'x'.*INTEGER"):
        node.declare_parameter('wrong', 1)
    with pytest.raises(ParameterAlreadyDeclaredException, match='rate'):
        node.declare_parameter('rate', 1.0)
    with pytest.raises(ParameterNotDeclaredException, match='absent'):
        node.get_parameter('absent')


def test_a_type_without_a_default(make):
    node = make()
    node.declare_parameter('needed', Parameter.Type.STRING)
    with pytest.raises(ParameterUninitializedException, match='needed'):
        node.get_parameter('needed')
    assert not set_one(node, 'needed', 3).successful
    assert set_one(node, 'needed', 'x').successful
    assert node.get_parameter('needed').value == 'x'


def test_automatic_declaration_and_prefixes(make):
    node = make(automatically_declare_parameters_from_overrides=True,
                parameter_overrides=[Parameter('a.x', value=1), Parameter('a.y', value=2.0)])
    assert {n: p.value for n, p in node.get_parameters_by_prefix('a').items()} == {
        'x': 1, 'y': 2.0}
    assert node.get_parameter_or('b', Parameter('b', value=7)).value == 7


@pytest.mark.parametrize(('value', 'reason'), [
    (4, ''), (10, ''), (0, ''), (11, 'Max: 10'), (-1, 'Min: 0'), (3, 'step: 2'),
    (4.0, "expected 'Type.INTEGER'"), ('4', "got 'Type.STRING'"), (True, "got 'Type.BOOL'")])
def test_integer_ranges(make, value, reason):
    node = make()
    node.declare_parameter('k', 2, ParameterDescriptor(
        integer_range=[IntegerRange(from_value=0, to_value=10, step=2)]))
    result = set_one(node, 'k', value)
    assert result.successful is (not reason)
    assert reason in result.reason
    assert node.get_parameter('k').value == (2 if reason else value)


@pytest.mark.parametrize(('value', 'accepted'), [
    (0.1, True), (1.0, True), (0.30000000000000004, True), (0.35, False), (1.1, False),
    (float('nan'), False), (float('inf'), False)])
def test_floating_point_ranges(make, value, accepted):
    node = make()
    node.declare_parameter('k', 0.2, ParameterDescriptor(
        floating_point_range=[FloatingPointRange(from_value=0.1, to_value=1.0, step=0.1)]))
    assert set_one(node, 'k', value).successful is accepted


def test_a_default_out_of_range_is_refused(make):
    with pytest.raises(InvalidParameterValueException, match='Max: 1'):
        make().declare_parameter('k', 2, ParameterDescriptor(
            integer_range=[IntegerRange(from_value=0, to_value=1)]))


def test_read_only_and_undeclare(make):
    node = make()
    node.declare_parameter('fixed', 1, ParameterDescriptor(read_only=True))
    node.declare_parameter('free', 1)
    assert 'read-only' in set_one(node, 'fixed', 2).reason
    with pytest.raises(ParameterImmutableException):
        node.undeclare_parameter('fixed')
    node.undeclare_parameter('free')
    with pytest.raises(ParameterNotDeclaredException):
        set_one(node, 'free', 1)


def test_callbacks_refuse_adjust_and_notice(make):
    node = make()
    for name in ('a', 'b'):
        node.declare_parameter(name, 1)
    noticed: list[str] = []

    def refuse_nine(parameters: list[Parameter]) -> SetParametersResult:
        nines = [p.name for p in parameters if p.value == 9]
        return SetParametersResult(successful=not nines, reason=f'nine: {nines}')

    node.add_on_set_parameters_callback(refuse_nine)
    node.add_post_set_parameters_callback(lambda ps: noticed.extend(p.name for p in ps))
    result = node.set_parameters_atomically([Parameter('a', value=2), Parameter('b', value=9)])
    assert not result.successful and result.reason == "nine: ['b']"
    assert (node.get_parameter('a').value, noticed) == (1, [])
    results = node.set_parameters([Parameter('a', value=2), Parameter('b', value=9)])
    assert [r.successful for r in results] == [True, False]
    assert (node.get_parameter('a').value, noticed) == (2, ['a'])
    node.add_pre_set_parameters_callback(
        lambda ps: [*ps, Parameter('b', value=5)] if ps[0].name == 'a' else ps)
    assert set_one(node, 'a', 3).successful
    assert node.get_parameter('b').value == 5
    node.remove_on_set_parameters_callback(refuse_nine)
    assert set_one(node, 'b', 9).successful


def test_values_from_text():
    assert get_parameter_value('1.5').double_value == 1.5
    assert get_parameter_value('[a, b]').string_array_value == ['a', 'b']
    assert get_parameter_value('[1, a]').string_value == '[1, a]'
    assert get_parameter_value('').string_value == ''


def test_the_services_of_another_process(make, tmp_path):
    file = tmp_path / 'p.yaml'
    file.write_text('/**:\n  ros__parameters: {rate: 2.0}\n/other/arm:\n  ros__parameters: '
                    '{group: {deep: 7}}\n')
    process = subprocess.Popen(
        [sys.executable, __file__, '--ros-args', '-r', '__ns:=/other', '-r', '__node:=arm',
         '--params-file', str(file), '-p', 'rate:=3.0'],
        env={**os.environ, 'ROS_DOMAIN_ID': str(DOMAIN)})
    try:
        _check_services(make())
    finally:
        process.terminate()
    assert process.wait(timeout=15) == 0


def _check_services(node: Node) -> None:
    events: list[ParameterEvent] = []
    node.create_subscription(ParameterEvent, '/parameter_events', events.append, 10)

    def call(kind: type, name: str, **fields: object) -> object:
        client = node.create_client(kind, f'/other/arm/{name}')
        assert client.wait_for_service(timeout_sec=15)
        future = client.call_async(kind.Request(**fields))
        rclpy.spin_until_future_complete(node, future, timeout_sec=15)
        node.destroy_client(client)
        return future.result()

    names = ['rate', 'group.deep', 'fixed']
    listed = call(ListParameters, 'list_parameters').result
    assert set(names) <= set(listed.names) and listed.prefixes == ['group']
    assert call(ListParameters, 'list_parameters', prefixes=['group']).result.names == [
        'group.deep']
    assert 'group.deep' not in call(ListParameters, 'list_parameters', depth=1).result.names
    values = call(GetParameters, 'get_parameters', names=names).values
    assert (values[0].double_value, values[1].integer_value) == (3.0, 7)
    assert call(GetParameters, 'get_parameters', names=['rate', 'absent']).values == []
    assert list(call(GetParameterTypes, 'get_parameter_types', names=names).types) == [3, 2, 4]
    [described] = call(DescribeParameters, 'describe_parameters', names=['rate']).descriptors
    assert (described.name, described.type, described.description) == ('rate', 3, 'in hertz')
    assert described.floating_point_range[0].to_value == 50.0

    def parameter(name: str, value: object) -> object:
        return Parameter(name, value=value).to_parameter_msg()

    results = call(SetParameters, 'set_parameters', parameters=[
        parameter('rate', 20.0), parameter('rate', 99.0), parameter('fixed', 'y'),
        parameter('absent', 1), parameter('rate', 1)]).results
    assert [r.successful for r in results] == [True, False, False, False, False]
    for result, word in zip(results[1:], ['99', 'fixed', 'absent', 'INTEGER'], strict=True):
        assert word in result.reason
    result = call(SetParametersAtomically, 'set_parameters_atomically', parameters=[
        parameter('rate', 30.0), parameter('fixed', 'y')]).result
    assert not result.successful
    assert call(GetParameters, 'get_parameters', names=['rate']).values[0].double_value == 20.0
    end = time.monotonic() + 10
    while not events and time.monotonic() < end:
        rclpy.spin_once(node, timeout_sec=0.1)
    changed = [p for e in events if e.node == '/other/arm' for p in e.changed_parameters]
    assert [(p.name, p.value.double_value) for p in changed] == [('rate', 20.0)]


def main() -> None:
    rclpy.init()
    node = Node(Path(__file__).stem)
    node.declare_parameter('rate', 1.0, ParameterDescriptor(
        description='in hertz',
        floating_point_range=[FloatingPointRange(from_value=0.1, to_value=50.0)]))
    node.declare_parameter('group.deep', 1)
    node.declare_parameter('fixed', 'x', ParameterDescriptor(read_only=True))
    try:
        rclpy.spin(node)
    except ExternalShutdownException:
        node.destroy_node()


if __name__ == '__main__':
    main()
