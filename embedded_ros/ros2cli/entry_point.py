"""Run a console script of a distribution: `python -m ros2cli.entry_point PACKAGE NAME args…`.

The scripts that installers write may be on no known path (colcon's prefixes, editable installs);
the entry point itself always is in the distribution's metadata.
"""

import sys
from importlib.metadata import distribution


def main() -> object:
    """Load the entry point and call it as its own script would, with argv and path in place."""
    package, name = sys.argv[1:3]
    sys.argv = [name, *sys.argv[3:]]
    # `-m` puts the working folder first on the path, where any file could shadow a module.
    if not getattr(sys.flags, 'safe_path', False):
        sys.path.pop(0)
    scripts = distribution(package).entry_points.select(group='console_scripts', name=name)
    return next(iter(scripts)).load()()


if __name__ == '__main__':
    sys.exit(main())
