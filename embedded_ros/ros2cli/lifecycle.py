"""`ros2 lifecycle nodes|get|list|set`; output as ros2lifecycle prints it."""

import argparse

from lifecycle_msgs.srv import ChangeState, GetAvailableTransitions, GetState
from rclpy.node import Node

from ros2cli.errors import CommandError, did_you_mean
from ros2cli.graph import (
    add_graph_arguments,
    command_node,
    node_names,
    require_node,
    spin_until,
    wait_for_graph,
)
from ros2cli.main import add_verbs
from ros2cli.service import call

# A transition's own work (loading weights, compiling) may take minutes.
TRANSITION_TIMEOUT = 600.0  # s


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verbs of `ros2 lifecycle`."""
    verbs = add_verbs(parser)
    nodes_parser = verbs.add_parser('nodes', help='Output a list of nodes with lifecycle')
    nodes_parser.add_argument('-c', '--count-nodes', action='store_true',
                              help='Only display the number of nodes discovered')
    nodes_parser.set_defaults(main=list_nodes)
    get_parser = verbs.add_parser('get', help='Get lifecycle state for one or more nodes')
    get_parser.add_argument('node_name', nargs='?', help='Name of the ROS node; all if left out')
    get_parser.set_defaults(main=get)
    list_parser = verbs.add_parser('list', help='Output a list of available transitions')
    list_parser.add_argument('node_name', help='Name of the ROS node')
    list_parser.add_argument('-a', '--all', action='store_true',
                             help='Display all existing transitions')
    list_parser.set_defaults(main=list_transitions)
    set_parser = verbs.add_parser('set', help='Trigger lifecycle state transition')
    set_parser.add_argument('node_name', help='Name of the ROS node')
    set_parser.add_argument('transition', help='The lifecycle transition, by label or id')
    set_parser.set_defaults(main=set_state)
    for verb in (nodes_parser, get_parser, list_parser, set_parser):
        add_graph_arguments(verb)


def lifecycle_nodes(node: Node) -> list[str]:
    """Return the full names of the nodes that serve `get_state`."""
    services = dict(node.get_service_names_and_types())
    return [name.full_name for name in node_names(node) if
            'lifecycle_msgs/srv/GetState' in services.get(f'{name.full_name}/get_state', [])]


def require_lifecycle_node(node: Node, name: str, timeout: float) -> str:
    """Wait for a lifecycle node and return its full name; raises CommandError."""
    full_name = require_node(node, name, timeout).full_name
    if not spin_until(node, lambda: full_name in lifecycle_nodes(node), timeout):
        raise CommandError(f"'{full_name}' is not a lifecycle node"
                           + did_you_mean(full_name, lifecycle_nodes(node)))
    return full_name


def list_nodes(args: argparse.Namespace) -> None:
    """Print the nodes with a lifecycle."""
    with command_node() as node:
        wait_for_graph(node, args.spin_time)
        names = lifecycle_nodes(node)
    print(*([len(names)] if args.count_nodes else names), sep='\n')


def get(args: argparse.Namespace) -> None:
    """Print the state of one node, or of all with their names."""
    with command_node() as node:
        if args.node_name:
            names = [require_lifecycle_node(node, args.node_name, args.spin_time)]
        else:
            wait_for_graph(node, args.spin_time)
            names = lifecycle_nodes(node)
        for name in names:
            state = call(node, GetState, f'{name}/get_state', GetState.Request()).current_state
            prefix = '' if args.node_name else f'{name}: '
            print(f'{prefix}{state.label} [{state.id}]')


def transitions_of(node: Node, name: str, service: str = 'get_available_transitions') -> list:
    """Return a node's TransitionDescription messages."""
    return list(call(node, GetAvailableTransitions, f'{name}/{service}',
                     GetAvailableTransitions.Request()).available_transitions)


def list_transitions(args: argparse.Namespace) -> None:
    """Print the transitions that the node can make now, or all that exist."""
    with command_node() as node:
        name = require_lifecycle_node(node, args.node_name, args.spin_time)
        found = transitions_of(node, name, 'get_transition_graph' if args.all
                               else 'get_available_transitions')
    for each in found:
        print(f'- {each.transition.label} [{each.transition.id}]\n'
              f'\tStart: {each.start_state.label}\n\tGoal: {each.goal_state.label}')


def set_state(args: argparse.Namespace) -> None:
    """Make a node perform a transition; exit code 1 when it fails."""
    with command_node() as node:
        name = require_lifecycle_node(node, args.node_name, args.spin_time)
        available = [each.transition for each in transitions_of(node, name)]
        chosen = ([t for t in available if t.label == args.transition]
                  or [t for t in available if str(t.id) == args.transition])
        if not chosen:
            raise CommandError('Unknown transition requested, available ones are:'
                               + ''.join(f'\n- {t.label} [{t.id}]' for t in available))
        request = ChangeState.Request()
        request.transition = chosen[0]
        if not call(node, ChangeState, f'{name}/change_state', request,
                    TRANSITION_TIMEOUT).success:
            raise CommandError('Transitioning failed')
    print('Transitioning successful')
