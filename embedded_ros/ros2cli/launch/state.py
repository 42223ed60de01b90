"""What the elements of a launch file see and change, and their attributes read in that light."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from ros2cli.launch import substitutions
from ros2cli.launch.xml_file import Element, to_bool


@dataclass
class State:
    """The scope of the elements that are being performed."""

    path: Path                         # the launch file
    parameter_folder: Path             # where files of inline parameters are written
    configurations: dict[str, str]     # what $(var …) reads
    environment: dict[str, str]        # what processes get and $(env …) reads
    namespace: str = ''                # pushed namespace; empty: the root
    remaps: list[tuple[str, str]] = field(default_factory=list)         # <set_remap>
    parameters: dict[str, object] = field(default_factory=dict)         # <set_parameter>
    depth: int = 0                     # of includes

    def copy(self) -> 'State':
        """Return a state whose changes stay inside a group."""
        return replace(self, configurations=dict(self.configurations),
                       environment=dict(self.environment), remaps=list(self.remaps),
                       parameters=dict(self.parameters))

    @property
    def scope(self) -> substitutions.Scope:
        """What substitutions may read now."""
        return substitutions.Scope(configurations=self.configurations,
                                   environment=self.environment, path=self.path)


def text(element: Element, attribute: str, state: State, default: str = '') -> str:
    """Return an attribute with its substitutions made; raises LaunchFileError."""
    try:
        return substitutions.substitute(element.attributes.get(attribute, default), state.scope)
    except substitutions.SubstitutionError as error:
        raise element.error(f'{attribute}: {error}') from error


def words(element: Element, attribute: str, state: State) -> tuple[str, ...]:
    """Return an attribute as the arguments of a command line; raises LaunchFileError."""
    try:
        return tuple(substitutions.words(element.attributes.get(attribute, ''), state.scope))
    except substitutions.SubstitutionError as error:
        raise element.error(f'{attribute}: {error}') from error


def truth(element: Element, attribute: str, state: State, default: str) -> bool:
    """Return a boolean attribute; raises LaunchFileError."""
    try:
        return to_bool(text(element, attribute, state, default))
    except ValueError as error:
        raise element.error(f'{attribute}: {error}') from error


def seconds(element: Element, attribute: str, state: State, default: str) -> float:
    """Return an attribute that is a number of seconds, 0 or more; raises LaunchFileError."""
    value = text(element, attribute, state, default)
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < float('inf'):
        raise element.error(f'{attribute}: {value!r}; expected seconds, 0 or more')
    return number


def join_namespace(outer: str, inner: str) -> str:
    """Return inner below outer; an absolute inner namespace stands alone."""
    if inner.startswith('/'):
        return inner.rstrip('/')
    return f'{outer}/{inner}'.rstrip('/') if inner else outer
