"""The default lifecycle of rcl_lifecycle: its states and transitions."""

from dataclasses import dataclass
from enum import Enum

from lifecycle_msgs.msg import State, Transition

from rclpy._rclpy_pybind11 import RCLError


class TransitionCallbackReturn(Enum):
    """How a transition's callback ended."""

    SUCCESS = Transition.TRANSITION_CALLBACK_SUCCESS
    FAILURE = Transition.TRANSITION_CALLBACK_FAILURE
    ERROR = Transition.TRANSITION_CALLBACK_ERROR

    def to_label(self) -> str:
        """Return the label of the transition that follows."""
        return f'transition_{self.name.lower()}'


@dataclass(frozen=True)
class TransitionRule:
    """One arrow of the state machine; states by number."""

    id: int
    label: str
    start: int
    goal: int


STATES = {
    State.PRIMARY_STATE_UNKNOWN: 'unknown',
    State.PRIMARY_STATE_UNCONFIGURED: 'unconfigured',
    State.PRIMARY_STATE_INACTIVE: 'inactive',
    State.PRIMARY_STATE_ACTIVE: 'active',
    State.PRIMARY_STATE_FINALIZED: 'finalized',
    State.TRANSITION_STATE_CONFIGURING: 'configuring',
    State.TRANSITION_STATE_CLEANINGUP: 'cleaningup',
    State.TRANSITION_STATE_SHUTTINGDOWN: 'shuttingdown',
    State.TRANSITION_STATE_ACTIVATING: 'activating',
    State.TRANSITION_STATE_DEACTIVATING: 'deactivating',
    State.TRANSITION_STATE_ERRORPROCESSING: 'errorprocessing',
}

_UNCONFIGURED, _INACTIVE = State.PRIMARY_STATE_UNCONFIGURED, State.PRIMARY_STATE_INACTIVE
_ACTIVE, _FINALIZED = State.PRIMARY_STATE_ACTIVE, State.PRIMARY_STATE_FINALIZED
_ERROR = State.TRANSITION_STATE_ERRORPROCESSING
_REQUESTS = (
    ('configure', Transition.TRANSITION_CONFIGURE, _UNCONFIGURED,
     State.TRANSITION_STATE_CONFIGURING),
    ('shutdown', Transition.TRANSITION_UNCONFIGURED_SHUTDOWN, _UNCONFIGURED,
     State.TRANSITION_STATE_SHUTTINGDOWN),
    ('cleanup', Transition.TRANSITION_CLEANUP, _INACTIVE, State.TRANSITION_STATE_CLEANINGUP),
    ('activate', Transition.TRANSITION_ACTIVATE, _INACTIVE, State.TRANSITION_STATE_ACTIVATING),
    ('shutdown', Transition.TRANSITION_INACTIVE_SHUTDOWN, _INACTIVE,
     State.TRANSITION_STATE_SHUTTINGDOWN),
    ('deactivate', Transition.TRANSITION_DEACTIVATE, _ACTIVE,
     State.TRANSITION_STATE_DEACTIVATING),
    ('shutdown', Transition.TRANSITION_ACTIVE_SHUTDOWN, _ACTIVE,
     State.TRANSITION_STATE_SHUTTINGDOWN),
)
# state while the callback runs -> first number, then where success, failure and error lead
_ENDINGS = (
    (State.TRANSITION_STATE_CONFIGURING, Transition.TRANSITION_ON_CONFIGURE_SUCCESS,
     (_INACTIVE, _UNCONFIGURED, _ERROR)),
    (State.TRANSITION_STATE_CLEANINGUP, Transition.TRANSITION_ON_CLEANUP_SUCCESS,
     (_UNCONFIGURED, _INACTIVE, _ERROR)),
    (State.TRANSITION_STATE_ACTIVATING, Transition.TRANSITION_ON_ACTIVATE_SUCCESS,
     (_ACTIVE, _INACTIVE, _ERROR)),
    (State.TRANSITION_STATE_DEACTIVATING, Transition.TRANSITION_ON_DEACTIVATE_SUCCESS,
     (_INACTIVE, _ACTIVE, _ERROR)),
    (State.TRANSITION_STATE_SHUTTINGDOWN, Transition.TRANSITION_ON_SHUTDOWN_SUCCESS,
     (_FINALIZED, _FINALIZED, _ERROR)),
    (_ERROR, Transition.TRANSITION_ON_ERROR_SUCCESS, (_UNCONFIGURED, _FINALIZED, _FINALIZED)),
)
TRANSITIONS = tuple(
    TransitionRule(number, label, start, goal) for label, number, start, goal in _REQUESTS
) + tuple(
    TransitionRule(first + offset, result.to_label(), start, goals[offset])
    for start, first, goals in _ENDINGS
    for offset, result in enumerate(TransitionCallbackReturn))


class StateMachine:
    """Where a node is in its lifecycle."""

    def __init__(self) -> None:
        self._state = State.PRIMARY_STATE_UNCONFIGURED

    @property
    def current_state(self) -> tuple[int, str]:
        """Number and label of the state."""
        return self._state, STATES[self._state]

    @property
    def available_transitions(self) -> list[TransitionRule]:
        """The transitions that leave the state."""
        return [rule for rule in TRANSITIONS if rule.start == self._state]

    def find(self, *, number: int | None = None, label: str | None = None) -> TransitionRule:
        """Return a transition that leaves the state; raises RCLError when there is none such."""
        for rule in self.available_transitions:
            if rule.id == number or (label is not None and rule.label == label):
                return rule
        wanted = label if label is not None else number
        raise RCLError(f'No transition {wanted!r} leaves the state {STATES[self._state]!r}; '
                       f'there are: {", ".join(r.label for r in self.available_transitions)}')

    def follow(self, rule: TransitionRule) -> None:
        """Go where a transition leads."""
        self._state = rule.goal
