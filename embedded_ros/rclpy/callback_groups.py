"""Which callbacks may run at the same time."""

import threading


class CallbackGroup:
    """Decides whether an entity's callback may start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.entities: set[object] = set()

    def add_entity(self, entity: object) -> None:
        """Put a timer, subscription, service or client into this group."""
        self.entities.add(entity)

    def remove_entity(self, entity: object) -> None:
        """Take an entity out."""
        self.entities.discard(entity)

    def has_entity(self, entity: object) -> bool:
        """Tell whether an entity is in this group."""
        return entity in self.entities

    def can_execute(self, entity: object) -> bool:
        """Tell whether the entity's callback may start now."""
        raise NotImplementedError

    def beginning_execution(self, entity: object) -> bool:
        """Take note that a callback starts; False when it must not."""
        raise NotImplementedError

    def ending_execution(self, entity: object) -> None:
        """Take note that a callback has ended."""
        raise NotImplementedError


class ReentrantCallbackGroup(CallbackGroup):
    """All callbacks may run at the same time, the same one too."""

    def can_execute(self, entity: object) -> bool:
        """Return True."""
        return True

    def beginning_execution(self, entity: object) -> bool:
        """Return True."""
        return True

    def ending_execution(self, entity: object) -> None:
        """Nothing waits for the end."""


class MutuallyExclusiveCallbackGroup(CallbackGroup):
    """One callback at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._active: object | None = None

    def can_execute(self, entity: object) -> bool:
        """Return whether no callback of this group runs."""
        return self._active is None

    def beginning_execution(self, entity: object) -> bool:
        """Claim the group; False when a callback of it runs."""
        with self._lock:
            if self._active is not None:
                return False
            self._active = entity
            return True

    def ending_execution(self, entity: object) -> None:
        """Free the group."""
        with self._lock:
            self._active = None
