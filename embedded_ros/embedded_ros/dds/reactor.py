"""The thread that waits for samples and hands them over.

No DDS thread ever runs Python code (a listener would have to take the interpreter's lock in the
middle of DDS' own), and nothing polls: one thread sleeps in a waitset, takes what has come, and
calls each reader's receiver, which only puts samples into a queue and wakes an executor.
"""

import logging
import threading
from collections.abc import Callable

from cyclonedds.core import (
    Entity,
    GuardCondition,
    InstanceState,
    ReadCondition,
    SampleState,
    ViewState,
    WaitSet,
)
from cyclonedds.domain import DomainParticipant
from cyclonedds.internal import dds_infinity
from cyclonedds.sub import DataReader

ANY = SampleState.Any | ViewState.Any | InstanceState.Any
TAKE_AT_ONCE = 64
LOG = logging.getLogger(__name__)
Receiver = Callable[[list], None]


def delete(entity: Entity) -> None:
    """Delete an entity now, and keep its wrapper from deleting a later one of the same handle."""
    entity.__del__()
    if hasattr(entity, '_ref'):
        del entity._ref


class Reactor:
    """Takes the samples of all readers of one participant."""

    def __init__(self, participant: DomainParticipant) -> None:
        self._waitset = WaitSet(participant)
        self._guard = GuardCondition(participant)
        self._waitset.attach(self._guard)
        self._lock = threading.RLock()  # guards the readers, and that none goes while it is read
        self._readers: dict[DataReader, tuple[ReadCondition, Receiver]] = {}
        self._running = True
        self._thread = threading.Thread(target=self._run, name='embedded_ros_dds', daemon=True)
        self._thread.start()

    def add(self, reader: DataReader, receiver: Receiver) -> None:
        """Give all samples of a reader, also those that it has, to `receiver`, in lists."""
        condition = ReadCondition(reader, ANY)
        with self._lock:
            self._readers[reader] = (condition, receiver)
            self._waitset.attach(condition)
        self._guard.set(True)

    def remove(self, reader: DataReader) -> None:
        """Stop reading; after the return `receiver` is not called any more."""
        with self._lock:
            condition, _ = self._readers.pop(reader)
            self._waitset.detach(condition)
            delete(condition)

    def stop(self) -> None:
        """End the thread. All readers must have been removed."""
        self._running = False
        self._guard.set(True)
        self._thread.join()
        self._waitset.detach(self._guard)
        delete(self._waitset)
        delete(self._guard)

    def _run(self) -> None:
        while True:
            self._waitset.wait(dds_infinity)
            self._guard.take()  # before the look at the flag: a later stop triggers it again
            if not self._running:
                return
            with self._lock:
                ready = [item for item in self._readers.items() if item[1][0].is_triggered()]
            for reader, (_, receiver) in ready:
                self._take(reader, receiver)

    def _take(self, reader: DataReader, receiver: Receiver) -> None:
        with self._lock:
            if reader not in self._readers:
                return
            try:
                receiver(reader.take(TAKE_AT_ONCE))
            except Exception:  # whatever it is, the other readers must go on
                LOG.exception('lost samples of the topic %s', reader.topic.name)
