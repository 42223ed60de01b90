"""Topics between processes over DDS. Run as a script, this file is the other process."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import rclpy
from cyclonedds.core import Policy
from embedded_ros.dds.names import dds_type_name, topic_name
from rclpy._rclpy_pybind11 import RCLError
from rclpy.exceptions import TypeSupportNotFound
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSProfile,
    ReliabilityPolicy,
    qos_profile_sensor_data,
)
from sensor_msgs.msg import Image
from std_msgs.msg import String, UInt64

DOMAIN = 1 + os.getpid() % 100
LATCHED = QoSProfile(depth=3, durability=DurabilityPolicy.TRANSIENT_LOCAL)
VGA = 640 * 480 * 3


def wait(node: Node, condition: Callable[[], object], seconds: float = 15.0) -> object:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'timed out'
        rclpy.spin_once(node, timeout_sec=0.1)
    return condition()


@pytest.fixture
def node() -> Iterator[Node]:
    rclpy.init(args=[], domain_id=DOMAIN)
    made = Node('tester')
    yield made
    made.destroy_node()
    rclpy.try_shutdown()


@pytest.fixture
def peer() -> Iterator[Callable[..., subprocess.Popen]]:
    started = []

    def start(role: str, *args: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, __file__, role, *args], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env={**os.environ, 'ROS_DOMAIN_ID': str(DOMAIN)})
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()  # not killed: what writes to it would wait for it, a second each
        try:
            process.communicate(timeout=15)
        finally:
            process.kill()


def end(process: subprocess.Popen, number: int) -> tuple[int, str, str]:
    process.send_signal(number)
    out, err = process.communicate(timeout=15)
    return process.returncode, out, err


def test_messages_arrive_in_order_and_whole(node, peer):
    received: list[int] = []
    node.create_subscription(UInt64, 'numbers', lambda m: received.append(m.data), 100)
    peer('counter')
    wait(node, lambda: len(received) >= 50)
    assert received == list(range(received[0], received[0] + len(received)))


def test_a_vga_image_crosses_whole_and_fast(node, peer):
    images: list[Image] = []
    ages: list[float] = []

    def keep(message: Image) -> None:
        images.append(message)
        ages.append(time.time() - message.header.stamp.sec - message.header.stamp.nanosec * 1e-9)

    node.create_subscription(Image, 'image', keep, qos_profile_sensor_data)
    peer('camera')
    wait(node, lambda: len(images) >= 20)
    assert bytes(images[-1].data) == bytes(i % 251 for i in range(VGA))
    # About 2 ms on an idle machine; the bound only tells a copy per element from a copy of bytes.
    assert sorted(ages)[len(ages) // 2] < 0.1


def test_a_late_subscription_gets_what_is_latched(node, peer):
    talker = peer('latched')
    assert talker.stdout.readline() == 'published\n'
    received: list[str] = []
    node.create_subscription(String, 'latched', lambda m: received.append(m.data), LATCHED)
    wait(node, lambda: len(received) == 3)
    assert received == ['b', 'c', 'd']


def test_best_effort_does_not_match_reliable(node):
    publisher = node.create_publisher(String, 'mixed', qos_profile_sensor_data)
    node.create_subscription(String, 'mixed', print, 10)
    heard: list[str] = []
    node.create_subscription(String, 'mixed', lambda m: heard.append(m.data),
                             qos_profile_sensor_data)
    wait(node, lambda: publisher.get_subscription_count() >= 1)
    publisher.publish(String(data='x'))
    wait(node, lambda: heard)
    assert publisher.get_subscription_count() == 1
    assert node.count_subscribers('mixed') == 2


def test_broken_bytes_are_dropped_and_named(node, capfd):
    """A sender of plain DDS puts bytes on a ROS topic that are no such message."""
    received: list[str] = []
    node.create_subscription(String, 'broken', lambda m: received.append(m.data), 10)
    dds_type = dds_type_name('std_msgs/msg/String')
    participant = node.context.participant
    writer = participant.create_writer(topic_name('/broken'), dds_type,
                                       [Policy.Reliability.Reliable(10**9)])
    for raw in (b'\x00\x01\x00\x00\xff\xff\xff\x7fabc\0', b'\x00\x01\x00\x00\x03\x00\x00\x00ok\0'):
        writer.write_raw(raw)
    wait(node, lambda: received)
    assert received == ['ok']
    assert '/broken' in capfd.readouterr().err
    participant.delete_writer(writer)


def test_raw_subscription_message_info_and_raw_publishing(node):
    raw: list[bytes] = []
    infos: list[dict] = []
    node.create_subscription(String, 'raw', raw.append, 10, raw=True)
    node.create_subscription(String, 'raw', lambda m, info: infos.append(info), 10)
    publisher = node.create_publisher(String, 'raw', 10)
    wait(node, lambda: publisher.get_subscription_count() == 2)
    publisher.publish(b'\x00\x01\x00\x00\x02\x00\x00\x00a\0')
    wait(node, lambda: raw and infos)
    assert raw[0].startswith(b'\x00\x01\x00\x00\x02\x00\x00\x00a\0')
    assert abs(infos[0]['source_timestamp'] - time.time_ns()) < 60e9


def test_a_slow_subscription_keeps_the_newest(node):
    received: list[int] = []
    qos = QoSProfile(depth=2, reliability=ReliabilityPolicy.RELIABLE)
    node.create_subscription(UInt64, 'newest', lambda m: received.append(m.data), qos)
    publisher = node.create_publisher(UInt64, 'newest', 10)
    wait(node, lambda: publisher.get_subscription_count() == 1)
    for number in range(10):
        publisher.publish(UInt64(data=number))
    assert publisher.wait_for_all_acked()
    time.sleep(0.2)
    for _ in range(5):
        rclpy.spin_once(node, timeout_sec=0.05)
    assert received == [8, 9]


def test_a_subscription_that_hangs_costs_messages_but_not_the_node(node, peer, capfd):
    publisher = node.create_publisher(Image, 'big', QoSProfile(history=HistoryPolicy.KEEP_ALL))
    process = peer('listener')
    assert process.stdout.readline() == 'ready\n'
    wait(node, lambda: publisher.get_subscription_count() == 1)
    process.send_signal(signal.SIGSTOP)
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.01):
            ticks.append(time.monotonic())

    thread = threading.Thread(target=tick)
    thread.start()
    message, warned = Image(data=bytes(1_000_000)), ''
    end = time.monotonic() + 15
    while 'does not keep up' not in warned and time.monotonic() < end:
        publisher.publish(message)
        warned += capfd.readouterr().err
    stop.set()
    thread.join()
    process.send_signal(signal.SIGCONT)
    assert '/big' in warned
    gaps = [b - a for a, b in pairwise(ticks)]
    assert max(gaps) < 0.5  # other threads went on during the second that a publish waited


def test_misuse_is_refused(node):
    publisher = node.create_publisher(String, 'x', 10)
    with pytest.raises(TypeError, match='std_msgs/msg/String'):
        publisher.publish(UInt64())
    with pytest.raises(TypeSupportNotFound):
        node.create_publisher(int, 'x', 10)
    with pytest.raises(TypeError, match='QoSProfile'):
        node.create_publisher(String, 'x', 'ten')
    rclpy.shutdown()
    with pytest.raises(RCLError, match='/x'):
        publisher.publish(String())


@pytest.mark.parametrize(('number', 'endings'), [
    # The second where the signal came while a callback ran, as in rclpy.
    (signal.SIGINT, ('interrupted\n', 'shut down\n')), (signal.SIGTERM, ('shut down\n',))])
def test_signals_end_a_spinning_process_cleanly(peer, number, endings):
    process = peer('counter')
    assert process.stdout.readline() == 'ready\n'
    code, out, err = end(process, number)
    assert (code, err) == (0, '')
    assert out in endings


def test_a_process_that_cleans_up_nothing_ends_cleanly(peer):
    process = peer('careless')
    out, err = process.communicate(timeout=15)
    assert (process.returncode, out, err) == (0, 'end\n', '')


def spin(node: Node) -> None:
    try:
        print('ready', flush=True)
        rclpy.spin(node)
    except KeyboardInterrupt:
        print('interrupted')
    except ExternalShutdownException:
        print('shut down')
    else:
        print('shut down')  # as rclpy, when the signal comes while a callback runs
    node.destroy_node()
    rclpy.try_shutdown()


def counter() -> None:
    node = Node('counter')
    publisher = node.create_publisher(UInt64, 'numbers', 100)
    numbers = iter(range(10**9))
    node.create_timer(0.005, lambda: publisher.publish(UInt64(data=next(numbers))))
    spin(node)


def camera() -> None:
    node = Node('camera')
    publisher = node.create_publisher(Image, 'image', qos_profile_sensor_data)
    data = bytes(i % 251 for i in range(VGA))

    def publish() -> None:
        image = Image(height=480, width=640, encoding='rgb8', step=1920, data=data)
        image.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(image)

    node.create_timer(1 / 30, publish)
    spin(node)


def listener() -> None:
    node = Node('listener')
    node.create_subscription(Image, 'big', lambda m: None, 1)
    spin(node)


def latched() -> None:
    node = Node('latched')
    publisher = node.create_publisher(String, 'latched', LATCHED)
    for text in 'abcd':
        publisher.publish(String(data=text))
    print('published', flush=True)
    spin(node)


def careless() -> None:
    """Leave nodes, timers and threads as they are."""
    node = Node('careless')
    publisher = node.create_publisher(String, 'careless', 10)
    node.create_subscription(String, 'careless', lambda m: None, 10)
    node.create_timer(0.001, lambda: publisher.publish(String(data='x')))
    for _ in range(100):
        rclpy.spin_once(node)
    print('end')


if __name__ == '__main__':
    rclpy.init()
    globals()[sys.argv[1]]()
