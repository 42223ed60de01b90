"""Conditions that a program triggers by hand."""

from collections.abc import Callable

from rclpy.callback_groups import CallbackGroup


class GuardCondition:
    """Calls back once after each trigger (several before the call count as one)."""

    def __init__(self, callback: Callable[[], object], callback_group: CallbackGroup,
                 wake: Callable[[], None]) -> None:
        self.callback = callback
        self.callback_group = callback_group
        self._wake = wake
        self._triggered = False

    def trigger(self) -> None:
        """Have the callback called by the executor."""
        self._triggered = True
        self._wake()

    def is_ready(self) -> bool:
        """Tell whether it was triggered."""
        return self._triggered

    def prepare(self) -> Callable[[], object] | None:
        """Take the trigger and return the call to make."""
        triggered, self._triggered = self._triggered, False
        return self.callback if triggered else None

    def destroy(self) -> None:
        """Call back no more."""
        self._triggered = False
