"""The launch's own lines: on the screen as launch prints them, and all of them in a log file."""

import os
import sys
import time
from pathlib import Path
from types import TracebackType

from ros2cli.errors import CommandError


class LaunchLog:
    """Writes `[LEVEL] [name]: text` and `[process] line`; a context manager for its file.

    The file is `launch.log` in a folder of its own below $ROS_LOG_DIR, else $ROS_HOME/log, else
    ~/.ros/log. It also gets what processes print and the screen does not show.
    """

    def __init__(self) -> None:
        home = Path(os.environ.get('ROS_HOME') or Path.home() / '.ros')
        base = Path(os.environ.get('ROS_LOG_DIR') or home / 'log')
        stamp = time.strftime('%Y-%m-%d-%H-%M-%S')
        self.folder = base / f'{stamp}-{time.time_ns() % 10**9 // 1000:06d}-{os.getpid()}'
        try:
            self.folder.mkdir(parents=True)
            self._file = (self.folder / 'launch.log').open('w', encoding='utf-8', buffering=1)
        except OSError as error:
            raise CommandError(f'cannot write logs to {self.folder}: {error.strerror}; set '
                               'ROS_LOG_DIR to a folder that can be written') from error

    def __enter__(self) -> 'LaunchLog':
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._file.close()

    def event(self, level: str, name: str, text: str) -> None:
        """Log something that the launch did or saw."""
        self._file.write(f'{time.time():.6f} [{level}] [{name}]: {text}\n')
        self._screen(f'[{level}] [{name}]: {text}')

    def output(self, name: str, line: str, *, screen: bool) -> None:
        """Log a line that a process printed."""
        self._file.write(f'{time.time():.6f} [{name}] {line}\n')
        if screen:
            self._screen(f'[{name}] {line}')

    @staticmethod
    def _screen(line: str) -> None:
        try:
            print(line, flush=True)
        except BrokenPipeError:
            # The reader of our output is gone; the processes still have to be ended in order.
            sys.stdout = open(os.devnull, 'w', encoding='utf-8')  # noqa: SIM115
