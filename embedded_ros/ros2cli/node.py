"""`ros2 node list|info`; output as ros2node prints it."""

import argparse

from ros2cli.graph import (
    NodeName,
    add_graph_arguments,
    command_node,
    is_hidden,
    node_names,
    require_node,
    wait_for_graph,
)
from ros2cli.main import add_verbs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verbs of `ros2 node`."""
    verbs = add_verbs(parser)
    list_parser = verbs.add_parser('list', help='Output a list of available nodes')
    list_parser.add_argument('-a', '--all', action='store_true',
                             help='Display all nodes even hidden ones')
    list_parser.add_argument('-c', '--count-nodes', action='store_true',
                             help='Only display the number of nodes discovered')
    list_parser.set_defaults(main=list_nodes)
    info_parser = verbs.add_parser('info', help='Output information about a node')
    info_parser.add_argument('node_name', help='Node name to request information')
    info_parser.add_argument('--include-hidden', action='store_true',
                             help='Display hidden topics and services as well')
    info_parser.set_defaults(main=info)
    for verb in (list_parser, info_parser):
        add_graph_arguments(verb)


def list_nodes(args: argparse.Namespace) -> None:
    """Print the nodes of the graph, a warning first when two share a name."""
    with command_node() as node:
        wait_for_graph(node, args.spin_time)
        names = [name.full_name for name in node_names(node, hidden=args.all)]
    if args.count_nodes:
        print(len(names))
        return
    if len(set(names)) < len(names):
        print('WARNING: Be aware that there are nodes in the graph that share an exact name, '
              'which can have unintended side effects.')
    for name in names:
        print(name)


def info(args: argparse.Namespace) -> None:
    """Print what a node subscribes, publishes, serves and calls."""
    with command_node() as node:
        name = require_node(node, args.node_name, args.spin_time, "Unable to find node '{}'")
        wait_for_graph(node, args.spin_time)
        sections = describe(node, name)
    print(name.full_name)
    for title, entries in sections:
        print(f'  {title}:')
        lines = [f'    {entry}: {", ".join(types)}' for entry, types in sorted(entries)
                 if args.include_hidden or not is_hidden(entry)]
        print('\n'.join(lines))


def describe(node: object, name: NodeName) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Return the sections of `ros2 node info`; actions are not covered by embedded_ros."""
    who = (name.name, name.namespace)
    return [
        ('Subscribers', node.get_subscriber_names_and_types_by_node(*who)),
        ('Publishers', node.get_publisher_names_and_types_by_node(*who)),
        ('Service Servers', node.get_service_names_and_types_by_node(*who)),
        ('Service Clients', node.get_client_names_and_types_by_node(*who)),
        ('Action Servers', []),
        ('Action Clients', []),
    ]
