"""Services and clients. Run as a script, this file is a server in another process."""

import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import rclpy
from cyclonedds.core import Policy
from embedded_ros.dds.names import dds_type_name
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import SetBool, Trigger

DOMAIN = 1 + os.getpid() % 100
RELIABLE = Policy.Reliability.Reliable(10**9)


@pytest.fixture
def node() -> Iterator[Node]:
    rclpy.init(args=[], domain_id=DOMAIN)
    made = Node('tester', start_parameter_services=False)
    yield made
    made.destroy_node()
    rclpy.try_shutdown()


@pytest.fixture
def server() -> Iterator[subprocess.Popen]:
    process = subprocess.Popen([sys.executable, __file__],
                               env={**os.environ, 'ROS_DOMAIN_ID': str(DOMAIN)})
    yield process
    process.terminate()  # not killed: the graph would show its service for ten seconds more
    assert process.wait(timeout=15) == 0


def wait(node: Node, condition: Callable[[], object], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'timed out'
        rclpy.spin_once(node, timeout_sec=0.05)


def test_two_clients_get_their_own_answers(node, server):
    clients = [node.create_client(SetBool, 'set') for _ in range(2)]
    assert all(client.wait_for_service(timeout_sec=15) for client in clients)
    assert dict(node.get_service_names_and_types())['/set'] == ['std_srvs/srv/SetBool']
    futures = [(number, clients[number % 2].call_async(SetBool.Request(data=number % 3 == 0)))
               for number in range(8)]  # a service keeps the last 10 requests
    wait(node, lambda: all(future.done() for _, future in futures))
    for number, future in futures:
        assert future.result().success is (number % 3 == 0)
        assert future.result().message == 'served'


def test_a_service_that_is_not_there(node):
    client = node.create_client(Trigger, 'absent')
    start = time.monotonic()
    assert not client.service_is_ready()
    assert not client.wait_for_service(timeout_sec=0.3)
    assert time.monotonic() - start < 3


def test_a_blocking_call_from_a_callback(node, server):
    """The pattern that needs two groups and threads: a callback that waits for a service."""
    client = node.create_client(SetBool, 'set', callback_group=MutuallyExclusiveCallbackGroup())
    assert client.wait_for_service(timeout_sec=15)
    answers: list[str] = []
    timer = node.create_timer(0.05, lambda: (timer.cancel(), answers.append(
        client.call(SetBool.Request(data=True), timeout_sec=10).message)))
    executor = MultiThreadedExecutor(2)
    executor.add_node(node)
    end = time.monotonic() + 15
    while not answers and time.monotonic() < end:
        executor.spin_once(timeout_sec=0.1)
    executor.shutdown()
    assert answers == ['served']


def test_a_call_without_an_answer_times_out(node):
    client = node.create_client(Trigger, 'absent')
    with pytest.raises(TimeoutError, match='/absent'):
        client.call(Trigger.Request(), timeout_sec=0.2)
    with pytest.raises(TypeError, match='std_srvs/srv/Trigger'):
        client.call_async(SetBool.Request())


def test_a_coroutine_may_serve_and_call(node):
    gate: Future = Future()

    async def serve(request: object, response: object) -> object:
        response.message = await gate
        return response

    node.create_service(Trigger, 'later', serve)
    client = node.create_client(Trigger, 'later')
    assert client.wait_for_service(timeout_sec=10)
    future = client.call_async(Trigger.Request())
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        rclpy.spin_once(node, timeout_sec=0.05)
    assert not future.done()
    threading.Timer(0.1, lambda: gate.set_result('opened')).start()
    wait(node, future.done)
    assert future.result().message == 'opened'


def test_the_wire_of_a_service(node):
    """A client of plain DDS: the 16-byte header comes back in front of the response."""
    node.create_service(SetBool, 'set', serve)
    replies: list[bytes] = []
    participant = node.context.participant
    request_type = dds_type_name('std_srvs/srv/SetBool_Request')
    assert request_type == 'std_srvs::srv::dds_::SetBool_Request_'
    reader = participant.create_reader(
        'rr/setReply', dds_type_name('std_srvs/srv/SetBool_Response'), [RELIABLE],
        lambda samples: replies.extend(sample.raw for sample in samples))
    writer = participant.create_writer('rq/setRequest', request_type, [RELIABLE])
    header = struct.pack('<Qq', 0x1122334455667788, 42)
    writer.write_raw(b'\x00\x01\x00\x00' + b'short')  # is ignored
    writer.write_raw(b'\x00\x01\x00\x00' + header + b'\x01')
    wait(node, lambda: replies)
    body = b'\x01\0\0\0' + struct.pack('<I', 7) + b'served\0'
    assert replies[0].startswith(b'\x00\x01\x00\x00' + header + body)
    participant.delete_reader(reader)
    participant.delete_writer(writer)


def serve(request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
    response.success = request.data
    response.message = 'served'
    return response


def main() -> None:
    rclpy.init(args=[])
    node = Node('server')
    node.create_service(SetBool, 'set', serve)
    try:
        rclpy.spin(node)
    except ExternalShutdownException:
        node.destroy_node()


if __name__ == '__main__':
    main()
