"""Substitutions of launch files, `$(name argument …)`, evaluated to text.

Syntax as in launch's frontend grammar (ros2/launch, launch/frontend/grammar.lark): arguments are
separated by blanks, may be quoted with ' or " and may hold substitutions; a backslash takes the
next character literally. `command` is refused: a launch file is data here, not a shell.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ament_index_python.packages import (
    PackageNotFoundError,
    get_package_prefix,
    get_package_share_directory,
)

from ros2cli.errors import did_you_mean
from ros2cli.launch.expression import evaluate
from ros2cli.launch.xml_file import to_bool


class SubstitutionError(ValueError):
    """A substitution is malformed, unknown, refused, or cannot be resolved."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What substitutions may read: launch configurations, environment, and the file's path."""

    configurations: Mapping[str, str]
    environment: Mapping[str, str]
    path: Path


def substitute(text: str, scope: Scope) -> str:
    """Return text with every `$(…)` replaced by its value; raises SubstitutionError."""
    out: list[str] = []
    at = 0
    while at < len(text):
        if text[at] == '\\' and at + 1 < len(text) and text[at + 1] in '\\$\'"':
            out.append(text[at + 1])
            at += 2
        elif text.startswith('$(', at):
            value, at = _call(text, at + 2, scope)
            out.append(value)
        else:
            out.append(text[at])
            at += 1
    return ''.join(out)


def _call(text: str, at: int, scope: Scope) -> tuple[str, int]:
    """Evaluate the substitution whose name starts at `at`; return value and where it ends."""
    start = at
    words: list[str] = []
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if at >= len(text):
            raise SubstitutionError(f"'$({text[start:]}' has no closing parenthesis")
        if text[at] == ')':
            break
        word, at = _word(text, at, scope)
        words.append(word)
    if not words:
        raise SubstitutionError('$() has no name')
    return _perform(words[0], words[1:], scope), at + 1


def words(text: str, scope: Scope) -> list[str]:
    """Split a command line at blanks outside quotes, substitutions evaluated.

    A value is never split again, so that a path with a blank stays one argument, and a value
    that is empty is an empty argument, as in launch.
    """
    found: list[str] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        word, at = _word(text, at, scope, ends='')
        found.append(word)
    return found


def _word(text: str, at: int, scope: Scope, *, ends: str = ')') -> tuple[str, int]:
    """Read one argument, quoted or not, with the substitutions in it evaluated."""
    quote = text[at] if text[at] in '\'"' else ''
    at += len(quote)
    out: list[str] = []
    while at < len(text):
        char = text[at]
        if char == quote or (not quote and (char.isspace() or char in ends)):
            return ''.join(out), at + len(quote)
        if char == '\\' and at + 1 < len(text):
            out.append(text[at + 1])
            at += 2
        elif text.startswith('$(', at):
            value, at = _call(text, at + 2, scope)
            out.append(value)
        else:
            out.append(char)
            at += 1
    if quote:
        raise SubstitutionError(f'quote {quote} in {text!r} is not closed')
    return ''.join(out), at


def _var(arguments: list[str], scope: Scope) -> str:
    name = arguments[0]
    if name in scope.configurations:
        return scope.configurations[name]
    if len(arguments) > 1:
        return arguments[1]
    raise SubstitutionError(f"launch configuration '{name}' does not exist"
                            + did_you_mean(name, scope.configurations))


def _env(arguments: list[str], scope: Scope) -> str:
    value = scope.environment.get(arguments[0], arguments[1] if len(arguments) > 1 else None)
    if value is None:
        raise SubstitutionError(f"environment variable '{arguments[0]}' does not exist and "
                                'no default is given')
    return value


def _package(find: Callable[[str], str]) -> Callable[[list[str], Scope], str]:
    def find_package(arguments: list[str], scope: Scope) -> str:
        try:
            return str(find(arguments[0]))
        except PackageNotFoundError as error:
            raise SubstitutionError(f"package '{arguments[0]}' not found in "
                                    f"{os.environ.get('AMENT_PREFIX_PATH', 'any prefix')}"
                                    ) from error
    return find_package


def _text(value: bool) -> str:
    return 'true' if value else 'false'


# name -> (fewest arguments, most arguments, evaluation)
SUBSTITUTIONS: dict[str, tuple[int, int, Callable[[list[str], Scope], str]]] = {
    'var': (1, 2, _var),
    'env': (1, 2, _env),
    'find-pkg-share': (1, 1, _package(get_package_share_directory)),
    'find-pkg-prefix': (1, 1, _package(get_package_prefix)),
    'dirname': (0, 0, lambda arguments, scope: str(scope.path.parent)),
    'filename': (0, 0, lambda arguments, scope: str(scope.path)),
    'eval': (1, 99, lambda arguments, scope: evaluate(' '.join(arguments))),
    'not': (1, 1, lambda arguments, scope: _text(not to_bool(arguments[0]))),
    'and': (2, 2, lambda arguments, scope: _text(all([to_bool(a) for a in arguments]))),
    'or': (2, 2, lambda arguments, scope: _text(any([to_bool(a) for a in arguments]))),
    'equals': (2, 2, lambda arguments, scope: _text(arguments[0] == arguments[1])),
    'not-equals': (2, 2, lambda arguments, scope: _text(arguments[0] != arguments[1])),
}


def _perform(name: str, arguments: list[str], scope: Scope) -> str:
    if name == 'command':
        raise SubstitutionError('$(command …) is refused: reading a launch file runs no program')
    if name not in SUBSTITUTIONS:
        raise SubstitutionError(f"unknown substitution '{name}'; known are "
                                + ', '.join(SUBSTITUTIONS))
    fewest, most, perform = SUBSTITUTIONS[name]
    if not fewest <= len(arguments) <= most:
        expected = str(fewest) if fewest == most else f'{fewest} to {most}'
        raise SubstitutionError(f'$({name}) takes {expected} arguments, {len(arguments)} given')
    try:
        return perform(arguments, scope)
    except SubstitutionError:
        raise
    except ValueError as error:
        raise SubstitutionError(f'$({name} {" ".join(arguments)}): {error}') from error
