"""Spans of time."""

from builtin_interfaces.msg import Duration as DurationMessage

NANOSECONDS = 1_000_000_000
INT64_MAX = 2**63 - 1


class Duration:
    """A signed span of time in nanoseconds."""

    def __init__(self, *, seconds: float = 0, nanoseconds: int = 0) -> None:
        total = int(seconds * NANOSECONDS) + int(nanoseconds)
        if not -INT64_MAX - 1 <= total <= INT64_MAX:
            raise OverflowError(f'{total} ns do not fit into 64 bits')
        self._nanoseconds = total

    @property
    def nanoseconds(self) -> int:
        """The whole span in nanoseconds."""
        return self._nanoseconds

    def to_msg(self) -> DurationMessage:
        """Return builtin_interfaces/Duration."""
        seconds, rest = divmod(self._nanoseconds, NANOSECONDS)
        return DurationMessage(sec=seconds, nanosec=rest)

    @classmethod
    def from_msg(cls, message: DurationMessage) -> 'Duration':
        """Return the span of builtin_interfaces/Duration; raises TypeError for anything else."""
        if not isinstance(message, DurationMessage):
            raise TypeError(f'Must pass a builtin_interfaces.msg.Duration object, not {message!r}')
        return cls(nanoseconds=message.sec * NANOSECONDS + message.nanosec)

    def get_c_duration(self) -> int:
        """Return nanoseconds."""
        return self._nanoseconds

    def __repr__(self) -> str:
        return f'Duration(nanoseconds={self._nanoseconds})'

    def __str__(self) -> str:
        return 'Infinite' if self == Infinite else f'{self._nanoseconds} nanoseconds'

    def __eq__(self, other: object) -> bool:
        return self._nanoseconds == _of(other, '==')

    def __hash__(self) -> int:
        return hash(self._nanoseconds)

    def __lt__(self, other: 'Duration') -> bool:
        return self._nanoseconds < _of(other, '<')

    def __le__(self, other: 'Duration') -> bool:
        return self._nanoseconds <= _of(other, '<=')

    def __gt__(self, other: 'Duration') -> bool:
        return self._nanoseconds > _of(other, '>')

    def __ge__(self, other: 'Duration') -> bool:
        return self._nanoseconds >= _of(other, '>=')

    def __mul__(self, factor: float) -> 'Duration':
        return Duration(nanoseconds=int(self._nanoseconds * factor))

    def __add__(self, other: 'Duration') -> 'Duration':
        if not isinstance(other, Duration):
            return NotImplemented
        return Duration(nanoseconds=self._nanoseconds + other.nanoseconds)

    def __sub__(self, other: 'Duration') -> 'Duration':
        if not isinstance(other, Duration):
            return NotImplemented
        return Duration(nanoseconds=self._nanoseconds - other.nanoseconds)


def _of(other: object, operation: str) -> int:
    if not isinstance(other, Duration):
        raise TypeError(f'{operation}: cannot compare a duration with {type(other).__name__!r}')
    return other.nanoseconds


Infinite = Duration(nanoseconds=INT64_MAX)
