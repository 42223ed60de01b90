"""`ros2 topic list|info|type|echo|hz|pub`; output as ros2topic prints it."""

import argparse

from embedded_ros import distro
from ros2cli import topic_echo, topic_hz, topic_pub
from ros2cli.graph import (
    absolute,
    add_graph_arguments,
    command_node,
    is_hidden,
    require_topic,
    wait_for_graph,
)
from ros2cli.main import add_verbs
from ros2cli.qos import describe_qos


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verbs of `ros2 topic`."""
    verbs = add_verbs(parser)
    list_parser = verbs.add_parser('list', help='Output a list of available topics')
    list_parser.add_argument('-t', '--show-types', action='store_true',
                             help='Additionally show the topic type')
    list_parser.add_argument('-c', '--count-topics', action='store_true',
                             help='Only display the number of topics discovered')
    list_parser.add_argument('-v', '--verbose', action='store_true',
                             help='List full details about each topic')
    list_parser.add_argument('--include-hidden-topics', action='store_true',
                             help='Consider hidden topics as well')
    list_parser.set_defaults(main=list_topics)
    info_parser = verbs.add_parser('info', help='Print information about a topic')
    info_parser.add_argument('-v', '--verbose', action='store_true',
                             help='Print nodes, types and QoS of all endpoints')
    info_parser.set_defaults(main=info)
    type_parser = verbs.add_parser('type', help="Print a topic's type")
    type_parser.set_defaults(main=topic_type)
    for verb in (info_parser, type_parser):
        verb.add_argument('topic_name', help="Name of the ROS topic (e.g. '/chatter')")
    for verb in (list_parser, info_parser, type_parser):
        add_graph_arguments(verb)
    topic_echo.add_verb(verbs)
    topic_hz.add_verb(verbs)
    topic_pub.add_verb(verbs)


def list_topics(args: argparse.Namespace) -> None:
    """Print the topics of the graph."""
    with command_node() as node:
        wait_for_graph(node, args.spin_time)
        found = sorted((name, types) for name, types in node.get_topic_names_and_types()
                       if args.include_hidden_topics or not is_hidden(name))
        counts = {name: (node.count_publishers(name), node.count_subscribers(name))
                  for name, _ in found}
    if args.count_topics:
        print(len(found))
    elif args.verbose:
        for index, (title, noun) in enumerate((('Published', 'publisher'),
                                               ('Subscribed', 'subscriber'))):
            print(f'{title} topics:')
            for name, types in found:
                count = counts[name][index]
                if count:
                    print(f' * {name} [{", ".join(types)}] {count} {noun}{"s" * (count > 1)}')
            print()
    else:
        for name, types in found:
            print(f'{name} [{", ".join(types)}]' if args.show_types else name)


def info(args: argparse.Namespace) -> None:
    """Print a topic's type and how many endpoints it has, or all about them."""
    name = absolute(args.topic_name)
    with command_node() as node:
        message_type = require_topic(node, name, args.spin_time)
        wait_for_graph(node, args.spin_time)
        publishers = node.get_publishers_info_by_topic(name)
        subscriptions = node.get_subscriptions_info_by_topic(name)
    gap = '\n' if args.verbose else ''
    print(f'Type: {message_type}{gap}')
    for title, endpoints in (('Publisher', publishers), ('Subscription', subscriptions)):
        print(f'{title} count: {len(endpoints)}{gap}')
        for endpoint in endpoints if args.verbose else ():
            print(describe_endpoint(endpoint), end='\n\n')


def describe_endpoint(endpoint: object) -> str:
    """Return the lines of one endpoint (a rclpy TopicEndpointInfo); Humble knows no hashes."""
    hashes = () if distro() == 'humble' else (f'Topic type hash: {endpoint.topic_type_hash}',)
    return '\n'.join((
        f'Node name: {endpoint.node_name}',
        f'Node namespace: {endpoint.node_namespace}',
        f'Topic type: {endpoint.topic_type}',
        *hashes,
        f'Endpoint type: {endpoint.endpoint_type.name}',
        f'GID: {".".join(f"{byte:02x}" for byte in endpoint.endpoint_gid)}',
        describe_qos(endpoint.qos_profile)))


def topic_type(args: argparse.Namespace) -> None:
    """Print a topic's type."""
    with command_node() as node:
        print(require_topic(node, args.topic_name, args.spin_time))
