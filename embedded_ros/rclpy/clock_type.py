"""The kinds of clocks."""

from enum import IntEnum


class ClockType(IntEnum):
    """Kinds of clocks; times of different kinds cannot be compared."""

    UNINITIALIZED = 0
    ROS_TIME = 1
    SYSTEM_TIME = 2
    STEADY_TIME = 3
