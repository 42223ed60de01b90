"""`ros2 param list|get|set|describe|dump|load`; output as ros2param prints it.

One deviation: a parameter that was refused gives exit code 1, so that scripts notice.
"""

import argparse
import sys
from pathlib import Path

import yaml
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, GetParameters, ListParameters, SetParameters
from rclpy.node import Node

from ros2cli.errors import CommandError, did_you_mean
from ros2cli.graph import (
    add_graph_arguments,
    command_node,
    node_names,
    require_node,
    wait_for_graph,
)
from ros2cli.main import add_verbs
from ros2cli.param_values import LABELS, parse_value, plain_value, value_message
from ros2cli.service import call


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verbs of `ros2 param`."""
    verbs = add_verbs(parser)
    list_parser = verbs.add_parser('list', help='Output a list of available parameters')
    list_parser.add_argument('node_name', nargs='?', help='Name of the ROS node; all if left out')
    list_parser.add_argument('--param-prefixes', nargs='+', default=[],
                             help='Only list parameters with the provided prefixes')
    list_parser.add_argument('--param-type', action='store_true',
                             help='Print parameter types with parameter names')
    list_parser.set_defaults(main=list_parameters)
    get_parser = verbs.add_parser('get', help='Get parameter')
    get_parser.add_argument('--hide-type', action='store_true', help='Hide the type information')
    set_parser = verbs.add_parser('set', help='Set parameter')
    describe_parser = verbs.add_parser(
        'describe', help='Show descriptive information about declared parameters')
    dump_parser = verbs.add_parser(
        'dump', help='Show all of the parameters of a node in a YAML file format')
    load_parser = verbs.add_parser('load', help='Load parameter file for a node')
    for verb, main in ((get_parser, get), (set_parser, set_parameter), (describe_parser, describe),
                       (dump_parser, dump), (load_parser, load)):
        verb.add_argument('node_name', help='Name of the ROS node')
        verb.set_defaults(main=main)
    for verb in (get_parser, set_parser):
        verb.add_argument('parameter_name', help='Name of the parameter')
    set_parser.add_argument('value', help='Value of the parameter, read as YAML')
    describe_parser.add_argument('parameter_names', nargs='+', help='Names of the parameters')
    load_parser.add_argument('parameter_file', type=Path, help='Parameter file')
    load_parser.add_argument('--no-use-wildcard', action='store_true',
                             help="Do not load parameters in the '/**' namespace into the node")
    for verb in (list_parser, get_parser, set_parser, describe_parser, dump_parser, load_parser):
        add_graph_arguments(verb)


def list_parameters(args: argparse.Namespace) -> None:
    """Print the parameter names of one node, or of all nodes below their names."""
    with command_node() as node:
        if args.node_name:
            names = [require_node(node, args.node_name, args.spin_time).full_name]
        else:
            wait_for_graph(node, args.spin_time)
            services = dict(node.get_service_names_and_types())
            names = [n.full_name for n in node_names(node)
                     if f'{n.full_name}/list_parameters' in services]
        for name in names:
            found = parameter_names(node, name, args.param_prefixes)
            if not args.node_name:
                print(f'{name}:')
            types = {d.name: LABELS[d.type].kind for d in descriptors(node, name, found)
                     } if args.param_type else {}
            for parameter in found:
                kind = f' (type: {types[parameter]})' if parameter in types else ''
                print(f'  {parameter}{kind}')


def get(args: argparse.Namespace) -> None:
    """Print a parameter's value."""
    with command_node() as node:
        name = require_node(node, args.node_name, args.spin_time).full_name
        require_parameters(node, name, [args.parameter_name])
        value = parameter_values(node, name, [args.parameter_name])[0]
    label = LABELS[value.type].value
    if value.type == ParameterType.PARAMETER_NOT_SET:
        print('None' if args.hide_type else label)
    else:
        print(plain_value(value) if args.hide_type else f'{label} {plain_value(value)}')


def set_parameter(args: argparse.Namespace) -> None:
    """Set a parameter; what YAML takes the value for is its type."""
    with command_node() as node:
        name = require_node(node, args.node_name, args.spin_time).full_name
        result = set_parameters(node, name, {args.parameter_name: parse_value(args.value)})[0]
    reason = f': {result.reason}' if result.reason else ''
    if not result.successful:
        raise CommandError(f'Setting parameter failed{reason}')
    print(f'Set parameter successful{reason}')


def describe(args: argparse.Namespace) -> None:
    """Print type, description and constraints of parameters."""
    with command_node() as node:
        name = require_node(node, args.node_name, args.spin_time).full_name
        require_parameters(node, name, args.parameter_names)
        found = descriptors(node, name, args.parameter_names)
    for each in found:
        print(f'Parameter name: {each.name}\n  Type: {LABELS[each.type].kind}')
        if each.description:
            print(f'  Description: {each.description}')
        print('  Constraints:')
        if each.read_only:
            print('    Read only: true')
        for limits in [*each.floating_point_range, *each.integer_range][:1]:
            print(f'    Min value: {limits.from_value}\n    Max value: {limits.to_value}')
            if limits.step:
                print(f'    Step: {limits.step}')
        if each.additional_constraints:
            print(f'    Additional constraints: {each.additional_constraints}')


def dump(args: argparse.Namespace) -> None:
    """Print all parameters of a node as a parameter file."""
    with command_node() as node:
        name = require_node(node, args.node_name, args.spin_time).full_name
        names = parameter_names(node, name)
        values = parameter_values(node, name, names)
    tree: dict[str, object] = {}
    for parameter, value in zip(names, values, strict=True):
        *parents, last = parameter.split('.')
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = plain_value(value)
    print(yaml.safe_dump({name: {'ros__parameters': tree}}, default_flow_style=False))


def load(args: argparse.Namespace) -> int:
    """Set what a parameter file says for a node; exit code 1 when one is refused."""
    with command_node() as node:
        name = require_node(node, args.node_name, args.spin_time).full_name
        values = read_parameter_file(args.parameter_file, name,
                                     wildcard=not args.no_use_wildcard)
        results = set_parameters(node, name, values)
    for parameter, result in zip(values, results, strict=True):
        reason = f': {result.reason}' if result.reason else ''
        if result.successful:
            print(f'Set parameter {parameter} successful{reason}')
        else:
            print(f'Set parameter {parameter} failed{reason}', file=sys.stderr)
    return 0 if all(result.successful for result in results) else 1


def read_parameter_file(path: Path, node_name: str, *,
                        wildcard: bool) -> dict[str, ParameterValue]:
    """Return {dotted name: value} of a file's sections for a node; a later section wins.

    Raises CommandError for a file that cannot be read, has another form, or has nothing for it.
    """
    try:
        sections = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CommandError(f'cannot read parameter file {path}: {error}') from error
    if not isinstance(sections, dict):
        raise CommandError(f'{path}: expected a mapping of node names to ros__parameters')
    wanted = {node_name, node_name.lstrip('/'), *(('/**',) if wildcard else ())}
    values: dict[str, object] = {}
    for section, content in sections.items():
        if section in wanted:
            if not isinstance(content, dict) or not isinstance(content.get('ros__parameters'),
                                                               dict):
                raise CommandError(f"{path}: section '{section}': expected ros__parameters with "
                                   'a mapping')
            values.update(_flatten(content['ros__parameters']))
    if not values:
        raise CommandError(f"{path}: no parameters for node '{node_name}'; it has sections "
                           + ', '.join(map(str, sections)))
    try:
        return {name: value_message(value) for name, value in values.items()}
    except ValueError as error:
        raise CommandError(f'{path}: {error}') from error


def _flatten(tree: dict[str, object], prefix: str = '') -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f'{prefix}{key}.'))
        else:
            flat[f'{prefix}{key}'] = value
    return flat


def parameter_names(node: Node, name: str, prefixes: list[str] | None = None) -> list[str]:
    """Return a node's parameter names, sorted."""
    request = ListParameters.Request()
    request.prefixes = prefixes or []
    return sorted(call(node, ListParameters, f'{name}/list_parameters', request).result.names)


def require_parameters(node: Node, name: str, wanted: list[str]) -> None:
    """Raise CommandError, with near matches, for a parameter that the node does not have."""
    known = parameter_names(node, name)
    for parameter in wanted:
        if parameter not in known:
            raise CommandError(f"Parameter not set: '{name}' has no parameter '{parameter}'"
                               + did_you_mean(parameter, known))


def parameter_values(node: Node, name: str, names: list[str]) -> list:
    """Return ParameterValue messages in the order of the names."""
    request = GetParameters.Request()
    request.names = names
    return list(call(node, GetParameters, f'{name}/get_parameters', request).values)


def descriptors(node: Node, name: str, names: list[str]) -> list:
    """Return ParameterDescriptor messages in the order of the names."""
    request = DescribeParameters.Request()
    request.names = names
    return list(call(node, DescribeParameters, f'{name}/describe_parameters', request).descriptors)


def set_parameters(node: Node, name: str, values: dict[str, ParameterValue]) -> list:
    """Set parameters one by one and return their SetParametersResult messages."""
    request = SetParameters.Request()
    request.parameters = [Parameter(name=key, value=value) for key, value in values.items()]
    return list(call(node, SetParameters, f'{name}/set_parameters', request).results)
