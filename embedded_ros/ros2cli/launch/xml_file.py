"""Launch files as a tree of elements that know their file and line.

`xml.parsers.expat` instead of ElementTree because the latter keeps no line numbers, and
because document types (entity expansion, external entities) can be refused at their start.
"""

from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from ros2cli.errors import CommandError

TRUE = ('true', 'yes', 'on', '1')
FALSE = ('false', 'no', 'off', '0')


class LaunchFileError(CommandError):
    """A launch file says something that cannot be done; the message names file and line."""


@dataclass
class Element:
    """One XML element; text between elements has no meaning in launch files."""

    tag: str
    attributes: dict[str, str]
    path: Path
    line: int
    children: list['Element'] = field(default_factory=list)

    def error(self, message: str) -> LaunchFileError:
        """Return the error with this element's place in front of the message."""
        return LaunchFileError(f'{self.path}:{self.line}: <{self.tag}>: {message}')

    def check(self, *, required: tuple[str, ...] = (), optional: tuple[str, ...] = (),
              children: tuple[str, ...] = (), conditional: bool = True) -> None:
        """Raise LaunchFileError for a missing or unknown attribute or an unknown child.

        conditional: `if` and `unless` are known too (actions have them, their parts do not).
        """
        missing = [name for name in required if name not in self.attributes]
        if missing:
            raise self.error(f'attribute {missing[0]!r} is missing')
        allowed = {*required, *optional, *(('if', 'unless') if conditional else ())}
        unknown = sorted(set(self.attributes) - allowed)
        if unknown:
            raise self.error(f'unexpected attribute {unknown[0]!r}; known are '
                             f'{", ".join(sorted(allowed))}')
        for child in self.children:
            if child.tag not in children:
                raise child.error(f'unexpected inside <{self.tag}>; expected '
                                  f'{", ".join(children) or "nothing"}')

    def named(self, tag: str) -> list['Element']:
        """Return the children with this tag, in order."""
        return [child for child in self.children if child.tag == tag]


def read(path: Path) -> Element:
    """Read an XML launch file and return its <launch> element.

    Raises LaunchFileError when the file cannot be read, is no XML, has a document type, or has
    another root than <launch>.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LaunchFileError(f'{path}: cannot read the launch file: {error.strerror}') from error
    parser = expat.ParserCreate()
    top: list[Element] = []
    stack: list[Element] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = Element(tag, attributes, path, parser.CurrentLineNumber)
        (stack[-1].children if stack else top).append(element)
        stack.append(element)

    def doctype(*_: object) -> None:
        raise LaunchFileError(f'{path}:{parser.CurrentLineNumber}: document types are refused')

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda tag: stack.pop()
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise LaunchFileError(f'{path}:{error.lineno}: not well-formed XML: '
                              f'{expat.errors.messages[error.code]}') from error
    if top[0].tag != 'launch':
        raise top[0].error('the root of a launch file is <launch>')
    return top[0]


def to_bool(text: str) -> bool:
    """Return the truth of a launch boolean (any of TRUE or FALSE, in any case).

    Raises ValueError for everything else.
    """
    lowered = text.strip().lower()
    if lowered not in TRUE + FALSE:
        raise ValueError(f'{text!r} is no boolean; expected one of {", ".join(TRUE + FALSE)}')
    return lowered in TRUE
