"""The message definitions with which bags are read and written: ROS 2's, and this package's."""

from __future__ import annotations

from functools import cache

from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from ros_pi0_fast.share import share_folder

PACKAGE = 'ros_pi0_fast'


@cache
def bag_types() -> Typestore:
    """Return Jazzy's standard definitions and those of msg/*.msg, as `ros_pi0_fast/msg/<Name>`.

    Raises:
        FileNotFoundError: the package's data files are not installed.
    """
    store = get_typestore(Stores.ROS2_JAZZY)
    for path in sorted((share_folder() / 'msg').glob('*.msg')):
        store.register(get_types_from_msg(path.read_text('utf-8'),
                                          f'{PACKAGE}/msg/{path.stem}'))
    return store
