"""What stands behind the `rclpy` of this distribution: messages, CDR, DDS.

A user imports `rclpy`, `std_msgs.msg` and so on; nothing outside this distribution imports
`embedded_ros`, except `python -m embedded_ros.interfaces`, which installs a package's messages.
"""

import os

DISTROS = ('jazzy', 'humble')


def distro() -> str:
    """Return the ROS 2 distribution whose wire format is spoken: $EMBEDDED_ROS_DISTRO or jazzy.

    Raises ValueError when the variable names another one.
    """
    name = os.environ.get('EMBEDDED_ROS_DISTRO', '') or 'jazzy'
    if name not in DISTROS:
        raise ValueError(f'EMBEDDED_ROS_DISTRO is {name!r}; expected one of {", ".join(DISTROS)}')
    return name
