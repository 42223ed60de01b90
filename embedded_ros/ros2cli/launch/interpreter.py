"""Read a launch file: walk its elements in order, with the scope that each of them sees.

Tags and attributes are those of ROS 2's XML launch files (launch_xml, launch_ros). As there, an
included file shares its includer's scope and a <group> has its own.
"""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from ros2cli.launch.description import (
    OUTPUTS,
    Argument,
    LaunchDescription,
    LogLine,
    ProcessDescription,
)
from ros2cli.launch.node_command import node_command, parameter_value
from ros2cli.launch.state import State, join_namespace, seconds, text, truth, words
from ros2cli.launch.xml_file import Element, read

MAX_INCLUDE_DEPTH = 20
PROCESS_ATTRIBUTES = ('name', 'cwd', 'output', 'launch-prefix', 'respawn', 'respawn_delay',
                      'on_exit', 'sigterm_timeout', 'sigkill_timeout', 'emulate_tty')


def interpret(path: Path, arguments: Mapping[str, str], parameter_folder: Path,
              environment: Mapping[str, str] | None = None) -> LaunchDescription:
    """Return the processes and log lines of a launch file.

    arguments: `name:=value` of the command line. parameter_folder: where the parameter files of
    inline <param> elements are written. Raises LaunchFileError with file and line.
    """
    interpreter = Interpreter()
    state = State(path=path.resolve(), parameter_folder=parameter_folder,
                  configurations=dict(arguments),
                  environment=dict(os.environ if environment is None else environment))
    interpreter.children(read(path), state)
    return interpreter.description


class Interpreter:
    """One method a tag; `description` grows as elements are met."""

    def __init__(self) -> None:
        self.description = LaunchDescription()
        self.tags = {
            'arg': self.arg, 'let': self.let, 'node': self.node, 'executable': self.executable,
            'include': self.include, 'group': self.group, 'set_env': self.set_env,
            'unset_env': self.unset_env, 'log': self.log,
            'push_ros_namespace': self.push_namespace, 'push-ros-namespace': self.push_namespace,
            'set_remap': self.set_remap, 'set_parameter': self.set_parameter}

    def children(self, parent: Element, state: State) -> None:
        """Perform all children whose condition holds."""
        for element in parent.children:
            if element.tag not in self.tags:
                raise element.error(f'unknown tag; known are {", ".join(self.tags)}')
            if self.condition(element, state):
                self.tags[element.tag](element, state)

    def condition(self, element: Element, state: State) -> bool:
        """Evaluate `if` and `unless`, of which an element may have one."""
        if 'if' in element.attributes and 'unless' in element.attributes:
            raise element.error('if and unless exclude each other')
        if 'unless' in element.attributes:
            return not truth(element, 'unless', state, 'false')
        return truth(element, 'if', state, 'true')

    def arg(self, element: Element, state: State) -> None:
        """Declare an argument; keep the value that was given, else take the default."""
        argument = argument_of(element)
        self.description.arguments.setdefault(argument.name, argument)
        if argument.name not in state.configurations:
            if argument.default is None:
                raise element.error(f"required argument '{argument.name}' is missing "
                                    f"(description: '{argument.description}'); give it as "
                                    f'{argument.name}:=VALUE')
            state.configurations[argument.name] = text(element, 'default', state)
        value = state.configurations[argument.name]
        if argument.choices and value not in argument.choices:
            raise element.error(f"argument '{argument.name}' is '{value}'; valid choices are "
                                + ', '.join(argument.choices))

    def let(self, element: Element, state: State) -> None:
        """Set a launch configuration."""
        element.check(required=('name', 'value'))
        state.configurations[text(element, 'name', state)] = text(
            element, 'value', state)

    def set_env(self, element: Element, state: State) -> None:
        """Set an environment variable for the processes that follow."""
        element.check(required=('name', 'value'))
        state.environment[text(element, 'name', state)] = text(element, 'value', state)

    def unset_env(self, element: Element, state: State) -> None:
        """Remove an environment variable for the processes that follow."""
        element.check(required=('name',))
        state.environment.pop(text(element, 'name', state), None)

    def log(self, element: Element, state: State) -> None:
        """Log a line when the launch gets there."""
        element.check(required=('message',), optional=('level',))
        self.description.steps.append(LogLine(
            level=text(element, 'level', state, 'INFO').upper(),
            message=text(element, 'message', state)))

    def push_namespace(self, element: Element, state: State) -> None:
        """Put the nodes that follow into a namespace below the present one."""
        element.check(required=('namespace',))
        state.namespace = join_namespace(state.namespace, text(element, 'namespace', state))

    def set_remap(self, element: Element, state: State) -> None:
        """Remap a name for all nodes that follow."""
        element.check(required=('from', 'to'))
        state.remaps.append((text(element, 'from', state),
                                    text(element, 'to', state)))

    def set_parameter(self, element: Element, state: State) -> None:
        """Set a parameter of all nodes that follow."""
        element.check(required=('name', 'value'))
        state.parameters[text(element, 'name', state)] = parameter_value(
            element, text(element, 'value', state))

    def group(self, element: Element, state: State) -> None:
        """Perform the children, by default in a scope of their own."""
        element.check(optional=('scoped',), children=tuple(self.tags))
        scoped = truth(element, 'scoped', state, 'true')
        self.children(element, state.copy() if scoped else state)

    def include(self, element: Element, state: State) -> None:
        """Perform another launch file in this scope, with the arguments given to it."""
        element.check(required=('file',), children=('arg', 'let'))
        path = Path(text(element, 'file', state))
        path = path if path.is_absolute() else state.path.parent / path
        if state.depth >= MAX_INCLUDE_DEPTH:
            raise element.error(f'more than {MAX_INCLUDE_DEPTH} files include one another')
        if path.suffix != '.xml':
            raise element.error(f'{path}: only XML launch files can be included')
        for argument in element.children:
            argument.check(required=('name', 'value'), conditional=False)
            state.configurations[text(argument, 'name', state)] = text(
                argument, 'value', state)
        includer = state.path
        state.path, state.depth = path.resolve(), state.depth + 1
        self.children(read(path), state)
        state.path, state.depth = includer, state.depth - 1

    def node(self, element: Element, state: State) -> None:
        """Start a node: an executable of a package with ROS arguments."""
        element.check(required=('pkg', 'exec'), children=('param', 'remap', 'env'), optional=(
            *PROCESS_ATTRIBUTES, 'namespace', 'args', 'ros_args'))
        self.process(element, state, name=text(element, 'exec', state),
                     command=node_command(element, state))

    def executable(self, element: Element, state: State) -> None:
        """Start any program."""
        element.check(required=('cmd',), children=('env',),
                      optional=(*PROCESS_ATTRIBUTES, 'shell'))
        shell = truth(element, 'shell', state, 'false')
        command = (text(element, 'cmd', state),) if shell else words(
            element, 'cmd', state)
        if not command or not command[0].strip():
            raise element.error('cmd is empty')
        name = text(element, 'name', state) or Path(command[0].split()[0]).name
        self.process(element, state, name=name, command=command, shell=shell)

    def process(self, element: Element, state: State, *, name: str, command: tuple[str, ...],
                shell: bool = False) -> None:
        """Append a process with what nodes and executables have in common."""
        environment = dict(state.environment)
        for variable in element.named('env'):
            variable.check(required=('name', 'value'), conditional=False)
            environment[text(variable, 'name', state)] = text(variable, 'value', state)
        output = text(element, 'output', state, 'log')
        if output not in OUTPUTS:
            raise element.error(f'output {output!r}; expected one of {", ".join(OUTPUTS)}')
        on_exit = text(element, 'on_exit', state)
        if on_exit not in ('', 'shutdown'):
            raise element.error(f"on_exit {on_exit!r}; expected 'shutdown'")
        configured = state.configurations.get
        try:
            prefix = shlex.split(text(element, 'launch-prefix', state))
        except ValueError as error:
            raise element.error(f'launch-prefix: {error}') from error
        self.description.steps.append(ProcessDescription(
            name=name, command=(' '.join((*prefix, *command)),) if shell else (*prefix, *command),
            shell=shell, environment=environment, output=output,
            cwd=text(element, 'cwd', state) or None,
            respawn=truth(element, 'respawn', state, 'false'),
            respawn_delay=seconds(element, 'respawn_delay', state, '0'),
            shutdown_on_exit=on_exit == 'shutdown',
            sigterm_timeout=seconds(element, 'sigterm_timeout', state,
                                         configured('sigterm_timeout', '5')),
            sigkill_timeout=seconds(element, 'sigkill_timeout', state,
                                         configured('sigkill_timeout', '5'))))


def argument_of(element: Element) -> Argument:
    """Return the argument that an <arg> element declares."""
    element.check(required=('name',), optional=('default', 'description'), children=('choice',))
    for choice in element.children:
        choice.check(required=('value',), conditional=False)
    return Argument(name=element.attributes['name'], default=element.attributes.get('default'),
                    description=element.attributes.get('description', 'no description given'),
                    choices=tuple(choice.attributes['value'] for choice in element.children))
