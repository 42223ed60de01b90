"""One DDS participant and all that belongs to it: a ROS context."""

import threading
from collections.abc import Iterable

from cyclonedds.core import Policy, Qos
from cyclonedds.domain import DomainParticipant
from cyclonedds.pub import Publisher
from cyclonedds.sub import DataReader, Subscriber
from cyclonedds.topic import Topic

from embedded_ros.dds.config import ensure_domain
from embedded_ros.dds.payload import payload_type
from embedded_ros.dds.reactor import Reactor, Receiver, delete
from embedded_ros.dds.writer import RawWriter

PLAIN_CDR = Policy.DataRepresentation(use_cdrv0_representation=True)


class Participant:
    """Creates and deletes endpoints; samples of readers come by way of its reactor."""

    def __init__(self, domain_id: int, enclave: str = '/') -> None:
        ensure_domain(domain_id)
        self.domain_id = domain_id
        user_data = Policy.Userdata(f'enclave={enclave};'.encode('ascii'))
        self.entity = DomainParticipant(domain_id, qos=Qos(user_data))
        self.guid: bytes = self.entity.guid.bytes
        self._publisher = Publisher(self.entity)
        self._subscriber = Subscriber(self.entity)
        self._topics: dict[tuple[str, str], Topic] = {}
        self._readers: set[DataReader] = set()
        self._writers: set[RawWriter] = set()
        self._lock = threading.RLock()
        self._reactor = Reactor(self.entity)

    def create_writer(self, topic: str, dds_type: str, policies: Iterable) -> RawWriter:
        """Return a new writer of ready bytes."""
        with self._lock:
            writer = RawWriter(self._publisher, self._topic(topic, dds_type),
                               qos=Qos(*policies, PLAIN_CDR,
                                       Policy.WriterDataLifecycle(autodispose=False)))
            self._writers.add(writer)
        return writer

    def create_reader(self, topic: str, dds_type: str, policies: Iterable,
                      receiver: Receiver) -> DataReader:
        """Return a new reader whose samples are given to `receiver` (in the reactor's thread)."""
        with self._lock:
            reader = DataReader(self._subscriber, self._topic(topic, dds_type),
                                qos=Qos(*policies, PLAIN_CDR))
            self._readers.add(reader)
            self._reactor.add(reader, receiver)
        return reader

    def delete_writer(self, writer: RawWriter) -> None:
        """Delete a writer; does nothing when it is gone already."""
        with self._lock:
            if writer in self._writers:
                self._writers.remove(writer)
                delete(writer)

    def delete_reader(self, reader: DataReader) -> None:
        """Delete a reader; its receiver is not called after the return."""
        with self._lock:
            if reader in self._readers:
                self._readers.remove(reader)
                self._reactor.remove(reader)
                delete(reader)

    def shutdown(self) -> None:
        """Delete everything, children first; nothing may be used after it."""
        with self._lock:
            for reader in list(self._readers):
                self.delete_reader(reader)
            for writer in list(self._writers):
                self.delete_writer(writer)
            self._reactor.stop()
            for entity in (*self._topics.values(), self._subscriber, self._publisher, self.entity):
                delete(entity)
            self._topics.clear()

    def _topic(self, name: str, dds_type: str) -> Topic:
        key = name, dds_type
        if key not in self._topics:
            self._topics[key] = Topic(self.entity, name, payload_type(dds_type))
        return self._topics[key]
