"""Values as parameter files and `-p` write them: YAML as rcl's parser reads it.

PyYAML alone would take `1e-3` for a string, `12:30` for a number and `2020-01-01` for a date.
"""

import re

import yaml


class Loader(yaml.SafeLoader):
    """Safe YAML with rcl's scalars: bool, int, float, null, else string."""


_SCALARS = (
    ('bool', r'^(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$',
     'yYnNtTfFoO'),
    ('int', r'^[-+]?(?:0x[0-9a-fA-F]+|[0-9]+)$', '-+0123456789'),
    ('float', r'^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+'
              r'|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$', '-+.0123456789'),
    ('null', r'^(?:~|null|Null|NULL|)$', '~nN\0'),
)
Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _SCALARS:
    Loader.add_implicit_resolver(f'tag:yaml.org,2002:{_name}', re.compile(_pattern),
                                 [*_first.replace('\0', ''), *([''] if '\0' in _first else [])])


def _decimal(loader: Loader, node: yaml.Node) -> int:
    """Read an int; a leading zero does not make it octal."""
    text = loader.construct_scalar(node)
    return int(text, 16) if 'x' in text else int(text)


Loader.add_constructor('tag:yaml.org,2002:int', _decimal)


def load(text: str) -> object:
    """Return the value of a YAML text; raises ValueError when it is not YAML."""
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise ValueError(f'not valid YAML: {error}') from error
