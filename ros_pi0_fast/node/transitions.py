"""Transitions of the lifecycle that tell why they failed, and in what state the node is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

if TYPE_CHECKING:
    from ros_pi0_fast.node.policy_node import PolicyNode

TRANSITIONS = {'on_configure': ('configuring', 'inactive'),
               'on_activate': ('activating', 'active'),
               'on_deactivate': ('deactivating', 'inactive'),
               'on_cleanup': ('cleaningup', 'unconfigured'),
               'on_shutdown': ('shuttingdown', 'finalized'),
               'on_error': ('errorprocessing', 'unconfigured')}
"""Callback -> state on the way, and state if it succeeds."""

Transition = Callable[['PolicyNode', LifecycleState], TransitionCallbackReturn]


class Stopped(RuntimeError):  # noqa: N818
    """The node is to end while it is being configured."""


def transition(callback: Transition) -> Transition:
    """Run one transition at a time, and tell why one failed: rclpy itself keeps that silent."""
    @functools.wraps(callback)
    def run(node: PolicyNode, state: LifecycleState) -> TransitionCallbackReturn:
        with node.in_transition:
            before = node.state
            node.state, reached = TRANSITIONS[callback.__name__]
            try:
                result = callback(node, state)
            except Stopped:
                node.get_logger().info('stopped on the way')
                result = TransitionCallbackReturn.FAILURE
            except Exception as error:  # Whatever it is, its cause is told and the node stays up.
                node.problem = (f'cannot {callback.__name__.removeprefix("on_")}: '
                                f'{type(error).__name__}: {error}')
                node.get_logger().error(node.problem)
                result = TransitionCallbackReturn.ERROR
            succeeded = result == TransitionCallbackReturn.SUCCESS
            node.state = reached if succeeded else before
            if succeeded and callback.__name__ != 'on_error':
                node.problem = ''
            return result
    return run
