"""What nodes, topics and services exist: `ros_discovery_info` and DDS' own discovery."""

import threading
from dataclasses import dataclass, field

from cyclonedds.builtin import (
    BuiltinDataReader,
    BuiltinTopicDcpsParticipant,
    BuiltinTopicDcpsPublication,
    BuiltinTopicDcpsSubscription,
)
from cyclonedds.core import InstanceState, Policy, Qos
from cyclonedds.internal import dds_infinity
from rosbags.serde import SerdeError

from embedded_ros import distro
from embedded_ros.dds.names import dds_type_name
from embedded_ros.dds.participant import Participant
from embedded_ros.dds.payload import raw_bytes
from embedded_ros.dds.reactor import delete
from embedded_ros.typestore import deserialize, interface_store, serialize

TYPE = 'rmw_dds_common/msg/ParticipantEntitiesInfo'
TOPIC = 'ros_discovery_info'
GID_SIZE = {'jazzy': 16, 'humble': 24}
RELIABLE = Policy.Reliability.Reliable(dds_infinity)
TAKE_AT_ONCE = 256
BUILTIN_TOPICS = {'participants': BuiltinTopicDcpsParticipant,
                  'writers': BuiltinTopicDcpsPublication,
                  'readers': BuiltinTopicDcpsSubscription}


@dataclass(eq=False, kw_only=True)
class LocalNode:
    """A node of this context and the GUIDs of its endpoints."""

    namespace: str
    name: str
    readers: list[bytes] = field(default_factory=list)
    writers: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class GraphNode:
    """A node of any participant."""

    namespace: str
    name: str
    readers: frozenset[bytes]
    writers: frozenset[bytes]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A writer or reader that DDS has discovered."""

    guid: bytes
    topic: str  # as in DDS
    type: str  # as in DDS
    qos: Qos


class Graph:
    """Publishes this context's nodes and knows those of all."""

    def __init__(self, participant: Participant) -> None:
        self._participant = participant
        self._lock = threading.RLock()
        self._local: list[LocalNode] = []
        self._remote: dict[bytes, list[GraphNode]] = {}
        self._builtin: dict[str, BuiltinDataReader] = {}
        self._found: dict[str, dict[bytes, object]] = {name: {} for name in BUILTIN_TOPICS}
        store = interface_store()
        self._message, self._info, self._gid = (
            store.message_class(f'rmw_dds_common/msg/{name}')
            for name in ('ParticipantEntitiesInfo', 'NodeEntitiesInfo', 'Gid'))
        user_data = Policy.Userdata(f'typehash={store.type_hash(TYPE)};'.encode('ascii')
                                    if distro() == 'jazzy' else b'')
        common = [RELIABLE, Policy.Durability.TransientLocal, user_data]
        dds_type = dds_type_name(TYPE)
        self._writer = participant.create_writer(
            TOPIC, dds_type, [*common, Policy.History.KeepLast(1),
                              Policy.DurabilityService(0, Policy.History.KeepLast(1), -1, -1, -1)])
        participant.create_reader(TOPIC, dds_type, [*common, Policy.History.KeepAll],
                                  self._receive)

    def add_node(self, namespace: str, name: str) -> LocalNode:
        """Announce a node of this context."""
        node = LocalNode(namespace=namespace, name=name)
        with self._lock:
            self._local.append(node)
            self.publish()
        return node

    def remove_node(self, node: LocalNode) -> None:
        """Withdraw a node of this context."""
        with self._lock:
            self._local.remove(node)
            self.publish()

    def publish(self) -> None:
        """Tell the other participants about all nodes of this one."""
        with self._lock:
            infos = [self._info(node_namespace=node.namespace, node_name=node.name,
                                reader_gid_seq=[self._to_gid(guid) for guid in node.readers],
                                writer_gid_seq=[self._to_gid(guid) for guid in node.writers])
                     for node in self._local]
            message = self._message(gid=self._to_gid(self._participant.guid),
                                    node_entities_info_seq=infos)
            self._writer.write_raw(bytes(serialize(message)))

    def nodes(self) -> list[GraphNode]:
        """Return all nodes of participants that are alive."""
        with self._lock:
            alive = self._discover('participants')
            found = [GraphNode(namespace=node.namespace, name=node.name,
                               readers=frozenset(node.readers), writers=frozenset(node.writers))
                     for node in self._local]
            for participant in list(self._remote):
                if participant in alive:
                    found += self._remote[participant]
                else:
                    del self._remote[participant]
            return found

    def writers(self) -> list[Endpoint]:
        """Return all writers, also of plain DDS."""
        return self._endpoints('writers')

    def readers(self) -> list[Endpoint]:
        """Return all readers, also of plain DDS."""
        return self._endpoints('readers')

    def close(self) -> None:
        """Delete the builtin readers; the participant deletes the rest."""
        with self._lock:
            for reader in self._builtin.values():
                delete(reader._next_condition)
                delete(reader)
            self._builtin.clear()

    def _endpoints(self, kind: str) -> list[Endpoint]:
        with self._lock:
            return list(self._discover(kind).values())

    def _discover(self, kind: str) -> dict[bytes, object]:
        """Take what DDS has found since the last time. Who never asks never pays."""
        if kind not in self._builtin:
            self._builtin[kind] = BuiltinDataReader(self._participant.entity,
                                                    BUILTIN_TOPICS[kind])
        found = self._found[kind]
        while samples := self._builtin[kind].take(TAKE_AT_ONCE):
            for sample in samples:
                key = sample.key.bytes
                if sample.sample_info.instance_state != InstanceState.Alive:
                    found.pop(key, None)
                elif kind == 'participants':
                    found[key] = key
                elif sample.topic_name:
                    found[key] = Endpoint(guid=key, topic=sample.topic_name,
                                          type=sample.type_name, qos=sample.qos)
        return found

    def _receive(self, samples: list) -> None:
        """Keep what other participants say about their nodes (in the reactor's thread)."""
        for sample in samples:
            raw = raw_bytes(sample)
            if raw is None:
                continue
            try:
                message = deserialize(raw, self._message)
            except SerdeError:
                continue  # another distribution's form of the message: its nodes stay unknown
            guid = bytes(message.gid.data[:16])
            if guid != self._participant.guid:
                self._remote[guid] = [
                    GraphNode(namespace=info.node_namespace, name=info.node_name,
                              readers=frozenset(bytes(g.data[:16]) for g in info.reader_gid_seq),
                              writers=frozenset(bytes(g.data[:16]) for g in info.writer_gid_seq))
                    for info in message.node_entities_info_seq]

    def _to_gid(self, guid: bytes) -> object:
        return self._gid(data=list(guid.ljust(GID_SIZE[distro()], b'\0')))
