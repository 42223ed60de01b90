"""Names of nodes, topics and services: valid or not, expanded, remapped.

Rules: https://design.ros2.org/articles/topic_and_service_names.html
"""

import re

from rclpy._arguments import Remap
from rclpy.exceptions import (
    InvalidNamespaceException,
    InvalidNodeNameException,
    InvalidServiceNameException,
    InvalidTopicNameException,
)

MAX_NODE_NAME = 255
SUBSTITUTION = re.compile(r'\{([^}]*)\}')


def check_node_name(name: str) -> None:
    """Raise InvalidNodeNameException when a node cannot have this name."""
    problem = _problem(name, r'[A-Za-z0-9_]', 'node name')
    if problem is None and len(name) > MAX_NODE_NAME:
        problem = f'node name must not be longer than {MAX_NODE_NAME} characters', MAX_NODE_NAME
    if problem:
        raise InvalidNodeNameException(name, *problem)


def check_namespace(namespace: str) -> None:
    """Raise InvalidNamespaceException when nodes cannot be in this namespace."""
    problem = None
    if not namespace.startswith('/'):
        problem = "namespace must be absolute, it must lead with a '/'", 0
    elif namespace != '/':
        problem = _path_problem(namespace, 'namespace')
    if problem:
        raise InvalidNamespaceException(namespace, *problem)


def _problem(name: str, allowed: str, kind: str) -> tuple[str, int] | None:
    """Return what is wrong with one token and where."""
    if not name:
        return f'{kind} must not be empty', 0
    for index, character in enumerate(name):
        if not re.fullmatch(allowed, character):
            return (f"{kind} must not contain characters other than alphanumerics or '_'", index)
    if name[0].isdigit():
        return f'{kind} must not start with a number', 0
    return None


def _path_problem(path: str, kind: str) -> tuple[str, int] | None:
    """Return what is wrong with an absolute name and where."""
    if path != '/' and path.endswith('/'):
        return f'{kind} must not end with a forward slash', len(path) - 1
    offset = 1
    for token in path[1:].split('/'):
        if not token:
            return f"{kind} must not contain repeated '/'", offset
        problem = _problem(token, r'[A-Za-z0-9_]', f'{kind} token')
        if problem:
            return problem[0], offset + problem[1]
        offset += len(token) + 1
    return None


def expand(name: str, node_name: str, namespace: str, *, is_service: bool = False) -> str:
    """Return the absolute name of a topic or service.

    Raises InvalidTopicNameException or InvalidServiceNameException.
    """
    error = InvalidServiceNameException if is_service else InvalidTopicNameException
    kind = 'service name' if is_service else 'topic name'
    if not isinstance(name, str) or not name:
        raise error(str(name), f'{kind} must not be empty', 0)
    known = {'node': node_name, 'ns': namespace, 'namespace': namespace}
    full = SUBSTITUTION.sub(lambda match: known.get(match[1], match[0]), name)
    base = '' if namespace == '/' else namespace
    if full == '~' or full.startswith('~/'):
        full = f'{base}/{node_name}{full[1:]}'
    elif not full.startswith('/'):
        full = f'{base}/{full}'
    full = full.replace('//', '/') if name.startswith('{') else full
    problem = _path_problem(full, kind)
    if problem:
        raise error(name, problem[0], max(0, min(problem[1], len(name) - 1)))
    return full


def remap_name(full_name: str, rules: list[Remap], node_name: str, namespace: str, *,
               is_service: bool = False) -> str:
    """Return the name that the first fitting rule gives to an absolute name."""
    kind = 'service' if is_service else 'topic'
    for rule in rules:
        if (rule.source in ('__node', '__name', '__ns') or rule.node not in (None, node_name)
                or rule.kind not in (None, kind)):
            continue
        source = expand(rule.source, node_name, namespace, is_service=is_service)
        if source == full_name:
            return expand(rule.target, node_name, namespace, is_service=is_service)
    return full_name


def remap_node(name: str, namespace: str, rules: list[Remap]) -> tuple[str, str]:
    """Return a node's name and namespace after the rules for `__node` and `__ns`."""
    def first(*sources: str) -> str | None:
        return next((rule.target for rule in rules
                     if rule.source in sources and rule.node in (None, name)), None)

    new_name, new_namespace = first('__node', '__name'), first('__ns')
    return (name if new_name is None else new_name,
            namespace if new_namespace is None else new_namespace)
