# ruff: noqa: N818 - the names are rclpy's
"""Executors: they wait for work of nodes and run callbacks."""

import inspect
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from rosbags.serde import SerdeError

from rclpy.context import Context
from rclpy.logging import get_logger
from rclpy.task import Future, Task
from rclpy.utilities import get_default_context

if TYPE_CHECKING:
    from rclpy.node import Node

Work = Callable[[], None]


class TimeoutException(Exception):
    """Nothing happened in time."""


class ShutdownException(Exception):
    """The executor was shut down."""


class ExternalShutdownException(Exception):
    """The context ended while an executor was spinning."""


class TimeoutObject:
    """What a wait gives up at."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout


class Executor:
    """Waits for timers, subscriptions, services, clients, guard conditions and tasks."""

    def __init__(self, *, context: Context | None = None) -> None:
        self._context = context or get_default_context()
        self._nodes: list[Node] = []
        self._tasks: deque[Task] = deque()
        self._ready: deque[tuple[Node, Any]] = deque()
        # Re-entrant, since a signal's handler wakes executors from within the main thread.
        self._changed = threading.Condition(threading.RLock())
        self._woken = False
        self._is_shutdown = False
        self._context.add_waker(self)

    @property
    def context(self) -> Context:
        """The context of its nodes."""
        return self._context

    def add_node(self, node: 'Node') -> bool:
        """Serve a node; False when it is served already."""
        if node in self._nodes:
            return False
        self._nodes = [*self._nodes, node]
        node.executor = self
        self.wake()
        return True

    def remove_node(self, node: 'Node') -> None:
        """Serve a node no more."""
        if node in self._nodes:
            self._nodes = [other for other in self._nodes if other is not node]
            if node.executor is self:
                node.executor = None
            self.wake()

    def get_nodes(self) -> 'list[Node]':
        """Return the nodes that are served."""
        return list(self._nodes)

    def wake(self) -> None:
        """Let the thread that spins look for work."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def create_task(self, callback: Callable | Any, *args: object, **kwargs: object) -> Task:
        """Run a function or coroutine while spinning."""
        task = Task(callback, args, kwargs, executor=self)
        self.call_task(task)
        return task

    def call_task(self, task: Task) -> None:
        """Run a task, or its next step, while spinning."""
        self._tasks.append(task)
        self.wake()

    def shutdown(self, timeout_sec: float | None = None) -> bool:
        """Spin no more."""
        self._is_shutdown = True
        for node in self._nodes:
            self.remove_node(node)
        self.wake()
        return True

    def spin(self) -> None:
        """Run callbacks until the context or the executor ends."""
        while self._context.ok() and not self._is_shutdown:
            self.spin_once()

    def spin_until_future_complete(self, future: Future, timeout_sec: float | None = None) -> None:
        """Run callbacks until a future is done, at most `timeout_sec` seconds."""
        future.add_done_callback(lambda _: self.wake())
        end = None if timeout_sec is None or timeout_sec < 0 else time.monotonic() + timeout_sec
        while self._context.ok() and not self._is_shutdown and not _over(future):
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return
            self.spin_once_until_future_complete(future, left)

    def spin_once(self, timeout_sec: float | None = None) -> None:
        """Run one callback; return after `timeout_sec` seconds without one (None: wait for ever).

        Raises ExternalShutdownException when the context ends.
        """
        self._spin_once(timeout_sec, lambda: False)

    def spin_once_until_future_complete(self, future: Future,
                                        timeout_sec: float | None = None) -> None:
        """Run one callback, or none when the future is done before there is one."""
        self._spin_once(timeout_sec, lambda: _over(future))

    def _spin_once(self, timeout_sec: float | None, until: Callable[[], bool]) -> None:
        try:
            work = self._wait_for_work(timeout_sec, until)
        except (TimeoutException, ShutdownException):
            return
        if work is not None:
            self._run(work)

    def _run(self, work: Work) -> None:
        work()

    def _raise_failures(self) -> None:
        """Raise what callbacks in other threads have raised."""

    def _wait_for_work(self, timeout_sec: float | None, until: Callable[[], bool]) -> Work | None:
        """Wait for a callback that may run; None when `until` has come true."""
        end = None if timeout_sec is None or timeout_sec < 0 else time.monotonic() + timeout_sec
        while True:
            if self._is_shutdown:
                raise ShutdownException()
            if not self._context.ok():
                raise ExternalShutdownException()
            self._woken = False
            self._raise_failures()
            if until():
                return None
            work = self._find_work()
            if work is not None:
                return work
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutException()
            due = self._next_timer()
            waits = [seconds for seconds in (left, due) if seconds is not None]
            with self._changed:
                if not self._woken:
                    self._changed.wait(max(0.0, min(waits)) if waits else None)

    def _next_timer(self) -> float | None:
        """Return real seconds until a timer whose callback may run is due."""
        seconds = [timer.real_seconds_until_due() for node in self._nodes
                   for timer in node.timers if timer.callback_group.can_execute(timer)]
        return min((s for s in seconds if s is not None), default=None)

    def _find_work(self) -> Work | None:
        """Return the next callback that is ready. Each entity has its turn before any has two."""
        if self._tasks:
            task = self._tasks.popleft()
            return lambda: self._step(task)
        for _ in range(2):
            while self._ready:
                node, entity = self._ready.popleft()
                if node in self._nodes and entity.is_ready():
                    work = self._begin(entity, node)
                    if work is not None:
                        return work
            self._ready.extend((node, entity) for node in self._nodes
                               for entity in node._executable_entities()
                               if entity.is_ready() and entity.callback_group.can_execute(entity))
        return None

    def _begin(self, entity: Any, node: 'Node') -> Work | None:
        """Claim the entity's callback group and take its data; None when it must wait."""
        if not entity.callback_group.beginning_execution(entity):
            return None
        try:
            work = entity.prepare()
        except SerdeError as error:
            node.get_logger().error(f'dropped what is no {entity.msg_type.ros_type_name} '
                                    f'on {entity.topic_name}: {error}')
            work = None
        if work is None:
            entity.callback_group.ending_execution(entity)
            return None
        return lambda: self._execute(entity, work)

    def _execute(self, entity: Any, work: Callable[[], Any]) -> None:
        """Run a callback and free its group, for a coroutine when that has ended."""
        result = None
        try:
            result = work()
        finally:
            if not inspect.iscoroutine(result):
                self._end(entity)
        if inspect.iscoroutine(result):
            task = Task(result, executor=self)
            task.add_done_callback(lambda _: self._end(entity))
            self._step(task)

    def _step(self, task: Task) -> None:
        """Run a task as far as it goes; raises what it raised."""
        task()
        if task.exception() is not None:
            raise task.exception()

    def _end(self, entity: Any) -> None:
        entity.callback_group.ending_execution(entity)
        self.wake()

    def __enter__(self) -> 'Executor':
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


def _over(future: Future) -> bool:
    return future.done() or future.cancelled()


class SingleThreadedExecutor(Executor):
    """Runs one callback after the other in the thread that spins."""


class MultiThreadedExecutor(Executor):
    """Runs callbacks in a pool of threads, as far as callback groups allow."""

    def __init__(self, num_threads: int | None = None, *, context: Context | None = None) -> None:
        super().__init__(context=context)
        if num_threads is None:
            num_threads = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 1
        if num_threads < 2:
            get_logger('rclpy').warning(
                'MultiThreadedExecutor is used with a single thread.\n'
                'Use the SingleThreadedExecutor instead.', once=True)
        self._pool = ThreadPoolExecutor(max(1, num_threads))
        self._futures: deque[ThreadFuture] = deque()

    def _run(self, work: Work) -> None:
        future = self._pool.submit(work)
        self._futures.append(future)
        future.add_done_callback(lambda _: self.wake())

    def _raise_failures(self) -> None:
        for _ in range(len(self._futures)):
            future = self._futures.popleft()
            if future.done():
                future.result()
            else:
                self._futures.append(future)

    def shutdown(self, timeout_sec: float | None = None) -> bool:
        """Spin no more, and wait for the callbacks that run."""
        super().shutdown(timeout_sec)
        self._pool.shutdown(wait=timeout_sec is None)
        return True
