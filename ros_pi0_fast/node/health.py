"""A heartbeat, and what `ros2 topic echo /diagnostics` and rqt_robot_monitor show. Always."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from std_msgs.msg import String

HEARTBEAT_S = 0.5
DIAGNOSTICS_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Condition:
    """How the node is."""

    state: str
    """Of the lifecycle: 'active', or 'configuring' on the way to one."""
    problem: str = ''
    """What somebody should know; empty: nothing."""
    failed: bool = False
    """The problem is one that does not pass by itself."""
    hardware: str = ''
    """The robot."""
    values: Mapping[str, object] = field(default_factory=dict)


class Health:
    """Publishes in every state, from construction on, by a clock that simulated time cannot stop.

    Args:
        node: Publishes.
        condition: Called for each message.
    """

    def __init__(self, node: Node, condition: Callable[[], Condition]):
        self._node, self._condition = node, condition
        self._heartbeat = node.create_publisher(String, '~/heartbeat', 1)
        self._diagnostics = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        group, clock = MutuallyExclusiveCallbackGroup(), Clock(clock_type=ClockType.STEADY_TIME)
        for period_s, callback in ((HEARTBEAT_S, self._beat), (DIAGNOSTICS_S, self._diagnose)):
            node.create_timer(period_s, callback, callback_group=group, clock=clock)

    def _beat(self) -> None:
        self._heartbeat.publish(String(data=self._condition().state))

    def _diagnose(self) -> None:
        condition = self._condition()
        level = DiagnosticStatus.OK
        if condition.problem:
            level = DiagnosticStatus.ERROR if condition.failed else DiagnosticStatus.WARN
        message = DiagnosticArray(status=[DiagnosticStatus(
            level=level, name=f'{self._node.get_fully_qualified_name()}: policy',
            message=condition.problem or condition.state, hardware_id=condition.hardware,
            values=[KeyValue(key=key, value=_text(value)) for key, value in {
                'state': condition.state, **condition.values}.items()])])
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._diagnostics.publish(message)


def _text(value: object) -> str:
    return f'{value:.2f}' if isinstance(value, float) else str(value)
