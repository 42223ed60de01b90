"""The /rosout publisher of a node."""

from typing import TYPE_CHECKING

from builtin_interfaces.msg import Time
from rcl_interfaces.msg import Log

from rclpy.logging import LoggingSeverity, add_rosout, remove_rosout
from rclpy.qos import qos_profile_rosout_default

if TYPE_CHECKING:
    from rclpy.node import Node


class Rosout:
    """Publishes what a node's logger says."""

    def __init__(self, node: 'Node') -> None:
        self._context = node.context
        self._logger_name = node.get_logger().name
        self._publisher = node.create_publisher(Log, '/rosout', qos_profile_rosout_default)
        self._sink = self._publish  # one bound method, so that it can be found again
        add_rosout(self._logger_name, self._sink)

    def close(self) -> None:
        """Publish no more; the node destroys the publisher."""
        remove_rosout(self._logger_name, self._sink)

    def _publish(self, severity: LoggingSeverity, name: str, message: str, where: dict) -> None:
        if self._context.ok():
            seconds, rest = divmod(where['stamp'], 10**9)
            self._publisher.publish(Log(
                stamp=Time(sec=seconds, nanosec=rest), level=int(severity), name=name, msg=message,
                file=where['file'], function=where['function'], line=where['line']))
