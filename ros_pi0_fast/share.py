"""Where this package's data files are: messages, robot profiles, launch files, checkpoints."""

from __future__ import annotations

from pathlib import Path

_NAME = 'ros_pi0_fast'
_SOURCE = Path(__file__).resolve().parent.parent


def share_folder() -> Path:
    """Return the folder that has config/, launch/, msg/ and checkpoints/ in it.

    It is the source tree where the package runs from there (also by an editable install), else
    `share/ros_pi0_fast` of the prefix that it is installed to.

    Raises:
        FileNotFoundError: the package was installed without its data files.
    """
    if (_SOURCE / 'package.xml').is_file():
        return _SOURCE
    tried = [parent / 'share' / _NAME for parent in _SOURCE.parents]
    for folder in tried:
        if (folder / 'package.xml').is_file():
            return folder
    raise FileNotFoundError(f'no share/{_NAME} with a package.xml above {_SOURCE}: the data files '
                            'of the package are not installed')
