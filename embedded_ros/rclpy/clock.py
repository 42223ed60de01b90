"""Clocks: of the system, steady, and ROS time, which a simulation may set."""

import threading
import time
from collections.abc import Callable
from enum import IntEnum

from rclpy.clock_type import ClockType
from rclpy.context import Context
from rclpy.duration import NANOSECONDS, Duration
from rclpy.exceptions import NotInitializedException
from rclpy.time import Time

LONGEST_SLEEP = 0.5  # seconds after which a sleep looks whether its context is gone

__all__ = ['Clock', 'ClockChange', 'ClockType', 'JumpHandle', 'JumpThreshold', 'ROSClock',
           'TimeJump']


class ClockChange(IntEnum):
    """What happened to the source of ROS time."""

    ROS_TIME_NO_CHANGE = 1
    ROS_TIME_ACTIVATED = 2
    ROS_TIME_DEACTIVATED = 3
    SYSTEM_TIME_NO_CHANGE = 4


class JumpThreshold:
    """Which jumps of a clock a callback wants to hear of."""

    def __init__(self, *, min_forward: Duration | None, min_backward: Duration | None,
                 on_clock_change: bool = True) -> None:
        if min_forward is not None and min_forward.nanoseconds <= 0:
            raise ValueError(f'min_forward must be a positive duration, not {min_forward}')
        if min_backward is not None and min_backward.nanoseconds >= 0:
            raise ValueError(f'min_backward must be a negative duration, not {min_backward}')
        if min_forward is None and min_backward is None and not on_clock_change:
            raise ValueError('At least one jump threshold must be set')
        self.min_forward = min_forward
        self.min_backward = min_backward
        self.on_clock_change = on_clock_change

    def covers(self, jump: 'TimeJump') -> bool:
        """Tell whether a jump is one of these."""
        if jump.clock_change in (ClockChange.ROS_TIME_ACTIVATED, ClockChange.ROS_TIME_DEACTIVATED):
            return self.on_clock_change
        forward, backward = self.min_forward, self.min_backward
        return ((forward is not None and jump.delta >= forward)
                or (backward is not None and jump.delta <= backward))


class TimeJump:
    """A jump of a clock."""

    def __init__(self, clock_change: ClockChange, delta: Duration) -> None:
        self.clock_change = clock_change
        self.delta = delta


class JumpHandle:
    """Keeps a jump callback registered until `unregister`."""

    def __init__(self, *, clock: 'Clock', threshold: JumpThreshold,
                 pre_callback: Callable[[], None] | None,
                 post_callback: Callable[[TimeJump], None] | None) -> None:
        if pre_callback is None and post_callback is None:
            raise ValueError('One of pre_callback or post_callback must be callable')
        self._clock = clock
        self.threshold = threshold
        self.pre_callback = pre_callback
        self.post_callback = post_callback
        clock._jump_handles.append(self)

    def unregister(self) -> None:
        """Call the callbacks no more."""
        if self in self._clock._jump_handles:
            self._clock._jump_handles.remove(self)

    def __enter__(self) -> 'JumpHandle':
        return self

    def __exit__(self, *_: object) -> None:
        self.unregister()


class Clock:
    """A clock of one kind; `Clock(clock_type=ClockType.ROS_TIME)` is a ROSClock."""

    def __new__(cls, *, clock_type: ClockType = ClockType.SYSTEM_TIME) -> 'Clock':
        """Choose the class by the kind; raises TypeError for what is no ClockType."""
        if not isinstance(clock_type, ClockType):
            raise TypeError(f'Clock type must be a ClockType enum, not {clock_type!r}')
        return super().__new__(ROSClock if clock_type is ClockType.ROS_TIME else cls)

    def __init__(self, *, clock_type: ClockType = ClockType.SYSTEM_TIME) -> None:
        self._clock_type = clock_type
        self._jump_handles: list[JumpHandle] = []
        self._changed = threading.Condition()

    @property
    def clock_type(self) -> ClockType:
        """Which kind of clock this is."""
        return self._clock_type

    def now(self) -> Time:
        """Return the current time."""
        return Time(nanoseconds=self.now_nanoseconds(), clock_type=self._clock_type)

    def now_nanoseconds(self) -> int:
        """Return the current time in nanoseconds."""
        steady = self._clock_type is ClockType.STEADY_TIME
        return time.monotonic_ns() if steady else time.time_ns()

    def real_seconds_until(self, nanoseconds: int) -> float | None:
        """Return real seconds until this clock shows a time; None where only an event can tell."""
        return (nanoseconds - self.now_nanoseconds()) / NANOSECONDS

    def create_jump_callback(
        self, threshold: JumpThreshold, *, pre_callback: Callable[[], None] | None = None,
        post_callback: Callable[[TimeJump], None] | None = None,
    ) -> JumpHandle:
        """Call the callbacks before and after a jump of ROS time."""
        return JumpHandle(clock=self, threshold=threshold, pre_callback=pre_callback,
                          post_callback=post_callback)

    def sleep_until(self, until: Time, context: Context | None = None) -> bool:
        """Sleep until the clock shows a time; False when the context or time source ends first.

        Raises NotInitializedException when the context is not running, and ValueError for a time
        of another kind of clock.
        """
        from rclpy.utilities import get_default_context

        context = context or get_default_context()
        if not context.ok():
            raise NotInitializedException()
        if until.clock_type != self._clock_type:
            raise ValueError("until's clock type does not match this clock's type")
        source = self._time_source()
        with self._changed:
            while context.ok() and source == self._time_source():
                left = self.real_seconds_until(until.nanoseconds)
                if left is None:
                    if self.now_nanoseconds() >= until.nanoseconds:
                        return True
                elif left <= 0:
                    return True
                self._changed.wait(LONGEST_SLEEP if left is None else min(left, LONGEST_SLEEP))
        return False

    def sleep_for(self, rel_time: Duration, context: Context | None = None) -> bool:
        """Sleep for a span of this clock; see sleep_until."""
        return self.sleep_until(self.now() + rel_time, context)

    def _time_source(self) -> object:
        return self._clock_type


class ROSClock(Clock):
    """ROS time: the system's, or what a simulation publishes."""

    def __new__(cls) -> 'ROSClock':
        """Make the clock; it has one kind only."""
        return super().__new__(cls, clock_type=ClockType.ROS_TIME)

    def __init__(self, **_: object) -> None:
        super().__init__(clock_type=ClockType.ROS_TIME)
        self._active = False
        self._override = 0
        self.on_change: list[Callable[[], None]] = []  # wakes executors that wait for timers

    @property
    def ros_time_is_active(self) -> bool:
        """Whether the time is set from outside."""
        return self._active

    def now_nanoseconds(self) -> int:
        """Return the time that was set, else the system's."""
        return self._override if self._active else time.time_ns()

    def real_seconds_until(self, nanoseconds: int) -> float | None:
        """Return real seconds until a time; None while the time is set from outside."""
        return None if self._active else super().real_seconds_until(nanoseconds)

    def _set_ros_time_is_active(self, enabled: bool) -> None:
        if self._active != enabled:
            self._jump(enabled, self._override,
                       ClockChange.ROS_TIME_ACTIVATED if enabled
                       else ClockChange.ROS_TIME_DEACTIVATED)

    def set_ros_time_override(self, now: Time) -> None:
        """Set the time; raises TypeError for a time of another kind of clock."""
        if not isinstance(now, Time) or now.clock_type != ClockType.ROS_TIME:
            raise TypeError(f'Time must be a Time of ROS_TIME, not {now!r}')
        self._jump(self._active, now.nanoseconds, ClockChange.ROS_TIME_NO_CHANGE)

    def _jump(self, active: bool, override: int, change: ClockChange) -> None:
        """Change the time, and tell jump callbacks, sleepers and executors."""
        after = override if active else time.time_ns()
        jump = TimeJump(change, Duration(nanoseconds=after - self.now_nanoseconds()))
        handles = [h for h in self._jump_handles if h.threshold.covers(jump)]
        for handle in handles:
            if handle.pre_callback is not None:
                handle.pre_callback()
        with self._changed:
            self._active, self._override = active, override
            self._changed.notify_all()
        for handle in handles:
            if handle.post_callback is not None:
                handle.post_callback(jump)
        for wake in list(self.on_change):
            wake()

    def _time_source(self) -> object:
        return self._active
