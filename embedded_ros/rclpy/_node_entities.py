"""What a node has: publishers, subscriptions, services, clients, timers, guard conditions."""

import threading
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from rclpy._rclpy_pybind11 import RCLError
from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup
from rclpy.client import Client
from rclpy.clock import Clock
from rclpy.context import Context
from rclpy.exceptions import TypeSupportNotFound
from rclpy.guard_condition import GuardCondition
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, qos_profile_services_default
from rclpy.service import Service
from rclpy.subscription import Subscription
from rclpy.timer import Rate, Timer, period_ns

if TYPE_CHECKING:
    from embedded_ros.dds.graph import LocalNode

    from rclpy.executors import Executor

KINDS = ('timers', 'subscriptions', 'guards', 'clients', 'services')  # in the order of their turns


class NodeEntities:
    """The part of Node that creates and destroys what has callbacks or endpoints."""

    _context: Context
    _clock: Clock
    _executor: 'Executor | None'
    _local: 'LocalNode'
    resolve_topic_name: Callable[[str], str]
    resolve_service_name: Callable[[str], str]

    def _init_entities(self) -> None:
        self._lock = threading.RLock()
        self._entities: dict[str, list] = {kind: [] for kind in (*KINDS, 'publishers')}
        self._rates: list[Rate] = []
        self._destroyed = False
        self._default_callback_group: CallbackGroup = MutuallyExclusiveCallbackGroup()

    @property
    def default_callback_group(self) -> CallbackGroup:
        """The (mutually exclusive) group of entities that are given none."""
        return self._default_callback_group

    @property
    def publishers(self) -> Iterator[Publisher]:
        """Its publishers."""
        yield from self._entities['publishers']

    @property
    def subscriptions(self) -> Iterator[Subscription]:
        """Its subscriptions."""
        yield from self._entities['subscriptions']

    @property
    def clients(self) -> Iterator[Client]:
        """Its service clients."""
        yield from self._entities['clients']

    @property
    def services(self) -> Iterator[Service]:
        """Its services."""
        yield from self._entities['services']

    @property
    def timers(self) -> Iterator[Timer]:
        """Its timers."""
        yield from self._entities['timers']

    @property
    def guards(self) -> Iterator[GuardCondition]:
        """Its guard conditions."""
        yield from self._entities['guards']

    # -- what it has

    def create_publisher(self, msg_type: type, topic: str, qos_profile: QoSProfile | int, *,
                         callback_group: CallbackGroup | None = None,
                         publisher_class: type[Publisher] = Publisher) -> Publisher:
        """Publish on a topic; an int is the depth of a reliable, volatile profile."""
        self._require(msg_type)
        return self._create('publishers', publisher_class(
            self, msg_type, self.resolve_topic_name(topic), _profile(qos_profile)))

    def create_subscription(self, msg_type: type, topic: str, callback: Callable[..., Any],
                            qos_profile: QoSProfile | int, *,
                            callback_group: CallbackGroup | None = None,
                            raw: bool = False) -> Subscription:
        """Call back for each message of a topic; with `raw` the callback gets its CDR."""
        self._require(msg_type)
        return self._create('subscriptions', Subscription(
            self, msg_type, self.resolve_topic_name(topic), callback,
            callback_group or self._default_callback_group, _profile(qos_profile), raw))

    def create_service(self, srv_type: type, srv_name: str, callback: Callable, *,
                       qos_profile: QoSProfile = qos_profile_services_default,
                       callback_group: CallbackGroup | None = None) -> Service:
        """Answer requests by `callback(request, response)`, which returns the response."""
        self._require(srv_type)
        return self._create('services', Service(
            self, srv_type, self.resolve_service_name(srv_name), callback,
            callback_group or self._default_callback_group, qos_profile))

    def create_client(self, srv_type: type, srv_name: str, *,
                      qos_profile: QoSProfile = qos_profile_services_default,
                      callback_group: CallbackGroup | None = None) -> Client:
        """Make requests of a service."""
        self._require(srv_type)
        return self._create('clients', Client(
            self, srv_type, self.resolve_service_name(srv_name),
            callback_group or self._default_callback_group, qos_profile))

    def create_timer(self, timer_period_sec: float, callback: Callable[[], Any] | None,
                     callback_group: CallbackGroup | None = None, clock: Clock | None = None,
                     autostart: bool = True) -> Timer:
        """Call back each period of a clock, ROS time by default."""
        return self._create('timers', Timer(
            callback, callback_group or self._default_callback_group, period_ns(timer_period_sec),
            clock or self._clock, autostart=autostart, wake=self._wake))

    def create_guard_condition(self, callback: Callable,
                               callback_group: CallbackGroup | None = None) -> GuardCondition:
        """Call back when the condition is triggered."""
        return self._create('guards', GuardCondition(
            callback, callback_group or self._default_callback_group, self._wake))

    def create_rate(self, frequency: float, clock: Clock | None = None) -> Rate:
        """Return what sleeps to the beat of a frequency in hertz; another thread must spin."""
        if frequency <= 0:
            raise ValueError(f'frequency must be > 0, it is {frequency}')
        group = MutuallyExclusiveCallbackGroup()
        timer = self.create_timer(1.0 / frequency, None, group, clock)
        rate = Rate(timer, context=self._context)
        self._rates.append(rate)
        return rate

    # -- destroying

    def destroy_publisher(self, publisher: Publisher) -> bool:
        """Destroy a publisher; False when it is not of this node."""
        return self._remove('publishers', publisher)

    def destroy_subscription(self, subscription: Subscription) -> bool:
        """Destroy a subscription; False when it is not of this node."""
        return self._remove('subscriptions', subscription)

    def destroy_client(self, client: Client) -> bool:
        """Destroy a client; False when it is not of this node."""
        return self._remove('clients', client)

    def destroy_service(self, service: Service) -> bool:
        """Destroy a service; False when it is not of this node."""
        return self._remove('services', service)

    def destroy_timer(self, timer: Timer) -> bool:
        """Destroy a timer; False when it is not of this node."""
        return self._remove('timers', timer)

    def destroy_guard_condition(self, guard: GuardCondition) -> bool:
        """Destroy a guard condition; False when it is not of this node."""
        return self._remove('guards', guard)

    def destroy_rate(self, rate: Rate) -> bool:
        """Destroy a rate; False when it is not of this node."""
        if rate not in self._rates:
            return False
        self._rates.remove(rate)
        rate.destroy()
        return self._remove('timers', rate._timer)

    # -- inside

    def _create(self, kind: str, entity: Any) -> Any:
        """Keep a new entity and tell the graph of its endpoints."""
        with self._lock:
            self._entities[kind] = [*self._entities[kind], entity]
            if kind != 'publishers':
                entity.callback_group.add_entity(entity)
            if self._update_endpoints(entity, list.append):
                self._context.graph.publish()
        self._wake()
        return entity

    def _remove(self, kind: str, entity: Any, *, announce: bool = True) -> bool:
        """Destroy an entity; False when it is not of this node."""
        with self._lock:
            if entity not in self._entities[kind]:
                return False
            self._entities[kind] = [other for other in self._entities[kind] if other is not entity]
            if kind != 'publishers':
                entity.callback_group.remove_entity(entity)
            changed = self._update_endpoints(entity, list.remove)
            entity.destroy()
            if changed and announce and self._context.ok():
                self._context.graph.publish()
        return True

    def _update_endpoints(self, entity: Any, change: Callable[[list, bytes], None]) -> bool:
        """Add or remove an entity's GUIDs in what the graph says; tells whether it has any."""
        readers, writers = getattr(entity, 'guids', ((), ()))
        for guid in readers:
            change(self._local.readers, guid)
        for guid in writers:
            change(self._local.writers, guid)
        return bool(readers or writers)

    def _executable_entities(self) -> Iterator[Any]:
        """Return what may have callbacks to run."""
        return chain(*(self._entities[kind] for kind in KINDS))

    def _wake(self) -> None:
        executor = self._executor
        if executor is not None:
            executor.wake()

    def _require(self, interface: type) -> None:
        if not hasattr(interface, 'ros_type_name'):
            raise TypeSupportNotFound(interface)
        if not self._context.ok():
            raise RCLError(f'cannot create endpoints of {interface.ros_type_name}: the context '
                           'is not valid (shut down)')


def _profile(qos: QoSProfile | int) -> QoSProfile:
    if isinstance(qos, QoSProfile):
        return qos
    if isinstance(qos, int) and not isinstance(qos, bool):
        if qos < 0:
            raise ValueError(f'history depth must be greater than or equal to zero, not {qos}')
        return QoSProfile(depth=qos)
    raise TypeError(f'Expected QoSProfile or int, but received {type(qos)!r}')
