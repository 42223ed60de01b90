"""SIGINT and SIGTERM end contexts, as rclpy's handlers do."""

import signal
import threading
from collections.abc import Callable
from enum import IntEnum
from types import FrameType

_previous: dict[int, object] = {}
_on_signal: list[Callable[[], None]] = []


class SignalHandlerOptions(IntEnum):
    """Which signals rclpy handles."""

    NO = 0
    SIGINT = 1
    SIGTERM = 2
    ALL = 3


def install_signal_handlers(options: SignalHandlerOptions = SignalHandlerOptions.ALL) -> None:
    """Handle the signals until `uninstall_signal_handlers`; only the main thread can do it."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number, bit in ((signal.SIGINT, SignalHandlerOptions.SIGINT),
                        (signal.SIGTERM, SignalHandlerOptions.SIGTERM)):
        if options & bit and number not in _previous:
            _previous[number] = signal.signal(number, _handle)


def uninstall_signal_handlers() -> None:
    """Put back the handlers that were there before."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number, handler in _previous.items():
        # None: the handler was not installed from Python, and cannot be put back.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
    _previous.clear()


def get_current_signal_handlers_options() -> SignalHandlerOptions:
    """Return which signals are handled now."""
    return SignalHandlerOptions(
        SignalHandlerOptions.SIGINT * (signal.SIGINT in _previous)
        | SignalHandlerOptions.SIGTERM * (signal.SIGTERM in _previous))


def on_signal(callback: Callable[[], None]) -> None:
    """Call back, in the main thread, at each handled signal."""
    _on_signal.append(callback)


def _handle(number: int, frame: FrameType | None) -> None:
    """End the contexts; then do what was done before (KeyboardInterrupt for SIGINT).

    SIGTERM's default action is left out: spinning ends by ExternalShutdownException, and the
    program closes in its own order.
    """
    for callback in _on_signal:
        callback()
    previous = _previous.get(number)
    if callable(previous):
        previous(number, frame)


def ignore_interrupts() -> None:
    """Let a further SIGINT or SIGTERM not disturb the end of the process."""
    if threading.current_thread() is threading.main_thread():
        for number in _previous:
            signal.signal(number, signal.SIG_IGN)
