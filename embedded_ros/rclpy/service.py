"""Services."""

import inspect
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from embedded_ros.typestore import deserialize

from rclpy._service_endpoints import ServiceEndpoints, split_header
from rclpy.callback_groups import CallbackGroup
from rclpy.logging import get_logger
from rclpy.qos import QoSProfile

if TYPE_CHECKING:
    from rclpy.node import Node


class Service:
    """Answers requests; made by `Node.create_service`."""

    def __init__(self, node: 'Node', srv_type: type, srv_name: str, callback: Callable,
                 callback_group: CallbackGroup, qos_profile: QoSProfile) -> None:
        self.srv_type = srv_type
        self.msg_type = srv_type.Request
        self.srv_name = self.topic_name = srv_name
        self.callback = callback
        self.callback_group = callback_group
        self.qos_profile = qos_profile
        self._wake = node._wake
        self._logger_name = node.get_logger().name
        self._queue: deque[tuple[int, int, bytes, int]] = deque()
        self._endpoints = ServiceEndpoints(node, srv_name, srv_type.Response, srv_type.Request,
                                           is_client=False, qos=qos_profile,
                                           receive=self._receive)
        self.guids = self._endpoints.guids

    @property
    def service_name(self) -> str:
        """The service's full name."""
        return self.srv_name

    def send_response(self, response: object, header: tuple[int, int, int]) -> None:
        """Answer a request by its header: client id, sequence number, handle of its writer.

        Raises TypeError for a response of another type, RCLError after the context's end.
        """
        if not isinstance(response, self.srv_type.Response):
            raise TypeError(f'the callback of service {self.srv_name} must return a '
                            f'{self.srv_type.ros_type_name} response, not {response!r}')
        client, sequence, handle = header
        if not self._endpoints.wait_for_reply_reader(handle):
            get_logger(self._logger_name).warning(
                f'no response from {self.srv_name}: the client that asked is gone')
            return
        self._endpoints.send(client, sequence, response)

    def is_ready(self) -> bool:
        """Tell whether a request waits."""
        return bool(self._queue)

    def prepare(self) -> Callable[[], Any] | None:
        """Take the oldest request and return the call that answers it."""
        try:
            client, sequence, data, handle = self._queue.popleft()
        except IndexError:
            return None
        request = deserialize(data, self.srv_type.Request)
        return lambda: self._answer(request, (client, sequence, handle))

    def _answer(self, request: object, header: tuple[int, int, int]) -> Any:
        result = self.callback(request, self.srv_type.Response())
        if inspect.iscoroutine(result):
            return self._answer_later(result, header)
        self.send_response(result, header)
        return None

    async def _answer_later(self, result: Any, header: tuple[int, int, int]) -> None:
        self.send_response(await result, header)

    def destroy(self) -> None:
        """Answer no more."""
        self._endpoints.destroy()
        self._queue.clear()

    def _receive(self, samples: list) -> None:
        """Queue requests (in the reactor's thread)."""
        for sample in samples:
            parts = split_header(sample)
            if parts is not None:
                self._queue.append((*parts, sample.sample_info.publication_handle))
        self._wake()

    def __enter__(self) -> 'Service':
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()
