"""What stands behind the `rclpy` of this distribution: messages, CDR, DDS.

A user imports `rclpy`, `std_msgs.msg` and so on; nothing outside this distribution imports
`embedded_ros`, except `python -m embedded_ros.interfaces`, which installs a package's messages.
"""

import os

# ROS_DISTRO -> whose wire format that distribution speaks
WIRES = {'humble': 'humble', 'jazzy': 'jazzy', 'kilted': 'jazzy', 'lyrical': 'jazzy',
         'rolling': 'jazzy'}


class SettingError(ValueError):
    """An environment variable has a value that it cannot have."""


def distro() -> str:
    """Return whose wire format is spoken, 'jazzy' or 'humble': that of $ROS_DISTRO, else jazzy's.

    Raises SettingError when the variable names a distribution of another wire format.
    """
    name = os.environ.get('ROS_DISTRO', '') or 'jazzy'
    if name not in WIRES:
        raise SettingError(f'ROS_DISTRO is {name!r}; expected one of {", ".join(WIRES)}, or unset')
    return WIRES[name]
