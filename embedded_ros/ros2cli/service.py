"""`ros2 service list|type|call`, and the call itself for the other commands."""

import argparse

import rclpy
from rclpy.node import Node
from rosidl_runtime_py.utilities import get_service

from ros2cli.errors import CommandError, did_you_mean
from ros2cli.graph import (
    absolute,
    add_graph_arguments,
    command_node,
    is_hidden,
    spin_until,
    wait_for_graph,
)
from ros2cli.main import add_verbs
from ros2cli.topic_pub import filled

SERVICE_TIMEOUT = 5.0  # s until a service is there, and again until it answers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verbs of `ros2 service`."""
    verbs = add_verbs(parser)
    list_parser = verbs.add_parser('list', help='Output a list of available services')
    list_parser.add_argument('-t', '--show-types', action='store_true',
                             help='Additionally show the service type')
    list_parser.add_argument('-c', '--count-services', action='store_true',
                             help='Only display the number of services discovered')
    list_parser.add_argument('--include-hidden-services', action='store_true',
                             help='Consider hidden services as well')
    list_parser.set_defaults(main=list_services)
    type_parser = verbs.add_parser('type', help="Output a service's type")
    type_parser.set_defaults(main=service_type)
    call_parser = verbs.add_parser('call', help='Call a service')
    call_parser.set_defaults(main=call_verb)
    for verb in (type_parser, call_parser):
        verb.add_argument('service_name', help="Name of the ROS service (e.g. '/add_two_ints')")
    call_parser.add_argument('service_type', nargs='?',
                             help="Type of the ROS service (e.g. 'std_srvs/srv/Empty'); the "
                             "graph's when left out")
    call_parser.add_argument('values', nargs='?', default='{}',
                             help='Values to fill the service request with in YAML format')
    call_parser.add_argument('--timeout', type=float, default=None, metavar='N',
                             help='Longest time in seconds to wait for the service and for its '
                             'response (default: for ever)')
    for verb in (list_parser, type_parser, call_parser):
        add_graph_arguments(verb)


def list_services(args: argparse.Namespace) -> None:
    """Print the services of the graph."""
    with command_node() as node:
        wait_for_graph(node, args.spin_time)
        found = sorted((name, types) for name, types in node.get_service_names_and_types()
                       if args.include_hidden_services or not is_hidden(name))
    if args.count_services:
        print(len(found))
        return
    for name, types in found:
        print(f'{name} [{", ".join(types)}]' if args.show_types else name)


def service_type(args: argparse.Namespace) -> None:
    """Print a service's type."""
    with command_node() as node:
        print(require_service(node, args.service_name, args.spin_time))


def call_verb(args: argparse.Namespace) -> None:
    """Call a service with a request given as YAML and print both as Python values."""
    with command_node() as node:
        service = service_class(args.service_type or require_service(
            node, args.service_name, args.spin_time))
        request, _ = filled(service.Request, args.values)
        name = absolute(args.service_name)
        client = node.create_client(service, name)
        if not client.service_is_ready():
            print('waiting for service to become available...')
        if not spin_until(node, client.service_is_ready, args.timeout or float('inf')):
            raise CommandError(f'service {name} is not available')
        print(f'requester: making request: {request!r}\n')
        print(f'response:\n{_complete(node, client, request, args.timeout)!r}\n')


def require_service(node: Node, name: str, timeout: float) -> str:
    """Wait for a service and return its type; raises CommandError with near matches."""
    full_name = absolute(name)

    def types() -> list[str]:
        return dict(node.get_service_names_and_types()).get(full_name, [])

    if not spin_until(node, lambda: bool(types()), timeout):
        known = [n for n, _ in node.get_service_names_and_types() if not is_hidden(n)]
        raise CommandError(f"Unknown service '{full_name}'" + did_you_mean(full_name, known))
    return types()[0]


def service_class(service_type: str) -> type:
    """Return the class of a service type; raises CommandError when there is none."""
    try:
        return get_service(service_type)
    except (AttributeError, ModuleNotFoundError, ValueError, LookupError) as error:
        raise CommandError(f"The service type '{service_type}' is invalid: {error}") from error


def call(node: Node, kind: type, name: str, request: object,
         timeout: float = SERVICE_TIMEOUT) -> object:
    """Return a service's response; raises CommandError when there is none in time (s, twice)."""
    client = node.create_client(kind, name)
    try:
        if not spin_until(node, client.service_is_ready, timeout):
            raise CommandError(f'Wait for service timed out: {name}')
        return _complete(node, client, request, timeout)
    finally:
        node.destroy_client(client)


def _complete(node: Node, client: object, request: object, timeout: float | None) -> object:
    future = client.call_async(request)
    rclpy.spin_until_future_complete(node, future, timeout_sec=timeout)
    if not future.done():
        raise CommandError(f'no response from {client.srv_name} within {timeout:g} s')
    if future.exception() is not None:
        raise CommandError(f'Exception while calling service {client.srv_name}: '
                           f'{future.exception()}')
    return future.result()
