"""Times, durations, clocks and simulated time."""

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import rclpy
from rclpy.clock import Clock, ClockType, JumpThreshold, ROSClock
from rclpy.duration import Duration, Infinite
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from rosgraph_msgs.msg import Clock as ClockMessage

DOMAIN = 1 + os.getpid() % 100


@pytest.fixture
def node() -> Iterator[Node]:
    rclpy.init(args=[], domain_id=DOMAIN)
    made = Node('tester')
    yield made
    made.destroy_node()
    rclpy.try_shutdown()


def spin(node: Node, condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'timed out'
        rclpy.spin_once(node, timeout_sec=0.05)


def ros_time(seconds: float) -> Time:
    return Time(seconds=seconds, clock_type=ClockType.ROS_TIME)


def test_time_arithmetic():
    one = Time(seconds=1, nanoseconds=5)
    assert one.seconds_nanoseconds() == (1, 5)
    assert (one + Duration(seconds=0.5)).nanoseconds == 1_500_000_005
    assert (one - Time(seconds=2)).nanoseconds == -999_999_995
    assert one - Duration(nanoseconds=5) == Time(seconds=1)
    assert one > Time(seconds=1) and one <= Time(seconds=1, nanoseconds=5)
    assert Time.from_msg(one.to_msg(), ClockType.SYSTEM_TIME) == one
    with pytest.raises(TypeError, match='clock types'):
        _ = one < ros_time(1)
    with pytest.raises(ValueError, match='negative'):
        Time(seconds=-1)


def test_duration_arithmetic():
    half = Duration(seconds=-0.5)
    assert half.to_msg().sec == -1 and half.to_msg().nanosec == 500_000_000
    assert Duration.from_msg(half.to_msg()) == half
    assert half < Duration() < Infinite
    assert half + Duration(seconds=1) == half * -1
    with pytest.raises(TypeError):
        _ = half < 3
    with pytest.raises(OverflowError):
        Duration(seconds=1e12)


def test_clocks_of_all_kinds():
    assert isinstance(Clock(clock_type=ClockType.ROS_TIME), ROSClock)
    for kind in (ClockType.SYSTEM_TIME, ClockType.STEADY_TIME):
        clock = Clock(clock_type=kind)
        assert clock.now() <= clock.now()
        assert clock.now().clock_type is kind
    with pytest.raises(TypeError, match='ClockType'):
        Clock(clock_type=3)


def test_jump_callbacks():
    clock = ROSClock()
    clock._set_ros_time_is_active(True)
    clock.set_ros_time_override(ros_time(10))
    seen: list[object] = []
    threshold = JumpThreshold(min_forward=Duration(seconds=2), min_backward=None)
    handle = clock.create_jump_callback(threshold, pre_callback=lambda: seen.append('pre'),
                                        post_callback=lambda jump: seen.append(jump.delta))
    clock.set_ros_time_override(ros_time(11))
    assert seen == []
    clock.set_ros_time_override(ros_time(14))
    assert seen == ['pre', Duration(seconds=3)]
    handle.unregister()
    clock.set_ros_time_override(ros_time(30))
    assert len(seen) == 2


def test_sleeping(node):
    start = time.monotonic()
    assert node.get_clock().sleep_for(Duration(seconds=0.2))
    assert time.monotonic() - start > 0.19
    threading.Timer(0.1, rclpy.shutdown).start()
    assert not node.get_clock().sleep_for(Duration(seconds=30))


def test_simulated_time_drives_clock_timers_and_sleepers(node):
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    publisher = node.create_publisher(ClockMessage, '/clock', qos)
    ticks: list[Time] = []
    node.create_timer(1.0, lambda: ticks.append(node.get_clock().now()))
    [result] = node.set_parameters([Parameter('use_sim_time', value=True)])
    assert result.successful and node.get_clock().ros_time_is_active
    spin(node, lambda: publisher.get_subscription_count() == 1)

    def set_time(seconds: float) -> None:
        publisher.publish(ClockMessage(clock=ros_time(seconds).to_msg()))
        spin(node, lambda: node.get_clock().now() == ros_time(seconds))
        rclpy.spin_once(node, timeout_sec=0.05)

    set_time(100.0)
    assert ticks == []  # a period counts from here
    set_time(100.5)
    assert ticks == []
    set_time(101.25)
    assert ticks == [ros_time(101.25)]
    slept: list[bool] = []
    sleeper = threading.Thread(
        target=lambda: slept.append(node.get_clock().sleep_until(ros_time(105))))
    sleeper.start()
    set_time(106.0)
    sleeper.join(5)
    assert slept == [True] and len(ticks) == 2
    set_time(50.0)  # the simulation starts again
    set_time(51.5)
    assert ticks[-1] == ros_time(51.5)
    node.set_parameters([Parameter('use_sim_time', value=False)])
    assert not node.get_clock().ros_time_is_active
    assert abs(node.get_clock().now().nanoseconds - time.time_ns()) < 10e9


def test_use_sim_time_must_be_a_bool(node):
    [result] = node.set_parameters([Parameter('use_sim_time', value='yes')])
    assert not result.successful and 'BOOL' in result.reason
