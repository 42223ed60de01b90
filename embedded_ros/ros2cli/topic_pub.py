"""`ros2 topic pub`: publish a message that is given as YAML."""

import argparse
import time
from collections.abc import Callable

import rclpy
import yaml
from rosidl_runtime_py import set_message_fields

from ros2cli.errors import CommandError
from ros2cli.graph import POLL, absolute, add_graph_arguments, command_node
from ros2cli.qos import PROFILES, add_qos_arguments, given_qos
from ros2cli.topic_echo import message_class

WAIT_REPORT = 1.0  # s between two lines while waiting for subscriptions


def add_verb(verbs: argparse._SubParsersAction) -> None:
    """Add `pub` to the verbs of `ros2 topic`."""
    parser = verbs.add_parser('pub', help='Publish a message to a topic')
    parser.add_argument('topic_name', help="Name of the ROS topic (e.g. '/chatter')")
    parser.add_argument('message_type',
                        help="Type of the ROS message (e.g. 'std_msgs/msg/String')")
    parser.add_argument('values', nargs='?', default='{}',
                        help='Values to fill the message with in YAML format '
                        '(e.g. "data: Hello World")')
    parser.add_argument('-r', '--rate', type=float, default=1.0, metavar='N',
                        help='Publishing rate in Hz (default: 1)')
    parser.add_argument('-p', '--print', type=int, default=1, metavar='N', dest='print_every',
                        help='Only print every N-th published message (default: 1)')
    count = parser.add_mutually_exclusive_group()
    count.add_argument('-1', '--once', action='store_true', help='Publish one message and exit')
    count.add_argument('-t', '--times', type=int, default=0,
                       help='Publish this number of times and then exit')
    parser.add_argument('-w', '--wait-matching-subscriptions', type=int, metavar='N',
                        help='Wait until finding the specified number of matching subscriptions '
                        '(default: 1 with --once or --times, else 0)')
    parser.add_argument('--max-wait-time-secs', type=float, metavar='N',
                        help='Give up, with exit code 1, when that takes longer than N seconds')
    parser.add_argument('--keep-alive', type=float, default=0.1, metavar='N',
                        help='Keep publishing node alive for N seconds after the last msg '
                        '(default: 0.1)')
    parser.add_argument('-n', '--node-name', help='Name of the created publishing node')
    add_qos_arguments(parser, 'default')
    add_graph_arguments(parser)
    parser.set_defaults(main=pub)


def pub(args: argparse.Namespace) -> None:
    """Publish at the rate until the number of messages is reached or interrupted."""
    if not args.rate > 0:
        raise CommandError(f'--rate {args.rate:g}: expected a rate above 0 Hz')
    kind = message_class(args.message_type)
    message, stamps = filled(kind, args.values, stamped=True)
    times = 1 if args.once else args.times
    with command_node(args.node_name) as node:
        publisher = node.create_publisher(
            kind, absolute(args.topic_name), given_qos(args, 'default') or PROFILES['default'])
        wanted = args.wait_matching_subscriptions
        _wait_for_subscriptions(node, publisher, int(times > 0) if wanted is None else wanted,
                                args.max_wait_time_secs)
        print('publisher: beginning loop')
        published = 0
        due = time.monotonic()
        while rclpy.ok() and (times == 0 or published < times):
            rclpy.spin_once(node, timeout_sec=min(POLL, max(0.0, due - time.monotonic())))
            if time.monotonic() < due:
                continue
            published += 1
            for stamp in stamps:
                stamp(node.get_clock().now().to_msg())
            if args.print_every and published % args.print_every == 0:
                print(f'publishing #{published}: {message!r}\n')
            publisher.publish(message)
            due += 1 / args.rate
        time.sleep(args.keep_alive)  # let the last message reach the wire


def filled(kind: type, values: str, *,
           stamped: bool = False) -> tuple[object, list[Callable[[object], None]]]:
    """Return a message (or request) of this class with the fields that a YAML text gives.

    `stamped`: a header may be `auto` and a time `now`; what sets these is returned, too. Raises
    CommandError for text that is no mapping, and for a field that is unknown or does not take its
    value.
    """
    try:
        fields = yaml.safe_load(values)
    except yaml.YAMLError as error:
        raise CommandError(f'The passed value is not YAML: {error}') from error
    if not isinstance(fields, dict):
        raise CommandError('The passed value needs to be a dictionary in YAML format')
    message = kind()
    try:
        stamps = set_message_fields(message, fields, expand_header_auto=stamped,
                                    expand_time_now=stamped)
    except Exception as error:  # whatever a field's setter raises is about the user's value
        raise CommandError(f'Failed to populate field: {error}') from error
    return message, stamps


def _wait_for_subscriptions(node: object, publisher: object, wanted: int,
                            longest: float | None) -> None:
    start = time.monotonic()
    reported = start - WAIT_REPORT
    while rclpy.ok() and publisher.get_subscription_count() < wanted:
        now = time.monotonic()
        if longest is not None and now - start > longest:
            raise CommandError(f'Timed out waiting for subscribers: Expected {wanted} '
                               f'subscribers but only got {publisher.get_subscription_count()}')
        if now - reported >= WAIT_REPORT:
            print(f'Waiting for at least {wanted} matching subscription(s)...')
            reported = now
        rclpy.spin_once(node, timeout_sec=POLL)
