"""Timers and rates."""

import threading
from collections.abc import Callable

from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ROSClock
from rclpy.context import Context
from rclpy.duration import NANOSECONDS
from rclpy.exceptions import InvalidHandle, ROSInterruptException


class TimerInfo:
    """When a timer's callback was due and when it was called."""

    def __init__(self, expected: int, actual: int, clock_type: object) -> None:
        from rclpy.time import Time

        self.expected_call_time = Time(nanoseconds=expected, clock_type=clock_type)
        self.actual_call_time = Time(nanoseconds=actual, clock_type=clock_type)


class Timer:
    """Calls back each period of its clock. Periods that were missed are skipped, not made up."""

    def __init__(self, callback: Callable | None, callback_group: CallbackGroup,
                 timer_period_ns: int, clock: Clock, *, autostart: bool,
                 wake: Callable[[], None]) -> None:
        self.callback = callback
        self.callback_group = callback_group
        self._clock = clock
        self._period = int(timer_period_ns)
        self._wake = wake
        self._lock = threading.Lock()
        self._last = clock.now_nanoseconds()
        self._next = self._last + self._period
        self._canceled = not autostart
        if isinstance(clock, ROSClock):
            clock.on_change.append(wake)

    @property
    def clock(self) -> Clock:
        """The clock that counts."""
        return self._clock

    @property
    def timer_period_ns(self) -> int:
        """The period in nanoseconds."""
        return self._period

    @timer_period_ns.setter
    def timer_period_ns(self, value: int) -> None:
        with self._lock:
            self._period = int(value)
            self._next = self._last + self._period
        self._wake()

    def is_ready(self) -> bool:
        """Tell whether the callback is due."""
        if self._canceled:
            return False
        now = self._clock.now_nanoseconds()
        if now == 0:  # simulated time that nobody has set yet
            return False
        if now < self._last:  # the clock was set back: count the period from here
            with self._lock:
                self._last, self._next = now, now + self._period
        return now >= self._next

    def is_canceled(self) -> bool:
        """Tell whether it was cancelled."""
        return self._canceled

    def cancel(self) -> None:
        """Call back no more, until reset."""
        self._canceled = True

    def reset(self) -> None:
        """Start the period anew, also after cancel."""
        with self._lock:
            self._last = self._clock.now_nanoseconds()
            self._next = self._last + self._period
            self._canceled = False
        self._wake()

    def time_since_last_call(self) -> int:
        """Return nanoseconds since the last call."""
        return self._clock.now_nanoseconds() - self._last

    def time_until_next_call(self) -> int | None:
        """Return nanoseconds until the next call, None when cancelled."""
        return None if self._canceled else self._next - self._clock.now_nanoseconds()

    def real_seconds_until_due(self) -> float | None:
        """Return real seconds until the callback is due; None when only an event can tell."""
        return None if self._canceled else self._clock.real_seconds_until(self._next)

    def call(self) -> TimerInfo | None:
        """Take note of a call and set the next one; None when it is not due any more."""
        with self._lock:
            now = self._clock.now_nanoseconds()
            if self._canceled or now < self._next:
                return None
            info = TimerInfo(self._next, now, self._clock.clock_type)
            self._last = now
            self._next += self._period
            if self._next < now:
                periods = 0 if self._period == 0 else -(-(now - self._next) // self._period)
                self._next = now if self._period == 0 else self._next + periods * self._period
            return info

    def prepare(self) -> Callable[[], object] | None:
        """Take note of a call and return it; None when it is not due any more."""
        return None if self.call() is None else self.callback

    def destroy(self) -> None:
        """Call back no more, ever."""
        self._canceled = True
        if isinstance(self._clock, ROSClock) and self._wake in self._clock.on_change:
            self._clock.on_change.remove(self._wake)


class Rate:
    """Sleeps until the next tick of a timer, which another thread must spin."""

    def __init__(self, timer: Timer, *, context: Context) -> None:
        self._timer = timer
        self._context = context
        self._changed = threading.Condition()
        self._ticks = 0
        self._destroyed = False
        timer.callback = self._tick
        context.on_shutdown(self._notify)

    def _tick(self) -> None:
        with self._changed:
            self._ticks += 1
            self._changed.notify_all()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def sleep(self) -> None:
        """Sleep; raises ROSInterruptException at shutdown, InvalidHandle when destroyed."""
        with self._changed:
            before = self._ticks
            while self._ticks == before:
                if not self._context.ok():
                    raise ROSInterruptException()
                if self._destroyed:
                    raise InvalidHandle('the rate is destroyed')
                self._changed.wait()

    def destroy(self) -> None:
        """Wake who sleeps, and tick no more."""
        self._destroyed = True
        self._timer.destroy()
        self._notify()


def period_ns(seconds: float) -> int:
    """Return a period in nanoseconds; raises ValueError when it is negative."""
    if seconds < 0:
        raise ValueError(f'timer period must not be negative, it is {seconds} s')
    return int(float(seconds) * NANOSECONDS)
