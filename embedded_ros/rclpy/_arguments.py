"""The arguments after `--ros-args`: remapping, parameters, logging.

Rules: https://docs.ros.org/en/jazzy/How-To-Guides/Node-arguments.html and rcl's arguments.h.
"""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from rclpy import _yaml

NODE_PREFIX = re.compile(r'^([A-Za-z_]\w*):(?!=|//)(.*)$', re.DOTALL)
LEVELS = ('DEBUG', 'INFO', 'WARN', 'ERROR', 'FATAL')
FLAGS = {'--enable-rosout-logs', '--disable-rosout-logs', '--enable-stdout-logs',
         '--disable-stdout-logs', '--enable-external-lib-logs', '--disable-external-lib-logs'}


class UnknownROSArgsError(RuntimeError):
    """An argument after --ros-args that is none."""

    def __init__(self, unknown: list[str]) -> None:
        super().__init__(f'Found unknown ROS arguments: {unknown}')
        self.unknown_args = unknown


@dataclass(frozen=True, kw_only=True)
class Remap:
    """One rule `[node:]from:=to`; `node` None: of every node; `kind` None: topics and services."""

    kind: str | None  # 'topic' or 'service'
    node: str | None
    source: str
    target: str


@dataclass(frozen=True, kw_only=True)
class ParameterRule:
    """A parameter's value for nodes whose full name fits `pattern` (`*` one, `**` any parts)."""

    pattern: str
    name: str
    value: object

    def fits(self, node: str) -> bool:
        """Tell whether the rule is for a node, by its full name."""
        parts = [r'(?:/[^/]+)*' if part == '**' else
                 '/' + re.escape(part).replace(r'\*', '[^/]*')
                 for part in self.pattern.strip('/').split('/')]
        return re.fullmatch(''.join(parts), node) is not None


@dataclass(kw_only=True)
class RosArguments:
    """All that `--ros-args` said, in order."""

    remaps: list[Remap] = field(default_factory=list)
    parameters: list[ParameterRule] = field(default_factory=list)
    log_levels: dict[str, str] = field(default_factory=dict)  # logger ('' is all) -> level
    flags: set[str] = field(default_factory=set)
    enclave: str = '/'

    def merged(self, own: 'RosArguments') -> 'RosArguments':
        """Return these with a node's own ones, which come first where the first rule wins."""
        return RosArguments(
            remaps=own.remaps + self.remaps, parameters=self.parameters + own.parameters,
            log_levels={**self.log_levels, **own.log_levels}, flags=self.flags | own.flags)


def split_arguments(args: list[str]) -> tuple[list[str], list[str]]:
    """Return the user's arguments and those between `--ros-args` and `--`."""
    user: list[str] = []
    ros: list[str] = []
    inside = False
    for argument in args:
        if argument == '--ros-args':
            inside = True
        elif inside and argument == '--':
            inside = False
        else:
            (ros if inside else user).append(argument)
    return user, ros


def parse_arguments(args: list[str] | None) -> RosArguments:
    """Parse argv, `sys.argv` when None.

    Raises UnknownROSArgsError, and ValueError that names the argument, its value and what is
    valid.
    """
    remaining = split_arguments(sys.argv if args is None else list(args))[1]
    result = RosArguments()
    unknown: list[str] = []
    while remaining:
        option = remaining.pop(0)
        if option in FLAGS:
            result.flags.add(option)
        elif option in _OPTIONS:
            if not remaining:
                raise ValueError(f'{option}: a value must follow')
            _OPTIONS[option](result, option, remaining.pop(0))
        else:
            unknown.append(option)
    if unknown:
        raise UnknownROSArgsError(unknown)
    # rcl gathers values by node name, in the order in which names are first met: of two names that
    # fit a node, the one that is met later wins, whatever comes after.
    places: dict[str, int] = {}
    result.parameters.sort(key=lambda rule: places.setdefault(rule.pattern, len(places)))
    return result


def _split_rule(option: str, text: str) -> tuple[str | None, str, str]:
    """Return node, left and right of `[node:]left:=right`."""
    left, marker, right = text.partition(':=')
    if not marker or not left:
        raise ValueError(f'{option} {text!r}: expected [node:]name:=value')
    match = NODE_PREFIX.match(left)
    return (match[1], match[2], right) if match else (None, left, right)


def _remap(result: RosArguments, option: str, text: str) -> None:
    node, source, target = _split_rule(option, text)
    kind = None
    for candidate in ('topic', 'service'):
        if source.startswith(f'ros{candidate}://'):
            kind = candidate
            source = source.removeprefix(f'ros{kind}://')
            target = target.removeprefix(f'ros{kind}://')
    if not target:
        raise ValueError(f'{option} {text!r}: expected a name after :=')
    result.remaps.append(Remap(kind=kind, node=node, source=source, target=target))


def _parameter(result: RosArguments, option: str, text: str) -> None:
    node, name, value = _split_rule(option, text)
    try:
        loaded = _yaml.load(value)
    except ValueError as error:
        raise ValueError(f'{option} {text!r}: {error}') from error
    pattern = '/**' if node is None else f'/{node}'  # as rcl: a node of the root namespace
    if isinstance(loaded, dict):
        _add_tree(result, pattern, f'{name}.', loaded, f'{option} {text!r}')
    else:
        result.parameters.append(ParameterRule(pattern=pattern, name=name, value=loaded))


def _params_file(result: RosArguments, option: str, text: str) -> None:
    try:
        content = _yaml.load(Path(text).read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ValueError(f'{option} {text!r}: {error}') from error
    if not isinstance(content, dict):
        raise ValueError(f'{option} {text!r}: expected a map of node names, found {content!r}')
    _add_nodes(result, '', content, text)


def _add_nodes(result: RosArguments, prefix: str, content: dict, file: str) -> None:
    """Add the parameters of all nodes in a (possibly nested) map of names."""
    for name, below in content.items():
        if not isinstance(below, dict):
            raise ValueError(f'parameter file {file!r}: {prefix}/{name} is {below!r}; '
                             'expected a map with ros__parameters')
        if name == 'ros__parameters':
            _add_tree(result, prefix or '/', '', below, f'parameter file {file!r}')
        else:
            _add_nodes(result, f'{prefix}/{str(name).strip("/")}', below, file)


def _add_tree(result: RosArguments, pattern: str, prefix: str, tree: dict, where: str) -> None:
    """Add nested parameters; names join by dots."""
    for name, value in tree.items():
        if isinstance(value, dict):
            _add_tree(result, pattern, f'{prefix}{name}.', value, where)
        elif value is None:
            raise ValueError(f'{where}: {prefix}{name} has no value')
        else:
            result.parameters.append(
                ParameterRule(pattern=pattern, name=f'{prefix}{name}', value=value))


def _log_level(result: RosArguments, option: str, text: str) -> None:
    logger, marker, level = text.rpartition(':=')
    name = level.upper().replace('WARNING', 'WARN')
    if name not in LEVELS or (marker and not logger):
        raise ValueError(f'{option} {text!r}: expected [logger:=]LEVEL, LEVEL one of '
                         f'{", ".join(LEVELS).lower()}')
    result.log_levels[logger] = name


def _enclave(result: RosArguments, option: str, text: str) -> None:
    if not text.startswith('/'):
        raise ValueError(f'{option} {text!r}: expected a name that starts with /')
    result.enclave = text


_OPTIONS = {'-r': _remap, '--remap': _remap, '-p': _parameter, '--param': _parameter,
            '--params-file': _params_file, '--log-level': _log_level, '-e': _enclave,
            '--enclave': _enclave}
