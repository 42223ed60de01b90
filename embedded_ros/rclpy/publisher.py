"""Publishers."""

import time
from typing import TYPE_CHECKING

from cyclonedds.core import DDSException
from embedded_ros.dds.names import dds_type_name, topic_name
from embedded_ros.typestore import serialize

from rclpy._qos_mapping import policies
from rclpy._rclpy_pybind11 import RCLError
from rclpy._user_data import user_data
from rclpy.duration import Duration, Infinite
from rclpy.exceptions import InvalidHandle
from rclpy.logging import get_logger
from rclpy.qos import QoSProfile

if TYPE_CHECKING:
    from rclpy.node import Node

WARN_PERIOD = 5.0  # seconds between warnings of one publisher
ACK_POLL_NS = 50_000_000  # how often a wait for acknowledgements looks at the context


class Publisher:
    """Publishes messages of one type on one topic; made by `Node.create_publisher`."""

    def __init__(self, node: 'Node', msg_type: type, topic: str, qos_profile: QoSProfile) -> None:
        self.msg_type = msg_type
        self.qos_profile = qos_profile
        self.topic_name = topic
        self.logger_name = node.get_logger().name
        self._context = node.context
        self._participant = node.context.participant
        dds_type = dds_type_name(msg_type.ros_type_name)
        self._writer = self._participant.create_writer(
            topic_name(topic), dds_type, policies(qos_profile, user_data(msg_type.ros_type_name)))
        self.guids = ((), (self._writer.guid.bytes,))  # readers, writers

    @property
    def topic(self) -> str:
        """The topic's full name."""
        return self.topic_name

    def publish(self, msg: object) -> None:
        """Send a message, or CDR that is ready (bytes).

        A message is dropped, with a warning, when a reliable subscription keeps the publisher
        waiting for longer than a second. Raises TypeError for a message of another type, RCLError
        after the context's end, InvalidHandle after that of the publisher.
        """
        if isinstance(msg, self.msg_type):
            data = bytes(serialize(msg))
        elif isinstance(msg, bytes):
            data = msg
        else:
            raise TypeError(f'Expected {self.msg_type.ros_type_name}, got {type(msg).__name__}')
        writer = self._writer
        if writer is None:
            raise InvalidHandle(f'the publisher of {self.topic_name} is destroyed')
        if not self._context.ok():
            raise RCLError(f"Failed to publish on {self.topic_name}: the publisher's context is "
                           'not valid (shut down)')
        try:
            writer.write_raw(data)
        except DDSException as error:
            if error.code != DDSException.DDS_RETCODE_TIMEOUT:
                raise RCLError(f'Failed to publish on {self.topic_name}: {error}') from error
            get_logger(self.logger_name).warning(
                f'dropped a message on {self.topic_name}: a reliable subscription does not keep '
                'up', throttle_duration_sec=WARN_PERIOD)

    def get_subscription_count(self) -> int:
        """Return how many subscriptions receive from this publisher."""
        return 0 if self._writer is None else len(self._writer.get_matched_subscriptions())

    def wait_for_all_acked(self, timeout: Duration = Infinite) -> bool:
        """Wait until all reliable subscriptions have everything; False when it takes too long."""
        end = time.monotonic_ns() + timeout.nanoseconds
        while self._writer is not None and self._context.ok():
            left = max(0, min(ACK_POLL_NS, end - time.monotonic_ns()))
            code = self._writer._wait_for_acks(self._writer._ref, left)
            if code == DDSException.DDS_RETCODE_OK:
                return True
            if code != DDSException.DDS_RETCODE_TIMEOUT or time.monotonic_ns() >= end:
                return False
        return False

    def assert_liveliness(self) -> None:
        """Say that this publisher is alive (for LivelinessPolicy.MANUAL_BY_TOPIC)."""
        self._writer.assert_liveliness()

    def destroy(self) -> None:
        """Stop publishing for good."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._participant.delete_writer(writer)

    def __enter__(self) -> 'Publisher':
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()
