"""Nodes that are configured, activated, deactivated and cleaned up on request."""

import threading
import traceback
from collections.abc import Callable
from typing import NamedTuple

from lifecycle_msgs.msg import State, Transition, TransitionDescription, TransitionEvent
from lifecycle_msgs.srv import (
    ChangeState,
    GetAvailableStates,
    GetAvailableTransitions,
    GetState,
)

from rclpy._rclpy_pybind11 import RCLError
from rclpy.callback_groups import CallbackGroup
from rclpy.lifecycle.managed_entity import ManagedEntity
from rclpy.lifecycle.publisher import LifecyclePublisher
from rclpy.lifecycle.state_machine import (
    STATES,
    TRANSITIONS,
    StateMachine,
    TransitionCallbackReturn,
    TransitionRule,
)
from rclpy.node import Node

EVENT_DEPTH = 10


class LifecycleState(NamedTuple):
    """A state, as callbacks get it."""

    label: str
    state_id: int


class LifecycleNodeMixin(ManagedEntity):
    """Gives a Node its lifecycle; `Node.__init__` must have run before."""

    def __init__(self, *, enable_communication_interface: bool = True,
                 callback_group: CallbackGroup | None = None) -> None:
        self._state_machine = StateMachine()
        self._managed_entities: list[ManagedEntity] = []
        self._transition_lock = threading.RLock()
        self._event_publisher = None
        self._callbacks: dict[int, Callable] = {
            State.TRANSITION_STATE_CONFIGURING: self.on_configure,
            State.TRANSITION_STATE_CLEANINGUP: self.on_cleanup,
            State.TRANSITION_STATE_SHUTTINGDOWN: self.on_shutdown,
            State.TRANSITION_STATE_ACTIVATING: self.on_activate,
            State.TRANSITION_STATE_DEACTIVATING: self.on_deactivate,
            State.TRANSITION_STATE_ERRORPROCESSING: self.on_error,
        }
        if enable_communication_interface:
            self._serve_lifecycle(callback_group or self.default_callback_group)

    def _serve_lifecycle(self, group: CallbackGroup) -> None:
        self._event_publisher = self.create_publisher(
            TransitionEvent, '~/transition_event', EVENT_DEPTH)
        for srv_type, name, callback in (
                (ChangeState, 'change_state', self._on_change_state),
                (GetState, 'get_state', self._on_get_state),
                (GetAvailableStates, 'get_available_states', self._on_get_available_states),
                (GetAvailableTransitions, 'get_available_transitions',
                 self._on_get_available_transitions),
                (GetAvailableTransitions, 'get_transition_graph', self._on_get_graph)):
            self.create_service(srv_type, f'~/{name}', callback, callback_group=group)

    # -- transitions

    def trigger_configure(self) -> TransitionCallbackReturn:
        """Configure; as all `trigger_…`: RCLError when the state does not allow it."""
        return self._change_state(self._state_machine.find(
            number=Transition.TRANSITION_CONFIGURE))

    def trigger_cleanup(self) -> TransitionCallbackReturn:
        """Clean up."""
        return self._change_state(self._state_machine.find(number=Transition.TRANSITION_CLEANUP))

    def trigger_activate(self) -> TransitionCallbackReturn:
        """Activate."""
        return self._change_state(self._state_machine.find(number=Transition.TRANSITION_ACTIVATE))

    def trigger_deactivate(self) -> TransitionCallbackReturn:
        """Deactivate."""
        return self._change_state(self._state_machine.find(
            number=Transition.TRANSITION_DEACTIVATE))

    def trigger_shutdown(self) -> TransitionCallbackReturn:
        """Shut down, from any state that allows it."""
        return self._change_state(self._state_machine.find(label='shutdown'))

    def _change_state(self, rule: TransitionRule) -> TransitionCallbackReturn:
        """Follow a transition, run its callback, and follow what comes of it."""
        with self._transition_lock:
            before = LifecycleState(*reversed(self._state_machine.current_state))
            self._follow(rule)
            result = self._run_callback(before)
            self._follow(self._state_machine.find(label=result.to_label()))
            if self._state_machine.current_state[0] == State.TRANSITION_STATE_ERRORPROCESSING:
                recovery = self._run_callback(before)
                self._follow(self._state_machine.find(label=recovery.to_label()))
            return result

    def _run_callback(self, before: LifecycleState) -> TransitionCallbackReturn:
        number, label = self._state_machine.current_state
        try:
            return TransitionCallbackReturn(self._callbacks[number](before))
        except Exception:
            self.get_logger().error(f'error while {label}:\n{traceback.format_exc()}')
            return TransitionCallbackReturn.ERROR

    def _follow(self, rule: TransitionRule) -> None:
        start = self._state_machine.current_state
        self._state_machine.follow(rule)
        if self._event_publisher is not None and self.context.ok():
            goal = self._state_machine.current_state
            self._event_publisher.publish(TransitionEvent(
                timestamp=self.get_clock().now().nanoseconds,
                transition=Transition(id=rule.id, label=rule.label),
                start_state=State(id=start[0], label=start[1]),
                goal_state=State(id=goal[0], label=goal[1])))

    # -- managed entities

    def add_managed_entity(self, entity: ManagedEntity) -> None:
        """Let an entity take part in the transitions."""
        self._managed_entities.append(entity)

    def create_lifecycle_publisher(self, *args: object, **kwargs: object) -> LifecyclePublisher:
        """Create a publisher that is silent unless the node is active; see create_publisher."""
        publisher = self.create_publisher(*args, publisher_class=LifecyclePublisher, **kwargs)
        self.add_managed_entity(publisher)
        return publisher

    def destroy_lifecycle_publisher(self, publisher: LifecyclePublisher) -> bool:
        """Destroy such a publisher; False when it is not of this node."""
        if publisher in self._managed_entities:
            self._managed_entities.remove(publisher)
        return self.destroy_publisher(publisher)

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Configure the managed entities; override, and call this, to do more. So the others."""
        return self._propagate('on_configure', state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Clean up the managed entities."""
        return self._propagate('on_cleanup', state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Shut down the managed entities."""
        return self._propagate('on_shutdown', state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Activate the managed entities."""
        return self._propagate('on_activate', state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Deactivate the managed entities."""
        return self._propagate('on_deactivate', state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let the managed entities handle an error; SUCCESS leads to unconfigured."""
        return self._propagate('on_error', state)

    def _propagate(self, name: str, state: LifecycleState) -> TransitionCallbackReturn:
        for entity in self._managed_entities:
            result = getattr(entity, name)(state)
            if result is not TransitionCallbackReturn.SUCCESS:
                return result
        return TransitionCallbackReturn.SUCCESS

    # -- services

    def _on_change_state(self, request: object, response: object) -> object:
        wanted = request.transition
        try:
            rule = (self._state_machine.find(label=wanted.label) if wanted.label
                    else self._state_machine.find(number=wanted.id))
        except RCLError as error:
            self.get_logger().error(f'change_state refused: {error}')
            response.success = False
            return response
        response.success = self._change_state(rule) is TransitionCallbackReturn.SUCCESS
        return response

    def _on_get_state(self, request: object, response: object) -> object:
        number, label = self._state_machine.current_state
        response.current_state = State(id=number, label=label)
        return response

    def _on_get_available_states(self, request: object, response: object) -> object:
        response.available_states = [State(id=number, label=label)
                                     for number, label in STATES.items()]
        return response

    def _on_get_available_transitions(self, request: object, response: object) -> object:
        response.available_transitions = [
            _description(rule) for rule in self._state_machine.available_transitions]
        return response

    def _on_get_graph(self, request: object, response: object) -> object:
        response.available_transitions = [_description(rule) for rule in TRANSITIONS]
        return response


def _description(rule: TransitionRule) -> TransitionDescription:
    return TransitionDescription(
        transition=Transition(id=rule.id, label=rule.label),
        start_state=State(id=rule.start, label=STATES[rule.start]),
        goal_state=State(id=rule.goal, label=STATES[rule.goal]))


class LifecycleNode(LifecycleNodeMixin, Node):
    """A node with a lifecycle; it starts unconfigured."""

    def __init__(self, node_name: str, *, enable_communication_interface: bool = True,
                 **options: object) -> None:
        Node.__init__(self, node_name, **options)
        LifecycleNodeMixin.__init__(
            self, enable_communication_interface=enable_communication_interface)
