"""The prefixes in which packages are looked for."""

import os
import sys
from pathlib import Path


def get_search_paths() -> list[str]:
    """Return the folders of $AMENT_PREFIX_PATH that exist, then this environment's prefix."""
    given = os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
    found = [path for path in given if path and Path(path).is_dir()]
    return [*dict.fromkeys([*found, sys.prefix])]
