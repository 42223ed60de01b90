"""Nodes."""

from typing import TYPE_CHECKING

from rcl_interfaces.msg import ParameterEvent

from rclpy._arguments import RosArguments, parse_arguments
from rclpy._names import check_namespace, check_node_name, expand, remap_name, remap_node
from rclpy._node_entities import KINDS, NodeEntities
from rclpy._node_graph import NodeGraph
from rclpy._node_parameters import NodeParameters
from rclpy._rosout import Rosout
from rclpy.clock import Clock, ROSClock
from rclpy.context import Context
from rclpy.exceptions import NotInitializedException
from rclpy.logging import RcutilsLogger, get_logger
from rclpy.parameter import Parameter
from rclpy.parameter_service import ParameterService
from rclpy.qos import qos_profile_parameter_events
from rclpy.time_source import TimeSource
from rclpy.utilities import get_default_context

if TYPE_CHECKING:
    from rclpy.executors import Executor


class Node(NodeEntities, NodeParameters, NodeGraph):
    """A node: publishers, subscriptions, services, clients, timers, parameters."""

    def __init__(
        self, node_name: str, *, context: Context | None = None,
        cli_args: list[str] | None = None, namespace: str | None = None,
        use_global_arguments: bool = True, enable_rosout: bool = True,
        start_parameter_services: bool = True,
        parameter_overrides: list[Parameter] | None = None,
        allow_undeclared_parameters: bool = False,
        automatically_declare_parameters_from_overrides: bool = False,
    ) -> None:
        """Create the node in a context that runs.

        Raises NotInitializedException, InvalidNodeNameException, InvalidNamespaceException.
        """
        self._context = context or get_default_context()
        if not self._context.ok():
            raise NotInitializedException('cannot create node')
        arguments = self._context.arguments if use_global_arguments else RosArguments()
        if cli_args is not None:
            arguments = arguments.merged(parse_arguments(cli_args))
        self._remaps = arguments.remaps
        self._name, self._namespace = _valid_names(node_name, namespace or '', self._remaps)
        self._executor: Executor | None = None
        self._init_entities()
        self._clock = ROSClock()
        self._logger = get_logger(self.get_fully_qualified_name().strip('/').replace('/', '.'))
        self._local = self._context.graph.add_node(self._namespace, self._name)
        self._context.add_node(self)
        self._time_source: TimeSource | None = None
        self._rosout: Rosout | None = None
        try:
            if enable_rosout and '--disable-rosout-logs' not in arguments.flags:
                self._rosout = Rosout(self)
            self._init_parameters(self._collect_overrides(arguments, parameter_overrides or []),
                                  allow_undeclared_parameters)
            self._start_parameters(automatically_declare_parameters_from_overrides,
                                   start_parameter_services)
        except BaseException:
            self.destroy_node()
            raise

    def _start_parameters(self, declare_overrides: bool, serve: bool) -> None:
        """Publish events, declare what is always there, and serve the parameters."""
        self._parameter_event_publisher = self.create_publisher(
            ParameterEvent, '/parameter_events', qos_profile_parameter_events)
        if declare_overrides:
            for name, parameter in self._parameter_overrides.items():
                self.declare_parameter(name, parameter.value)
        self._time_source = TimeSource(self)
        if serve:
            ParameterService(self)

    def _collect_overrides(self, arguments: RosArguments,
                           own: list[Parameter]) -> dict[str, Parameter]:
        """Return the values for this node: of the arguments, in order, then those of the code."""
        found = {}
        for rule in arguments.parameters:
            if rule.fits(self.get_fully_qualified_name()):
                try:
                    found[rule.name] = Parameter(rule.name, value=rule.value)
                except TypeError as error:
                    raise ValueError(f'parameter {rule.name!r} of node {rule.pattern!r}: '
                                     f'{error}') from error
        found.update({parameter.name: parameter for parameter in own})
        return found

    # -- what it is

    @property
    def context(self) -> Context:
        """The context that it was created in."""
        return self._context

    @property
    def executor(self) -> 'Executor | None':
        """The executor that serves it."""
        return self._executor

    @executor.setter
    def executor(self, new_executor: 'Executor | None') -> None:
        current = self._executor
        if current is new_executor:
            return
        self._executor = new_executor
        if current is not None:
            current.remove_node(self)
        if new_executor is not None:
            new_executor.add_node(self)

    def get_name(self) -> str:
        """Return its name without the namespace."""
        return self._name

    def get_namespace(self) -> str:
        """Return its namespace, which starts with a slash."""
        return self._namespace

    def get_fully_qualified_name(self) -> str:
        """Return its namespace and name."""
        return f'{self._namespace.rstrip("/")}/{self._name}'

    def get_clock(self) -> Clock:
        """Return its clock: ROS time."""
        return self._clock

    def get_logger(self) -> RcutilsLogger:
        """Return its logger."""
        return self._logger

    def resolve_topic_name(self, topic: str, *, only_expand: bool = False) -> str:
        """Return a topic's full name, remapped; raises InvalidTopicNameException."""
        full = expand(topic, self._name, self._namespace)
        return full if only_expand else remap_name(full, self._remaps, self._name, self._namespace)

    def resolve_service_name(self, service: str, *, only_expand: bool = False) -> str:
        """Return a service's full name, remapped; raises InvalidServiceNameException."""
        full = expand(service, self._name, self._namespace, is_service=True)
        return full if only_expand else remap_name(full, self._remaps, self._name,
                                                   self._namespace, is_service=True)

    # -- its end

    def destroy_node(self) -> None:
        """Destroy all that it has and leave the graph. May be called twice."""
        with self._lock:
            if self._destroyed:
                return
            self._destroyed = True
        self.executor = None
        if self._time_source is not None:
            self._time_source.detach()
        for rate in list(self._rates):
            self.destroy_rate(rate)
        if self._rosout is not None:
            self._rosout.close()
        self._parameter_event_publisher = None
        for kind in (*KINDS, 'publishers'):
            for entity in self._entities[kind]:
                self._remove(kind, entity, announce=False)
        self._context.remove_node(self, self._local)


def _valid_names(name: str, namespace: str, rules: list) -> tuple[str, str]:
    """Return a node's remapped name and absolute namespace; raises when they are not valid."""
    namespace = namespace if namespace.startswith('/') else f'/{namespace}'
    check_node_name(name)
    check_namespace(namespace)
    name, namespace = remap_node(name, namespace, rules)
    check_node_name(name)
    check_namespace(namespace)
    return name, namespace
