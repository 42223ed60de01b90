"""Lifecycle nodes, in the process and over their services."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import rclpy
from lifecycle_msgs.msg import Transition, TransitionEvent
from lifecycle_msgs.srv import (
    ChangeState,
    GetAvailableStates,
    GetAvailableTransitions,
    GetState,
)
from rclpy._rclpy_pybind11 import RCLError
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.publisher import Publisher
from std_msgs.msg import String

DOMAIN = 1 + os.getpid() % 100
SUCCESS, FAILURE, ERROR = (TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE,
                           TransitionCallbackReturn.ERROR)


class Managed(LifecycleNode):
    """Does in transitions what it is told to."""

    def __init__(self, name: str = 'managed', **options: object) -> None:
        self.results: dict[str, object] = {}
        self.calls: list[tuple[str, str]] = []
        super().__init__(name, **options)
        self.publisher = self.create_lifecycle_publisher(String, 'out', 10)

    def _do(self, name: str, state: LifecycleState) -> object:
        self.calls.append((name, state.label))
        result = self.results.get(name, SUCCESS)
        if isinstance(result, Exception):
            raise result
        return getattr(super(), name)(state) if result is SUCCESS else result

    def on_configure(self, state: LifecycleState) -> object:
        return self._do('on_configure', state)

    def on_activate(self, state: LifecycleState) -> object:
        return self._do('on_activate', state)

    def on_deactivate(self, state: LifecycleState) -> object:
        return self._do('on_deactivate', state)

    def on_cleanup(self, state: LifecycleState) -> object:
        return self._do('on_cleanup', state)

    def on_shutdown(self, state: LifecycleState) -> object:
        return self._do('on_shutdown', state)

    def on_error(self, state: LifecycleState) -> object:
        return self._do('on_error', state)

    @property
    def state(self) -> str:
        return self._state_machine.current_state[1]


@pytest.fixture
def node() -> Iterator[Managed]:
    rclpy.init(args=[], domain_id=DOMAIN)
    made = Managed()
    yield made
    made.destroy_node()
    rclpy.try_shutdown()


def test_the_way_up_and_down(node):
    assert node.state == 'unconfigured'
    for trigger, state in ((node.trigger_configure, 'inactive'), (node.trigger_activate, 'active'),
                           (node.trigger_deactivate, 'inactive'),
                           (node.trigger_cleanup, 'unconfigured'),
                           (node.trigger_shutdown, 'finalized')):
        assert trigger() is SUCCESS
        assert node.state == state
    assert node.calls == [
        ('on_configure', 'unconfigured'), ('on_activate', 'inactive'),
        ('on_deactivate', 'active'), ('on_cleanup', 'inactive'), ('on_shutdown', 'unconfigured')]


def test_what_a_state_does_not_allow(node):
    with pytest.raises(RCLError, match=r"'unconfigured'.*configure, shutdown"):
        node.trigger_activate()
    node.trigger_shutdown()
    with pytest.raises(RCLError, match='finalized'):
        node.trigger_configure()


@pytest.mark.parametrize(('result', 'recovery', 'state'), [
    (FAILURE, SUCCESS, 'unconfigured'), (ERROR, SUCCESS, 'unconfigured'),
    (ERROR, FAILURE, 'finalized'), (ERROR, ERROR, 'finalized'),
    (OSError('no such checkpoint'), SUCCESS, 'unconfigured'),
    (OSError('no such checkpoint'), ValueError('worse'), 'finalized')])
def test_failures_and_errors_of_configure(node, capfd, result, recovery, state):
    node.results = {'on_configure': result, 'on_error': recovery}
    assert node.trigger_configure() is (FAILURE if result is FAILURE else ERROR)
    assert node.state == state
    if isinstance(result, Exception):
        assert 'no such checkpoint' in capfd.readouterr().err
    if state == 'unconfigured':
        node.results = {}
        assert node.trigger_configure() is SUCCESS


def test_a_lifecycle_publisher_is_silent_unless_active(node):
    heard: list[str] = []
    node.create_subscription(String, 'out', lambda m: heard.append(m.data), 10)
    for trigger, text in ((None, 'a'), (node.trigger_configure, 'b'), (node.trigger_activate, 'c'),
                          (node.trigger_deactivate, 'd')):
        if trigger is not None:
            trigger()
        while not node.publisher.get_subscription_count():
            time.sleep(0.01)
        node.publisher.publish(String(data=text))
    Publisher.publish(node.publisher, String(data='end'))  # by the same writer: it comes last
    end = time.monotonic() + 15
    while 'end' not in heard and time.monotonic() < end:
        rclpy.spin_once(node, timeout_sec=0.1)
    assert heard == ['c', 'end']


def test_the_services_of_another_process():
    process = subprocess.Popen([sys.executable, __file__],
                               env={**os.environ, 'ROS_DOMAIN_ID': str(DOMAIN)})
    rclpy.init(args=[], domain_id=DOMAIN)
    node = Node('tester')
    try:
        _check_services(node)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
        process.terminate()
    assert process.wait(timeout=15) == 0


def _check_services(node: Node) -> None:
    events: list[tuple[str, str]] = []
    node.create_subscription(
        TransitionEvent, '/managed/transition_event',
        lambda e: events.append((e.start_state.label, e.goal_state.label)), 10)

    def call(kind: type, name: str, **fields: object) -> object:
        client = node.create_client(kind, f'/managed/{name}')
        assert client.wait_for_service(timeout_sec=15)
        future = client.call_async(kind.Request(**fields))
        rclpy.spin_until_future_complete(node, future, timeout_sec=15)
        node.destroy_client(client)
        return future.result()

    def state() -> str:
        return call(GetState, 'get_state').current_state.label

    assert state() == 'unconfigured'
    assert len(call(GetAvailableStates, 'get_available_states').available_states) == 11
    available = call(GetAvailableTransitions, 'get_available_transitions').available_transitions
    assert [(d.transition.id, d.transition.label, d.goal_state.label) for d in available] == [
        (1, 'configure', 'configuring'), (5, 'shutdown', 'shuttingdown')]
    graph = call(GetAvailableTransitions, 'get_transition_graph').available_transitions
    assert len(graph) == 25
    assert not call(ChangeState, 'change_state', transition=Transition(id=3)).success
    assert call(ChangeState, 'change_state', transition=Transition(id=1)).success
    assert call(ChangeState, 'change_state', transition=Transition(label='activate')).success
    assert not call(ChangeState, 'change_state', transition=Transition(label='fly')).success
    assert state() == 'active'
    end = time.monotonic() + 10
    while len(events) < 4 and time.monotonic() < end:
        rclpy.spin_once(node, timeout_sec=0.1)
    assert events == [('unconfigured', 'configuring'), ('configuring', 'inactive'),
                      ('inactive', 'activating'), ('activating', 'active')]


def main() -> None:
    rclpy.init()
    node = Managed()
    try:
        rclpy.spin(node)
    except ExternalShutdownException:
        node.destroy_node()


if __name__ == '__main__':
    main()
