"""Clients of services."""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from embedded_ros.typestore import deserialize

from rclpy._service_endpoints import ServiceEndpoints, split_header
from rclpy.callback_groups import CallbackGroup
from rclpy.qos import QoSProfile
from rclpy.task import Future

if TYPE_CHECKING:
    from rclpy.node import Node

WAIT_PERIOD = 0.02  # seconds between looks for the service


class Client:
    """Makes requests of a service; made by `Node.create_client`."""

    def __init__(self, node: 'Node', srv_type: type, srv_name: str,
                 callback_group: CallbackGroup, qos_profile: QoSProfile) -> None:
        self.srv_type = srv_type
        self.msg_type = srv_type.Response
        self.srv_name = self.topic_name = srv_name
        self.callback_group = callback_group
        self.qos_profile = qos_profile
        self.context = node.context
        self._graph_has_server = lambda: node._has_server(srv_name)
        self._wake = node._wake
        self._queue: deque[tuple[int, bytes]] = deque()
        self._pending: dict[int, Future] = {}
        self._sequence = itertools.count(1)
        self._lock = threading.Lock()
        self._endpoints = ServiceEndpoints(node, srv_name, srv_type.Request, srv_type.Response,
                                           is_client=True, qos=qos_profile, receive=self._receive)
        self._id = int.from_bytes(self._endpoints.guids[1][0][:8], 'little') ^ int.from_bytes(
            self._endpoints.guids[1][0][8:], 'little')
        self.guids = self._endpoints.guids

    @property
    def service_name(self) -> str:
        """The service's full name."""
        return self.srv_name

    def call_async(self, request: object) -> Future:
        """Send a request and return the future of its response.

        Raises TypeError for a request of another type, RCLError after the context's end.
        """
        if not isinstance(request, self.srv_type.Request):
            raise TypeError(f'Expected a request of {self.srv_type.ros_type_name}, '
                            f'got {type(request).__name__}')
        future = Future()
        sequence = next(self._sequence)
        with self._lock:
            self._pending[sequence] = future
        future.add_done_callback(lambda _: self.remove_pending_request(future))
        try:
            self._endpoints.send(self._id, sequence, request)
        except Exception:
            self.remove_pending_request(future)
            raise
        return future

    def call(self, request: object, timeout_sec: float | None = None) -> object:
        """Send a request and wait for its response; another thread must spin.

        Raises TimeoutError after `timeout_sec` seconds.
        """
        arrived = threading.Event()
        future = self.call_async(request)
        future.add_done_callback(lambda _: arrived.set())
        if not arrived.wait(timeout_sec):
            self.remove_pending_request(future)
            raise TimeoutError(f'no response from {self.srv_name} within {timeout_sec} s')
        return future.result()

    def remove_pending_request(self, future: Future) -> None:
        """Forget a request; its response is dropped."""
        with self._lock:
            self._pending = {number: other for number, other in self._pending.items()
                             if other is not future}

    def service_is_ready(self) -> bool:
        """Tell whether a server is there, and connected both ways."""
        readers, writers = self._endpoints.matched()
        return readers > 0 and writers > 0 and self._graph_has_server()

    def wait_for_service(self, timeout_sec: float | None = None) -> bool:
        """Wait until a server is ready; False after `timeout_sec` seconds or at shutdown."""
        end = None if timeout_sec is None or timeout_sec < 0 else time.monotonic() + timeout_sec
        while self.context.ok():
            if self.service_is_ready():
                return True
            left = WAIT_PERIOD if end is None else end - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, WAIT_PERIOD))
        return False

    def is_ready(self) -> bool:
        """Tell whether a response waits."""
        return bool(self._queue)

    def prepare(self) -> Callable[[], None] | None:
        """Take the oldest response and return the call that completes its future."""
        try:
            sequence, data = self._queue.popleft()
        except IndexError:
            return None
        with self._lock:
            future = self._pending.get(sequence)
        if future is None:
            return None
        response = deserialize(data, self.srv_type.Response)
        return lambda: future.set_result(response)

    def destroy(self) -> None:
        """Call no more; futures that are not done never will be."""
        self._endpoints.destroy()
        self._queue.clear()

    def _receive(self, samples: list) -> None:
        """Queue the responses that answer this client (in the reactor's thread)."""
        for parts in filter(None, map(split_header, samples)):
            client, sequence, data = parts
            if client == self._id:
                self._queue.append((sequence, data))
        self._wake()

    def __enter__(self) -> 'Client':
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()
