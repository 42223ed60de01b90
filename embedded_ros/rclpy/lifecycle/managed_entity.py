"""What follows the lifecycle of its node."""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING

from rclpy.lifecycle.state_machine import TransitionCallbackReturn

if TYPE_CHECKING:
    from rclpy.lifecycle.node import LifecycleState


class ManagedEntity:
    """Takes part in transitions; the default is to agree."""

    def on_configure(self, state: 'LifecycleState') -> TransitionCallbackReturn:
        """Called in the transition configure, with the state before it; so are the others."""
        return TransitionCallbackReturn.SUCCESS

    def on_cleanup(self, state: 'LifecycleState') -> TransitionCallbackReturn:
        """Called in the transition cleanup."""
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: 'LifecycleState') -> TransitionCallbackReturn:
        """Called in the transition shutdown."""
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: 'LifecycleState') -> TransitionCallbackReturn:
        """Called in the transition activate."""
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: 'LifecycleState') -> TransitionCallbackReturn:
        """Called in the transition deactivate."""
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: 'LifecycleState') -> TransitionCallbackReturn:
        """Called when another callback has failed with an error."""
        return TransitionCallbackReturn.SUCCESS


class SimpleManagedEntity(ManagedEntity):
    """Is enabled while its node is active."""

    def __init__(self) -> None:
        self._enabled = False

    def on_activate(self, state: 'LifecycleState') -> TransitionCallbackReturn:
        """Enable."""
        self._enabled = True
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: 'LifecycleState') -> TransitionCallbackReturn:
        """Disable."""
        self._enabled = False
        return TransitionCallbackReturn.SUCCESS

    @property
    def is_activated(self) -> bool:
        """Whether it is enabled."""
        return self._enabled

    @staticmethod
    def when_enabled(wrapped: Callable | None = None, *,
                     when_not_enabled: Callable | None = None) -> Callable:
        """Decorate a method so that it does nothing, or something else, while not enabled."""
        def decorator(method: Callable) -> Callable:
            @wraps(method)
            def only_when_enabled(self: 'SimpleManagedEntity', *args: object,
                                  **kwargs: object) -> object:
                if self._enabled:
                    return method(self, *args, **kwargs)
                return when_not_enabled(self, *args, **kwargs) if when_not_enabled else None

            return only_when_enabled

        return decorator if wrapped is None else decorator(wrapped)
