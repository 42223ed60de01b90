"""Subscriptions."""

import inspect
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from embedded_ros.dds.names import dds_type_name, topic_name
from embedded_ros.dds.payload import raw_bytes
from embedded_ros.typestore import deserialize

from rclpy._qos_mapping import policies
from rclpy._user_data import user_data
from rclpy.callback_groups import CallbackGroup
from rclpy.qos import HistoryPolicy, QoSProfile

if TYPE_CHECKING:
    from rclpy.node import Node


class MessageInfo(dict):
    """What is known of a message: `source_timestamp` in nanoseconds."""


class Subscription:
    """Receives the messages of one topic; made by `Node.create_subscription`."""

    class CallbackType(Enum):
        """Which arguments the callback takes."""

        MessageOnly = 0
        WithMessageInfo = 1

    def __init__(self, node: 'Node', msg_type: type, topic: str, callback: Callable,
                 callback_group: CallbackGroup, qos_profile: QoSProfile, raw: bool) -> None:
        self.msg_type = msg_type
        self.topic_name = topic
        self.callback = callback
        self.callback_group = callback_group
        self.qos_profile = qos_profile
        self.raw = raw
        self._callback_type = _callback_type(callback)
        self._wake = node._wake
        self._participant = node.context.participant
        keep_all = qos_profile.history is HistoryPolicy.KEEP_ALL
        self._queue: deque = deque(maxlen=None if keep_all else max(1, qos_profile.depth))
        self._reader = self._participant.create_reader(
            topic_name(topic), dds_type_name(msg_type.ros_type_name),
            policies(qos_profile, user_data(msg_type.ros_type_name)), self._receive)
        self.guids = ((self._reader.guid.bytes,), ())  # readers, writers

    @property
    def topic(self) -> str:
        """The topic's full name."""
        return self.topic_name

    def is_ready(self) -> bool:
        """Tell whether a message waits."""
        return bool(self._queue)

    def prepare(self) -> Callable[[], object] | None:
        """Take the oldest message and return the call to make; None when another took it.

        Raises rosbags' SerdeError when the sender's bytes are no such message.
        """
        try:
            sample = self._queue.popleft()
        except IndexError:
            return None
        message = sample.raw if self.raw else deserialize(sample.raw, self.msg_type)
        if self._callback_type is self.CallbackType.MessageOnly:
            return lambda: self.callback(message)
        info = MessageInfo(source_timestamp=sample.sample_info.source_timestamp)
        return lambda: self.callback(message, info)

    def get_publisher_count(self) -> int:
        """Return how many publishers this subscription receives from."""
        return 0 if self._reader is None else len(self._reader.get_matched_publications())

    def destroy(self) -> None:
        """Stop receiving for good."""
        reader, self._reader = self._reader, None
        if reader is not None:
            self._participant.delete_reader(reader)
            self._queue.clear()

    def _receive(self, samples: list) -> None:
        """Queue samples (in the reactor's thread); the oldest give way, as KEEP_LAST says."""
        self._queue.extend(sample for sample in samples if raw_bytes(sample) is not None)
        self._wake()

    def __enter__(self) -> 'Subscription':
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()


def _callback_type(callback: Callable) -> Subscription.CallbackType:
    """Tell whether a callback wants the message's info; RuntimeError when it takes neither."""
    if _accepts(callback, 1):
        return Subscription.CallbackType.MessageOnly
    if _accepts(callback, 2):
        return Subscription.CallbackType.WithMessageInfo
    raise RuntimeError(
        'Subscription.__init__(): callback should be either be callable with one argument'
        '(to get only the message) or two (to get message and message info)')


def _accepts(callback: Callable, count: int) -> bool:
    """Tell whether a callback can be called with so many arguments."""
    try:
        inspect.signature(callback).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # a builtin that does not tell its signature
        return count == 1
    return True
