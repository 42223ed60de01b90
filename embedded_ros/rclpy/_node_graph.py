"""What a node sees of the ROS graph."""

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from embedded_ros.dds import names
from embedded_ros.dds.graph import GID_SIZE, Endpoint, GraphNode

from embedded_ros import distro
from rclpy._qos_mapping import profile_of
from rclpy._user_data import parse_user_data
from rclpy.topic_endpoint_info import TopicEndpointInfo, TopicEndpointTypeEnum

if TYPE_CHECKING:
    from rclpy.context import Context

WAIT_PERIOD = 0.05  # seconds between looks for a node
NamesAndTypes = list[tuple[str, list[str]]]
UNKNOWN_NODE = '_NODE_NAME_UNKNOWN_', '_NODE_NAMESPACE_UNKNOWN_'


class NodeNameNonExistentError(RuntimeError):
    """A node is asked about that the graph does not know."""


class NodeGraph:
    """The part of Node that asks the graph."""

    _context: 'Context'
    resolve_topic_name: Callable[..., str]

    def get_node_names_and_namespaces(self) -> list[tuple[str, str]]:
        """Return name and namespace of all nodes."""
        return [(node.name, node.namespace) for node in self._context.graph.nodes()]

    def get_node_names(self) -> list[str]:
        """Return the names of all nodes."""
        return [name for name, _ in self.get_node_names_and_namespaces()]

    def get_fully_qualified_node_names(self) -> list[str]:
        """Return the full names of all nodes."""
        return [f'{namespace.rstrip("/")}/{name}'
                for name, namespace in self.get_node_names_and_namespaces()]

    def get_topic_names_and_types(self, no_demangle: bool = False) -> NamesAndTypes:
        """Return all topics with their types; with `no_demangle` those of DDS, as they are."""
        graph = self._context.graph
        endpoints = [*graph.writers(), *graph.readers()]
        if no_demangle:
            return _collect((e.topic, e.type) for e in endpoints)
        return _collect(map(_topic, endpoints))

    def get_service_names_and_types(self) -> NamesAndTypes:
        """Return all services with their types."""
        return _collect(map(_service, self._context.graph.readers()))

    def get_publisher_names_and_types_by_node(
            self, node_name: str, node_namespace: str, no_demangle: bool = False) -> NamesAndTypes:
        """Return the topics that a node publishes; raises NodeNameNonExistentError."""
        guids = self._node(node_name, node_namespace).writers
        return _collect(_topic(e) for e in self._context.graph.writers() if e.guid in guids)

    def get_subscriber_names_and_types_by_node(
            self, node_name: str, node_namespace: str, no_demangle: bool = False) -> NamesAndTypes:
        """Return the topics that a node subscribes to; raises NodeNameNonExistentError."""
        guids = self._node(node_name, node_namespace).readers
        return _collect(_topic(e) for e in self._context.graph.readers() if e.guid in guids)

    def get_service_names_and_types_by_node(self, node_name: str,
                                            node_namespace: str) -> NamesAndTypes:
        """Return the services that a node serves; raises NodeNameNonExistentError."""
        guids = self._node(node_name, node_namespace).readers
        return _collect(_service(e) for e in self._context.graph.readers()
                        if e.guid in guids and e.topic.startswith('rq/'))

    def get_client_names_and_types_by_node(self, node_name: str,
                                           node_namespace: str) -> NamesAndTypes:
        """Return the services that a node calls; raises NodeNameNonExistentError."""
        guids = self._node(node_name, node_namespace).writers
        return _collect(_service(e) for e in self._context.graph.writers()
                        if e.guid in guids and e.topic.startswith('rq/'))

    def count_publishers(self, topic_name: str) -> int:
        """Return how many publishers a topic has."""
        return self._count(self._context.graph.writers(), topic_name)

    def count_subscribers(self, topic_name: str) -> int:
        """Return how many subscriptions a topic has."""
        return self._count(self._context.graph.readers(), topic_name)

    def get_publishers_info_by_topic(self, topic_name: str,
                                     no_mangle: bool = False) -> list[TopicEndpointInfo]:
        """Return what is known of a topic's publishers."""
        return self._infos(self._context.graph.writers(), topic_name, no_mangle,
                           TopicEndpointTypeEnum.PUBLISHER)

    def get_subscriptions_info_by_topic(self, topic_name: str,
                                        no_mangle: bool = False) -> list[TopicEndpointInfo]:
        """Return what is known of a topic's subscriptions."""
        return self._infos(self._context.graph.readers(), topic_name, no_mangle,
                           TopicEndpointTypeEnum.SUBSCRIPTION)

    def wait_for_node(self, fully_qualified_node_name: str, timeout: float) -> bool:
        """Wait until a node is in the graph; False after `timeout` seconds."""
        end = time.monotonic() + timeout
        wanted = f'/{fully_qualified_node_name.lstrip("/")}'
        while self._context.ok():
            if wanted in self.get_fully_qualified_node_names():
                return True
            left = end - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(WAIT_PERIOD, left))
        return False

    def _node(self, name: str, namespace: str) -> GraphNode:
        for node in self._context.graph.nodes():
            if (node.name, node.namespace) == (name, namespace):
                return node
        raise NodeNameNonExistentError(
            f'Cannot get names and types for nonexistent node {namespace.rstrip("/")}/{name}')

    def _count(self, endpoints: list[Endpoint], topic_name: str) -> int:
        wanted = names.topic_name(self.resolve_topic_name(topic_name))
        return sum(endpoint.topic == wanted for endpoint in endpoints)

    def _has_server(self, service: str) -> bool:
        """Tell whether one participant has both endpoints of a server."""
        graph = self._context.graph
        request, reply = names.request_name(service), names.reply_name(service)
        readers = {e.guid[:12] for e in graph.readers() if e.topic == request}
        return any(e.topic == reply and e.guid[:12] in readers for e in graph.writers())

    def _infos(self, endpoints: list[Endpoint], topic_name: str, no_mangle: bool,
               kind: TopicEndpointTypeEnum) -> list[TopicEndpointInfo]:
        wanted = topic_name if no_mangle else names.topic_name(
            self.resolve_topic_name(topic_name))
        owners = {guid: (node.name, node.namespace) for node in self._context.graph.nodes()
                  for guid in (node.readers | node.writers)}
        found = []
        for endpoint in endpoints:
            if endpoint.topic == wanted:
                name, namespace = owners.get(endpoint.guid, UNKNOWN_NODE)
                found.append(TopicEndpointInfo(
                    node_name=name, node_namespace=namespace,
                    topic_type=names.ros_type_name(endpoint.type) or endpoint.type,
                    topic_type_hash=parse_user_data(endpoint.qos).get('typehash', 'INVALID'),
                    endpoint_type=kind,
                    endpoint_gid=list(endpoint.guid.ljust(GID_SIZE[distro()], b'\0')),
                    qos_profile=profile_of(endpoint.qos)))
        return found


def _topic(endpoint: Endpoint) -> tuple[str, str] | None:
    topic, kind = names.ros_topic_name(endpoint.topic), names.ros_type_name(endpoint.type)
    return (topic, kind) if topic and kind else None


def _service(endpoint: Endpoint) -> tuple[str, str] | None:
    service, kind = names.ros_service_name(endpoint.topic), names.service_type_name(endpoint.type)
    return (service, kind) if service and kind else None


def _collect(pairs: Iterable[tuple[str, str] | None]) -> NamesAndTypes:
    found: dict[str, set[str]] = {}
    for pair in pairs:
        if pair is not None:
            found.setdefault(pair[0], set()).add(pair[1])
    return [(name, sorted(types)) for name, types in sorted(found.items())]
