"""Executors, callback groups, timers, futures and guard conditions."""

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import rclpy
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.context import Context
from rclpy.exceptions import NotInitializedException
from rclpy.executors import (
    ExternalShutdownException,
    MultiThreadedExecutor,
    SingleThreadedExecutor,
)
from rclpy.node import Node
from rclpy.task import Future
from std_msgs.msg import String

DOMAIN = 1 + os.getpid() % 100


@pytest.fixture
def node() -> Iterator[Node]:
    rclpy.init(args=[], domain_id=DOMAIN)
    made = Node('tester', start_parameter_services=False)
    yield made
    made.destroy_node()
    rclpy.try_shutdown()


def spin(executor: SingleThreadedExecutor, condition: Callable[[], object],
         seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'timed out'
        executor.spin_once(timeout_sec=0.1)


def test_a_timer_keeps_its_rhythm(node):
    calls: list[float] = []
    node.create_timer(0.02, lambda: calls.append(time.monotonic()))
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    start = time.monotonic()
    spin(executor, lambda: len(calls) == 20)
    assert calls[-1] - start >= 0.38  # not early; late only by the machine's load


def test_a_timer_skips_what_it_missed(node):
    calls: list[int] = []

    def slow() -> None:
        calls.append(1)
        if len(calls) == 1:
            time.sleep(0.3)

    timer = node.create_timer(0.05, slow)
    spin_until = time.monotonic() + 0.62
    while time.monotonic() < spin_until:
        rclpy.spin_once(node, timeout_sec=0.01)
    assert len(calls) <= 8  # 0.05, then 0.40 … 0.60; made up for, it would be 12
    timer.cancel()
    before = len(calls)
    rclpy.spin_once(node, timeout_sec=0.12)
    assert timer.is_canceled() and len(calls) == before
    timer.reset()
    spin_until = time.monotonic() + 5
    while len(calls) == before and time.monotonic() < spin_until:
        rclpy.spin_once(node, timeout_sec=0.1)
    assert len(calls) > before


def test_spin_once_returns_when_nothing_happens(node):
    start, cpu = time.monotonic(), time.process_time()
    rclpy.spin_once(node, timeout_sec=0.5)
    assert 0.45 < time.monotonic() - start < 3
    assert time.process_time() - cpu < 0.1  # it slept


@pytest.mark.parametrize(('group', 'together'), [(MutuallyExclusiveCallbackGroup, 1),
                                                 (ReentrantCallbackGroup, 3)])
def test_callback_groups_decide_what_runs_together(node, group, together):
    shared = group()
    running, most, done = [], [], []
    lock = threading.Lock()

    def work() -> None:
        with lock:
            running.append(1)
            most.append(len(running))
        time.sleep(0.1)
        with lock:
            running.pop()
            done.append(1)

    for _ in range(3):
        node.create_timer(0.01, work, callback_group=shared)
    executor = MultiThreadedExecutor(4)
    executor.add_node(node)
    spin(executor, lambda: len(done) >= 3)
    executor.shutdown()
    assert max(most) >= together if together > 1 else max(most) == 1


def test_an_exception_of_a_callback_ends_spinning(node):
    def fail() -> None:
        raise ZeroDivisionError('in a callback')

    node.create_timer(0.01, fail)
    for executor in (SingleThreadedExecutor(), MultiThreadedExecutor(2)):
        executor.add_node(node)
        with pytest.raises(ZeroDivisionError, match='in a callback'):
            executor.spin()
        executor.shutdown()


def test_spin_ends_with_its_context(node):
    node.create_timer(0.05, rclpy.shutdown)
    rclpy.spin(node)
    assert not rclpy.ok()


def test_an_end_from_outside_is_told(node):
    threading.Timer(0.2, node.context.try_shutdown).start()
    with pytest.raises(ExternalShutdownException):
        rclpy.spin(node)


def test_futures_tasks_and_coroutines(node):
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    answer: Future = Future()
    order: list[object] = []

    async def work(name: str) -> str:
        order.append(f'{name} waits')
        order.append(await answer)
        return name

    async def timer_callback() -> None:
        timer.cancel()
        order.append(await work('timer'))

    timer = node.create_timer(0.01, timer_callback)
    task = executor.create_task(work, 'task')
    spin(executor, lambda: len(order) == 2)
    assert sorted(order) == ['task waits', 'timer waits']
    executor.create_task(lambda: answer.set_result('answer'))
    executor.spin_until_future_complete(task, timeout_sec=10)
    spin(executor, lambda: 'timer' in order)
    assert task.done() and task.result() == 'task'
    assert order.count('answer') == 2


def test_a_future_that_never_comes(node):
    start = time.monotonic()
    future: Future = Future()
    rclpy.spin_until_future_complete(node, future, timeout_sec=0.3)
    assert not future.done() and 0.25 < time.monotonic() - start < 3
    future.set_exception(KeyError('x'))
    with pytest.raises(KeyError):
        future.result()


def test_guard_condition_and_wake_from_a_thread(node):
    calls: list[int] = []
    guard = node.create_guard_condition(lambda: calls.append(1))
    threading.Timer(0.2, guard.trigger).start()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    start = time.monotonic()
    executor.spin_once(timeout_sec=10)
    assert calls == [1] and time.monotonic() - start < 5


def test_a_rate_follows_its_timer(node):
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin)
    thread.start()
    rate = node.create_rate(50)
    start = time.monotonic()
    for _ in range(10):
        rate.sleep()
    assert time.monotonic() - start > 0.15
    assert node.destroy_rate(rate)
    executor.shutdown()
    thread.join(10)
    assert not thread.is_alive()


def test_entities_are_served_in_turn(node):
    """A flooded subscription does not starve another one."""
    turns: list[str] = []
    for name in ('a', 'b'):
        node.create_subscription(String, name, lambda m, name=name: turns.append(name), 100)
    flood = node.create_publisher(String, 'a', 100)
    other = node.create_publisher(String, 'b', 100)
    while not (flood.get_subscription_count() and other.get_subscription_count()):
        time.sleep(0.01)
    for _ in range(50):
        flood.publish(String())
    for _ in range(2):
        other.publish(String())
    time.sleep(0.3)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spin(executor, lambda: len(turns) >= 6)
    assert turns[:4].count('b') == 2


def test_contexts_are_apart():
    with pytest.raises(NotInitializedException):
        Node('nowhere', context=Context())
    one = Context()
    one.init(args=[], domain_id=DOMAIN)
    with pytest.raises(RuntimeError, match='once'):
        one.init(args=[])
    node = Node('own', context=one)
    assert not rclpy.ok() and one.ok()
    node.destroy_node()
    node.destroy_node()
    one.shutdown()
    with pytest.raises(RuntimeError):
        one.shutdown()


def test_contexts_come_and_go_under_traffic():
    """The end of a context must not miss the moment between two waits of its thread."""
    for _ in range(60):
        context = Context()
        context.init(args=[], domain_id=DOMAIN)
        node = Node('short', context=context, start_parameter_services=False)
        publisher = node.create_publisher(String, 'short', 10)
        node.create_subscription(String, 'short', print, 10)
        publisher.publish(String())
        node.destroy_node()
        context.shutdown()
    assert not [t.name for t in threading.enumerate() if t.name == 'embedded_ros_dds']


def test_init_again_after_shutdown():
    for _ in range(3):
        with rclpy.init(args=[], domain_id=DOMAIN):
            node = Node('again')
            assert node.get_node_names() == ['again']
            node.destroy_node()
        rclpy.try_shutdown()
        assert not rclpy.ok()
