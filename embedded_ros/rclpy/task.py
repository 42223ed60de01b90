"""Futures and the tasks that run coroutines."""

import inspect
import threading
from collections.abc import Callable, Generator
from typing import Any


class Future:
    """A result that is not there yet. May be awaited by a coroutine that an executor runs."""

    def __init__(self, *, executor: object | None = None) -> None:
        self._lock = threading.RLock()
        self._done = False
        self._cancelled = False
        self._result: Any = None
        self._exception: BaseException | None = None
        self._callbacks: list[Callable[[Future], None]] = []
        self._executor = executor

    def __await__(self) -> Generator['Future', None, Any]:
        while not self._done and not self._cancelled:
            yield self
        return self.result()

    def cancel(self) -> None:
        """Say that nobody wants the result."""
        with self._lock:
            if not self._done:
                self._cancelled = True
        self._run_callbacks()

    def cancelled(self) -> bool:
        """Tell whether it was cancelled."""
        return self._cancelled

    def done(self) -> bool:
        """Tell whether a result or an exception is there."""
        return self._done

    def result(self) -> Any:
        """Return the result, or None; raises the exception that was set."""
        if self._exception is not None:
            raise self._exception
        return self._result

    def exception(self) -> BaseException | None:
        """Return the exception that was set."""
        return self._exception

    def set_result(self, result: object) -> None:
        """Set the result and call back."""
        with self._lock:
            self._result = result
            self._done = True
            self._cancelled = False
        self._run_callbacks()

    def set_exception(self, exception: BaseException) -> None:
        """Set an exception and call back."""
        with self._lock:
            self._exception = exception
            self._done = True
            self._cancelled = False
        self._run_callbacks()

    def add_done_callback(self, callback: Callable[['Future'], None]) -> None:
        """Call back when it is done or cancelled; at once if it is already."""
        with self._lock:
            if not self._done and not self._cancelled:
                self._callbacks.append(callback)
                return
        callback(self)

    def remove_done_callback(self, callback: Callable[['Future'], None]) -> bool:
        """Do not call back; tells whether it would have been."""
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)
                return True
            return False

    def _run_callbacks(self) -> None:
        with self._lock:
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)


class Task(Future):
    """Runs a function or coroutine step by step; an executor calls it."""

    def __init__(self, handler: Callable | Any, args: tuple = (), kwargs: dict | None = None,
                 executor: object | None = None) -> None:
        super().__init__(executor=executor)
        self._handler = handler
        if inspect.iscoroutinefunction(handler):
            self._handler = handler(*args, **(kwargs or {}))
        self._args, self._kwargs = args, kwargs or {}
        self._executing = threading.Lock()

    def __call__(self) -> None:
        """Run until the end, or until a future that is awaited is not done."""
        if self._done or self._cancelled or not self._executing.acquire(blocking=False):
            return
        try:
            if inspect.iscoroutine(self._handler):
                self._step()
            else:
                self.set_result(self._handler(*self._args, **self._kwargs))
        except Exception as error:
            self.set_exception(error)
        finally:
            self._executing.release()

    def _step(self) -> None:
        try:
            awaited = self._handler.send(None)
        except StopIteration as end:
            self.set_result(end.value)
            return
        if isinstance(awaited, Future):
            awaited.add_done_callback(lambda _: self._executor.call_task(self))
        else:
            self._executor.call_task(self)  # `yield` without a future: run again later

    def executing(self) -> bool:
        """Tell whether it runs now."""
        return self._executing.locked()
