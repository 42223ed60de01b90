"""`ros2 topic echo`: print messages as YAML, one document each."""

import argparse
import re
import time

import rclpy
from rosidl_runtime_py import message_to_csv, message_to_yaml
from rosidl_runtime_py.utilities import get_message

from ros2cli.errors import CommandError
from ros2cli.graph import (
    POLL,
    UNPUBLISHED,
    absolute,
    add_graph_arguments,
    command_node,
    require_topic,
)
from ros2cli.qos import add_qos_arguments, given_qos, matching_qos

TRUNCATE_LENGTH = 128


def add_verb(verbs: argparse._SubParsersAction) -> None:
    """Add `echo` to the verbs of `ros2 topic`."""
    parser = verbs.add_parser('echo', help='Output messages from a topic')
    parser.add_argument('topic_name', help="Name of the ROS topic (e.g. '/chatter')")
    parser.add_argument('message_type', nargs='?',
                        help="Type of the ROS message (e.g. 'std_msgs/msg/String')")
    parser.add_argument('--field', help="Echo a selected field of a message, e.g. 'header.stamp' "
                        "or 'position[0]'")
    parser.add_argument('--once', action='store_true', help='Print the first message and exit')
    parser.add_argument('--timeout', type=float, metavar='N',
                        help='Give up, with exit code 1, after N seconds without a message')
    parser.add_argument('-f', '--full-length', action='store_true',
                        help='Output all elements for arrays, bytes, and string')
    parser.add_argument('-l', '--truncate-length', type=int, default=TRUNCATE_LENGTH, metavar='N',
                        help='The length to truncate arrays, bytes, and string to '
                        '(default: %(default)s)')
    parser.add_argument('--no-arr', action='store_true', help="Don't print array fields")
    parser.add_argument('--no-str', action='store_true', help="Don't print string fields")
    parser.add_argument('--flow-style', action='store_true', help='Print collections in one line')
    parser.add_argument('--csv', action='store_true',
                        help='Output all recursive fields separated by commas')
    parser.add_argument('--raw', action='store_true', help='Echo the raw binary representation')
    add_qos_arguments(parser, 'sensor_data')
    add_graph_arguments(parser)
    parser.set_defaults(main=echo)


def echo(args: argparse.Namespace) -> int:
    """Print messages until interrupted, or one with --once."""
    if args.truncate_length < 0:
        raise CommandError(f'--truncate-length {args.truncate_length}: expected 0 or more')
    topic = absolute(args.topic_name)
    received = 0

    def on_message(message: object) -> None:
        nonlocal received
        if not (args.once and received):
            print(format_message(message, args))
        received += 1

    with command_node() as node:
        message_type = args.message_type or require_topic(
            node, topic, args.spin_time,
            f'{UNPUBLISHED}\nCould not determine the type for the passed topic')
        qos = given_qos(args, 'sensor_data') or matching_qos(node, topic)
        node.create_subscription(message_class(message_type), topic, on_message, qos,
                                 raw=args.raw)
        last = (received, time.monotonic())
        while rclpy.ok() and not (args.once and received):
            rclpy.spin_once(node, timeout_sec=POLL)
            if received != last[0]:
                last = (received, time.monotonic())
            elif args.timeout is not None and time.monotonic() - last[1] > args.timeout:
                raise CommandError(f'no message on {topic} within {args.timeout:g} s')
    return 0


def message_class(message_type: str) -> type:
    """Return the class of a message type; raises CommandError when there is none."""
    try:
        return get_message(message_type)
    except (AttributeError, ModuleNotFoundError, ValueError, LookupError) as error:
        raise CommandError(f"The message type '{message_type}' is invalid: {error}") from error


def format_message(message: object, args: argparse.Namespace) -> str:
    """Return one message, or the field of it that was asked for, as text ending in `---`."""
    if args.raw:
        return f'{message!r}\n---'
    value = field_of(message, args.field) if args.field else message
    if not hasattr(value, 'get_fields_and_field_types'):
        return f'{value}\n---'
    options = {'truncate_length': None if args.full_length else args.truncate_length,
               'no_arr': args.no_arr, 'no_str': args.no_str}
    if args.csv:
        return message_to_csv(value, **options)
    return message_to_yaml(value, **options, flow_style=args.flow_style) + '---'


def field_of(message: object, path: str) -> object:
    """Return a field by a path such as `header.stamp` or `poses[0].position`.

    Raises CommandError that names the part which does not exist.
    """
    value = message
    for part in path.split('.'):
        match = re.fullmatch(r'(\w+)((?:\[\d+\])*)', part)
        name = match[1] if match else ''
        if not hasattr(value, 'get_fields_and_field_types') or (
                name not in value.get_fields_and_field_types()):
            raise CommandError(f"Invalid field '{path}': {type(value).__name__} has no '{part}'")
        value = getattr(value, name)
        for index in re.findall(r'\d+', match[2]):
            try:
                value = value[int(index)]
            except (IndexError, TypeError) as error:
                raise CommandError(f"Invalid field '{path}': '{part}': {error}") from error
    return value
