"""A <node> element as a command line: executable, arguments, then `--ros-args …`."""

from pathlib import Path

import yaml

from ros2cli.errors import CommandError
from ros2cli.executables import find_executable
from ros2cli.launch.state import State, join_namespace, text, words
from ros2cli.launch.xml_file import Element, LaunchFileError


def node_command(element: Element, state: State) -> tuple[str, ...]:
    """Return the argv of a node with its name, namespace, parameters and remappings.

    Parameters keep the order of the file, since the last one given wins. Raises LaunchFileError
    for what is wrong in the element, an unknown package or executable included.
    """
    try:
        executable = find_executable(text(element, 'pkg', state), text(element, 'exec', state))
    except LaunchFileError:
        raise
    except CommandError as error:
        raise element.error(str(error)) from error
    ros: list[str] = list(words(element, 'ros_args', state))
    name = text(element, 'name', state)
    if name:
        ros += ['-r', f'__node:={name}']
    namespace = join_namespace(state.namespace, text(element, 'namespace', state))
    if namespace:
        ros += ['-r', f'__ns:=/{namespace.lstrip("/")}']
    if state.parameters:
        ros += ['--params-file', _write_parameters(state.parameter_folder, state.parameters)]
    for parameter in element.named('param'):
        ros += ['--params-file', _parameter_file(parameter, state)]
    for source, target in state.remaps:
        ros += ['-r', f'{source}:={target}']
    for remap in element.named('remap'):
        remap.check(required=('from', 'to'), conditional=False)
        ros += ['-r', f'{text(remap, "from", state)}:={text(remap, "to", state)}']
    arguments = words(element, 'args', state)
    return (*executable, *arguments, *(('--ros-args', *ros) if ros else ()))


def parameter_value(element: Element, written: str) -> object:
    """Return the typed value of a parameter's text: YAML decides, as in launch_ros.

    Booleans, numbers, text and lists of one of these; what YAML takes for something else (a
    date, a mapping, nothing) stays text. Raises LaunchFileError for a list of mixed types.
    """
    try:
        value = yaml.safe_load(written)
    except yaml.YAMLError:
        return written
    if isinstance(value, list):
        types = {type(item) for item in value}
        if len(types) > 1 or not types <= {bool, int, float, str}:
            raise element.error(f'value {written!r}: a list holds booleans, integers, floats or '
                                'strings, of one type only')
        return value
    return value if isinstance(value, (bool, int, float, str)) else written


def _parameter_file(element: Element, state: State) -> str:
    """Return the file of a <param>: the one that `from` names, or one written for its values."""
    if 'from' in element.attributes:
        element.check(required=('from',), conditional=False)
        path = text(element, 'from', state)
        try:
            with open(path, 'rb'):
                return path
        except OSError as error:
            raise element.error(f'cannot read parameter file {path}: {error.strerror}') from error
    return _write_parameters(state.parameter_folder, _nested(element, state))


def _nested(element: Element, state: State) -> dict[str, object]:
    """Return {name: value} of a <param>, or {name: {…}} of one with <param> children."""
    element.check(required=('name',), optional=('value',), children=('param',),
                  conditional=False)
    name = text(element, 'name', state)
    if ('value' in element.attributes) == bool(element.children):
        raise element.error('expected either a value or nested <param> elements')
    if not element.children:
        return {name: parameter_value(element, text(element, 'value', state))}
    values: dict[str, object] = {}
    for child in element.children:
        values.update(_nested(child, state))
    return {name: values}


def _write_parameters(folder: Path, values: dict[str, object]) -> str:
    path = folder / f'launch_params_{sum(1 for _ in folder.iterdir())}.yaml'
    path.write_text(yaml.safe_dump({'/**': {'ros__parameters': values}}), encoding='utf-8')
    return str(path)
