"""Log messages on stderr, and on /rosout."""

import os
import sys
import threading
import time
from collections.abc import Callable
from enum import IntEnum

from rclpy.clock_type import ClockType


class LoggingSeverity(IntEnum):
    """How grave a message is."""

    UNSET = 0
    DEBUG = 10
    INFO = 20
    WARN = 30
    ERROR = 40
    FATAL = 50


FORMAT = '[{severity}] [{time}] [{name}]: {message}'
COLORS = {LoggingSeverity.DEBUG: '\033[32m', LoggingSeverity.WARN: '\033[33m',
          LoggingSeverity.ERROR: '\033[31m', LoggingSeverity.FATAL: '\033[31m'}
Sink = Callable[[LoggingSeverity, str, str, dict], None]

_levels: dict[str, LoggingSeverity] = {'': LoggingSeverity.INFO}
_loggers: dict[str, 'RcutilsLogger'] = {}
_rosout: dict[str, Sink] = {}
_console = True
_lock = threading.RLock()


class _CallSite:
    """What a line of code that logs remembers from call to call."""

    def __init__(self) -> None:
        self.last: float | None = None
        self.count = 0


class RcutilsLogger:
    """A named logger; `node.child` is below `node` and takes its level unless it has one."""

    def __init__(self, name: str = '') -> None:
        self.name = name
        self._sites: dict[tuple[str, int], _CallSite] = {}

    def get_child(self, name: str) -> 'RcutilsLogger':
        """Return the logger `own_name.name`."""
        if not isinstance(name, str) or not name:
            raise ValueError(f'Need to have a non-empty name for a child logger, not {name!r}')
        return get_logger(f'{self.name}.{name}' if self.name else name)

    def set_level(self, level: LoggingSeverity) -> None:
        """Show messages from this severity on; UNSET takes the parent's level."""
        set_logger_level(self.name, level)

    def get_effective_level(self) -> LoggingSeverity:
        """Return the level in force, its own or inherited."""
        return get_logger_effective_level(self.name)

    def is_enabled_for(self, severity: LoggingSeverity) -> bool:
        """Tell whether messages of a severity are shown."""
        return LoggingSeverity(severity) >= self.get_effective_level()

    def log(self, message: str, severity: LoggingSeverity, *,
            throttle_duration_sec: float | None = None,
            throttle_time_source_type: object = None, skip_first: bool = False,
            once: bool = False, **unknown: object) -> bool:
        """Log; tells whether it was shown. Filters count for each line of code on its own.

        `throttle_time_source_type` is a clock; the steady time is used without one. Raises
        TypeError for a filter that does not exist.
        """
        if unknown:
            raise TypeError(f'unknown logging arguments: {", ".join(unknown)}')
        if not self.is_enabled_for(severity):
            return False
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename == __file__:
            frame = frame.f_back
        where = {'file': frame.f_code.co_filename, 'line': frame.f_lineno,
                 'function': frame.f_code.co_name}
        if once or skip_first or throttle_duration_sec is not None:
            site = self._sites.setdefault((where['file'], where['line']), _CallSite())
            if not _passes(site, once, skip_first, throttle_duration_sec,
                           throttle_time_source_type):
                return False
        emit(LoggingSeverity(severity), self.name, str(message), where)
        return True

    def debug(self, message: str, **filters: object) -> bool:
        """Log a message of severity DEBUG; see log."""
        return self.log(message, LoggingSeverity.DEBUG, **filters)

    def info(self, message: str, **filters: object) -> bool:
        """Log a message of severity INFO; see log."""
        return self.log(message, LoggingSeverity.INFO, **filters)

    def warning(self, message: str, **filters: object) -> bool:
        """Log a message of severity WARN; see log."""
        return self.log(message, LoggingSeverity.WARN, **filters)

    warn = warning

    def error(self, message: str, **filters: object) -> bool:
        """Log a message of severity ERROR; see log."""
        return self.log(message, LoggingSeverity.ERROR, **filters)

    def fatal(self, message: str, **filters: object) -> bool:
        """Log a message of severity FATAL; see log."""
        return self.log(message, LoggingSeverity.FATAL, **filters)


def _passes(site: _CallSite, once: bool, skip_first: bool, period: float | None,
            clock: object) -> bool:
    """Tell whether a line's filters let this message through."""
    site.count += 1
    if skip_first and site.count == 1:
        return False
    if once and site.count > 1 + skip_first:
        return False
    if period is None:
        return True
    is_clock = hasattr(clock, 'now') and getattr(clock, 'clock_type', 0) != ClockType.UNINITIALIZED
    now = clock.now().nanoseconds * 1e-9 if is_clock else time.monotonic()
    if site.last is not None and 0 <= now - site.last < period:
        return False
    site.last = now
    return True


def emit(severity: LoggingSeverity, name: str, message: str, where: dict) -> None:
    """Write one message to stderr and to the /rosout of its logger's node."""
    now = time.time_ns()
    if _console:
        text = os.environ.get('RCUTILS_CONSOLE_OUTPUT_FORMAT', '') or FORMAT
        for key, value in (('severity', severity.name), ('name', name), ('message', message),
                           ('time', f'{now // 10**9}.{now % 10**9:09}'),
                           ('time_as_nanoseconds', str(now)), ('file_name', where['file']),
                           ('function_name', where['function']),
                           ('line_number', str(where['line']))):
            text = text.replace(f'{{{key}}}', value)
        color = COLORS.get(severity) if _colorized() else None
        sys.stderr.write(f'{color}{text}\033[0m\n' if color else f'{text}\n')
        sys.stderr.flush()
    with _lock:
        sink = next((_rosout[parent] for parent in _parents(name) if parent in _rosout), None)
    if sink is not None:
        sink(severity, name, message, {**where, 'stamp': now})


def _colorized() -> bool:
    choice = os.environ.get('RCUTILS_COLORIZED_OUTPUT', '')
    return choice == '1' if choice in ('0', '1') else sys.stderr.isatty()


def _parents(name: str) -> list[str]:
    """Return a logger's name and those above it, nearest first, without the root's."""
    parts = name.split('.')
    return ['.'.join(parts[:end]) for end in range(len(parts), 0, -1)]


def get_logger(name: str) -> RcutilsLogger:
    """Return the logger of a name."""
    with _lock:
        return _loggers.setdefault(name, RcutilsLogger(name))


def set_logger_level(name: str, level: LoggingSeverity, detailed_error: bool = False) -> None:
    """Show a logger's messages from this severity on ('' is the default of all)."""
    _levels[name] = LoggingSeverity(level)


def get_logger_level(name: str) -> LoggingSeverity:
    """Return a logger's own level, UNSET without one."""
    return _levels.get(name, LoggingSeverity.UNSET)


def get_logger_effective_level(name: str) -> LoggingSeverity:
    """Return the level in force for a logger."""
    for parent in (*_parents(name), ''):
        if _levels.get(parent, LoggingSeverity.UNSET) != LoggingSeverity.UNSET:
            return _levels[parent]
    return LoggingSeverity.INFO


def get_logging_severity_from_string(text: str) -> LoggingSeverity:
    """Return a severity by its name."""
    return LoggingSeverity[text.upper()]


def get_logging_directory() -> str:
    """Return the folder for log files."""
    home = os.environ.get('ROS_HOME') or os.path.join('~', '.ros')
    return os.path.expanduser(os.environ.get('ROS_LOG_DIR') or os.path.join(home, 'log'))


def configure_logging(arguments: object) -> None:
    """Apply the levels and switches of `--ros-args`."""
    global _console
    _console = '--disable-stdout-logs' not in arguments.flags
    for name, level in arguments.log_levels.items():
        set_logger_level(name, LoggingSeverity[level])


def add_rosout(logger_name: str, sink: Sink) -> None:
    """Send the messages of a logger and of those below it to a node's publisher too."""
    with _lock:
        _rosout[logger_name] = sink


def remove_rosout(logger_name: str, sink: Sink) -> None:
    """Stop sending messages to a node's publisher."""
    with _lock:
        if _rosout.get(logger_name) == sink:
            del _rosout[logger_name]
