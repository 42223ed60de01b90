"""Sets a node's clock from /clock where `use_sim_time` says so."""

from typing import TYPE_CHECKING

from rcl_interfaces.msg import SetParametersResult
from rosgraph_msgs.msg import Clock as ClockMessage

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.time import Time

if TYPE_CHECKING:
    from rclpy.node import Node

CLOCK_TOPIC = '/clock'
USE_SIM_TIME = 'use_sim_time'


class TimeSource:
    """Follows the parameter `use_sim_time` of a node."""

    def __init__(self, node: 'Node') -> None:
        self._node = node
        self._subscription = None
        if not node.has_parameter(USE_SIM_TIME):
            node.declare_parameter(USE_SIM_TIME, False)
        self.ros_time_is_active = node.get_parameter(USE_SIM_TIME).value is True
        node.add_on_set_parameters_callback(self._check)
        node.add_post_set_parameters_callback(self._follow)

    @property
    def ros_time_is_active(self) -> bool:
        """Whether /clock sets the node's clock."""
        return self._subscription is not None

    @ros_time_is_active.setter
    def ros_time_is_active(self, enabled: bool) -> None:
        if enabled and self._subscription is None:
            self._subscription = self._node.create_subscription(
                ClockMessage, CLOCK_TOPIC, self._set_time,
                QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT),
                callback_group=ReentrantCallbackGroup())
        elif not enabled and self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None
        self._node.get_clock()._set_ros_time_is_active(enabled)

    def detach(self) -> None:
        """Follow the parameter no more."""
        self._node.remove_on_set_parameters_callback(self._check)
        self._node.remove_post_set_parameters_callback(self._follow)

    def _check(self, parameters: list[Parameter]) -> SetParametersResult:
        wrong = any(p.name == USE_SIM_TIME and p.type_ is not Parameter.Type.BOOL
                    for p in parameters)
        return SetParametersResult(
            successful=not wrong, reason=f'{USE_SIM_TIME} must be a bool' if wrong else '')

    def _follow(self, parameters: list[Parameter]) -> None:
        for parameter in parameters:
            if parameter.name == USE_SIM_TIME:
                self.ros_time_is_active = parameter.value

    def _set_time(self, message: ClockMessage) -> None:
        self._node.get_clock().set_ros_time_override(Time.from_msg(message.clock))
