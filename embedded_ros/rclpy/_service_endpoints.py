"""The two endpoints of a service or client, and the header of their samples."""

import itertools
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cyclonedds.core import DDSException
from embedded_ros.dds.names import dds_type_name, reply_name, request_name
from embedded_ros.dds.participant import Participant
from embedded_ros.dds.payload import raw_bytes
from embedded_ros.typestore import serialize

from rclpy._qos_mapping import policies
from rclpy._rclpy_pybind11 import RCLError
from rclpy._user_data import parse_user_data, user_data
from rclpy.exceptions import InvalidHandle
from rclpy.qos import QoSProfile

if TYPE_CHECKING:
    from rclpy.node import Node

ENCAPSULATION = 4  # bytes before the CDR
HEADER = 16  # bytes of the request's id, first in the CDR; the alignment after it is unchanged
_FORMATS = {0: struct.Struct('>Qq'), 1: struct.Struct('<Qq')}  # by the encapsulation's byte 1
REPLY_READER_TIMEOUT = 1.0  # seconds; and how often to look, meanwhile:
REPLY_READER_POLL = 0.005
_counter = itertools.count(1)


class ServiceEndpoints:
    """A writer and a reader on the request and reply topics of one service."""

    def __init__(self, node: 'Node', name: str, written: type, read: type, *, is_client: bool,
                 qos: QoSProfile, receive: Callable[[list], None]) -> None:
        self._name = name
        self._context = node.context
        self._participant: Participant = node.context.participant
        out_topic, in_topic = request_name(name), reply_name(name)
        if not is_client:
            out_topic, in_topic = in_topic, out_topic
        self.id = self._participant.guid[:12] + struct.pack('>I', next(_counter))
        key = 'clientid' if is_client else 'serviceid'
        more = {key: '.'.join(f'{byte:02x}' for byte in self.id)}
        out_type = dds_type_name(written.ros_type_name)
        # The reader first: a server that hears a request should know already where to reply to.
        self._reader = self._participant.create_reader(
            in_topic, dds_type_name(read.ros_type_name),
            policies(qos, user_data(read.ros_type_name, **more)), receive)
        self._writer = self._participant.create_writer(
            out_topic, out_type, policies(qos, user_data(written.ros_type_name, **more)))
        self._connected: set[int] = set()  # handles of request writers whose reply reader is known
        self.guids = ((self._reader.guid.bytes,), (self._writer.guid.bytes,))  # readers, writers

    def send(self, client: int, sequence: int, message: object) -> None:
        """Write a message with its header; raises RCLError and InvalidHandle."""
        if self._writer is None:
            raise InvalidHandle(f'the service or client {self._name} is destroyed')
        if not self._context.ok():
            raise RCLError(f'Failed to send on {self._name}: the context is not valid (shut down)')
        data = bytes(serialize(message))
        header = _FORMATS[data[1]].pack(client, sequence)
        try:
            self._writer.write_raw(data[:ENCAPSULATION] + header + data[ENCAPSULATION:])
        except DDSException as error:
            raise RCLError(f'Failed to send on {self._name}: {error}') from error

    def wait_for_reply_reader(self, handle: int) -> bool:
        """Wait until the reply reader of a request's writer is discovered; False if it is not.

        The two are discovered one by one, and a reply in between would be lost
        (`rmw_cyclonedds_cpp` waits in the same way). A client without an id is answered at once.
        """
        if handle in self._connected or self._writer is None:
            return True
        client = _client_id(self._reader.get_matched_publication_data(handle))
        end = time.monotonic() + REPLY_READER_TIMEOUT
        while client is not None and not any(
                _client_id(self._writer.get_matched_subscription_data(reader)) == client
                for reader in self._writer.get_matched_subscriptions()):
            if time.monotonic() >= end or not self._context.ok():
                return False
            time.sleep(REPLY_READER_POLL)
        self._connected.add(handle)
        return True

    def matched(self) -> tuple[int, int]:
        """Return how many readers and writers of the other side are connected."""
        if self._writer is None:
            return 0, 0
        return (len(self._writer.get_matched_subscriptions()),
                len(self._reader.get_matched_publications()))

    def destroy(self) -> None:
        """Delete both endpoints."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._participant.delete_reader(self._reader)
            self._participant.delete_writer(writer)


def _client_id(endpoint: object) -> str | None:
    """Return the client id that a discovered endpoint has in its user data."""
    return None if endpoint is None else parse_user_data(endpoint.qos).get('clientid')


def split_header(sample: object) -> tuple[int, int, bytes] | None:
    """Return client id, sequence number and plain CDR of a sample; None when it is too short."""
    raw = raw_bytes(sample)
    if raw is None or len(raw) < ENCAPSULATION + HEADER or raw[1] not in _FORMATS:
        return None
    client, sequence = _FORMATS[raw[1]].unpack_from(raw, ENCAPSULATION)
    return client, sequence, raw[:ENCAPSULATION] + raw[ENCAPSULATION + HEADER:]
