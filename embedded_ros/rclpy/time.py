"""Points in time."""

from builtin_interfaces.msg import Time as TimeMessage

from rclpy.clock_type import ClockType
from rclpy.duration import INT64_MAX, NANOSECONDS, Duration


class Time:
    """A point in time of one kind of clock, in nanoseconds since that clock's zero."""

    def __init__(self, *, seconds: float = 0, nanoseconds: int = 0,
                 clock_type: ClockType = ClockType.SYSTEM_TIME) -> None:
        if not isinstance(clock_type, ClockType):
            raise TypeError(f'Clock type must be a ClockType enum, not {clock_type!r}')
        if seconds < 0:
            raise ValueError(f'Seconds value must not be negative, it is {seconds}')
        if nanoseconds < 0:
            raise ValueError(f'Nanoseconds value must not be negative, it is {nanoseconds}')
        total = int(seconds * NANOSECONDS) + int(nanoseconds)
        if total > INT64_MAX:
            raise OverflowError(f'{total} ns do not fit into 64 bits')
        self._nanoseconds = total
        self._clock_type = clock_type

    @property
    def nanoseconds(self) -> int:
        """All of it in nanoseconds."""
        return self._nanoseconds

    @property
    def clock_type(self) -> ClockType:
        """Which kind of clock it belongs to."""
        return self._clock_type

    def seconds_nanoseconds(self) -> tuple[int, int]:
        """Return whole seconds and the nanoseconds that remain."""
        return divmod(self._nanoseconds, NANOSECONDS)

    def to_msg(self) -> TimeMessage:
        """Return builtin_interfaces/Time."""
        seconds, rest = self.seconds_nanoseconds()
        return TimeMessage(sec=seconds, nanosec=rest)

    @classmethod
    def from_msg(cls, message: TimeMessage, clock_type: ClockType = ClockType.ROS_TIME) -> 'Time':
        """Return the time of builtin_interfaces/Time; raises TypeError for anything else."""
        if not isinstance(message, TimeMessage):
            raise TypeError(f'Must pass a builtin_interfaces.msg.Time object, not {message!r}')
        return cls(seconds=message.sec, nanoseconds=message.nanosec, clock_type=clock_type)

    def __repr__(self) -> str:
        return f'Time(nanoseconds={self._nanoseconds}, clock_type={self._clock_type.name})'

    def __add__(self, other: Duration) -> 'Time':
        if not isinstance(other, Duration):
            return NotImplemented
        return Time(nanoseconds=self._nanoseconds + other.nanoseconds, clock_type=self._clock_type)

    __radd__ = __add__

    def __sub__(self, other: 'Time | Duration') -> 'Time | Duration':
        if isinstance(other, Time):
            return Duration(nanoseconds=self._nanoseconds - self._comparable(other))
        if isinstance(other, Duration):
            return Time(nanoseconds=self._nanoseconds - other.nanoseconds,
                        clock_type=self._clock_type)
        return NotImplemented

    def _comparable(self, other: object) -> int:
        if not isinstance(other, Time):
            raise TypeError(f"Can't compare time with object of type {type(other).__name__!r}")
        if self._clock_type != other.clock_type:
            raise TypeError("Can't compare times with different clock types: "
                            f'{self._clock_type.name} and {other.clock_type.name}')
        return other.nanoseconds

    def __eq__(self, other: object) -> bool:
        return self._nanoseconds == self._comparable(other)

    def __hash__(self) -> int:
        return hash((self._nanoseconds, self._clock_type))

    def __lt__(self, other: 'Time') -> bool:
        return self._nanoseconds < self._comparable(other)

    def __le__(self, other: 'Time') -> bool:
        return self._nanoseconds <= self._comparable(other)

    def __gt__(self, other: 'Time') -> bool:
        return self._nanoseconds > self._comparable(other)

    def __ge__(self, other: 'Time') -> bool:
        return self._nanoseconds >= self._comparable(other)
