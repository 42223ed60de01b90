"""One process of a launch: start it, pass on what it prints, end it with everything it started."""

import asyncio
import ctypes
import os
import shlex
import signal
import sys
from collections.abc import Callable

from ros2cli.launch.description import ProcessDescription
from ros2cli.launch.log import LaunchLog

PR_SET_PDEATHSIG = 1    # linux/prctl.h
MAX_LINE = 1 << 16      # bytes of one printed line before it is passed on in parts
POLL = 0.02             # s between two looks at a process
STRAGGLER_GRACE = 0.5   # s that a dead process's own children have to end by themselves


class LaunchedProcess:
    """A process in a session of its own, so that signals reach its whole family and only it."""

    def __init__(self, number: int, description: ProcessDescription, log: LaunchLog) -> None:
        self.description = description
        self.label = f'{description.name}-{number}'
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._started = asyncio.Event()  # set also when the start failed

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    def report(self, level: str, text: str) -> None:
        """Log something about this process."""
        self._log.event(level, self.label, text)

    async def run(self) -> int:
        """Start the process, wait for its end, and return its exit code (-N: signal N).

        A command that cannot be started counts as exit code 127, as in a shell.
        """
        try:
            self._process = await self._start()
        except OSError as error:
            self.report('ERROR', f'cannot start {self._command()}: {error.strerror}')
            return 127
        finally:
            self._started.set()
        pid = self._process.pid
        self.report('INFO', f'process started with pid [{pid}]')
        everything = self.description.output in ('screen', 'both', 'full')
        readers = [asyncio.ensure_future(self._forward(self._process.stdout, everything)),
                   asyncio.ensure_future(self._forward(self._process.stderr, True))]
        # Process.wait would also wait for the pipes, which children of a dead process hold open.
        while self._process.returncode is None:
            await asyncio.sleep(POLL)
        code = self._process.returncode
        await _end_family(pid)
        # A descendant in a session of its own may hold the pipes open for ever.
        _, unfinished = await asyncio.wait(readers, timeout=STRAGGLER_GRACE)
        for reader in unfinished:
            reader.cancel()
        if code == 0:
            self.report('INFO', f'process has finished cleanly [pid {pid}]')
        else:
            self.report('ERROR', f'process has died [pid {pid}, exit code {code}, '
                                 f"cmd '{self._command()}'].")
        return code

    async def _start(self) -> asyncio.subprocess.Process:
        # Python buffers its output when nobody looks at a terminal; a launch is looked at.
        environment = {'PYTHONUNBUFFERED': '1', **self.description.environment}
        start = (asyncio.create_subprocess_shell if self.description.shell
                 else asyncio.create_subprocess_exec)
        return await start(
            *self.description.command, env=environment, cwd=self.description.cwd,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, start_new_session=True,
            preexec_fn=_die_with(os.getpid()) if sys.platform == 'linux' else None)

    def _command(self) -> str:
        command = self.description.command
        return command[0] if self.description.shell else shlex.join(command)

    async def _forward(self, stream: asyncio.StreamReader, screen: bool) -> None:
        """Log a stream by lines; an unfinished last line counts as one."""
        rest = b''
        while data := await stream.read(MAX_LINE):
            *lines, rest = (rest + data).split(b'\n')
            if len(rest) > MAX_LINE:
                lines, rest = [*lines, rest], b''
            for line in lines:
                self._log.output(self.label, _decode(line), screen=screen)
        if rest:
            self._log.output(self.label, _decode(rest), screen=screen)

    async def stop(self) -> None:
        """Send SIGINT, then SIGTERM, then SIGKILL, each after its timeout, until it has ended."""
        await self._started.wait()
        clock = asyncio.get_running_loop().time
        steps = ((signal.SIGINT, self.description.sigterm_timeout, 'SIGTERM'),
                 (signal.SIGTERM, self.description.sigkill_timeout, 'SIGKILL'))
        for number, timeout, following in steps:
            if not self.running:
                return
            self.report('INFO', f"sending signal '{number.name}' to process[{self.label}]")
            _signal_family(self._process.pid, number)
            deadline = clock() + timeout
            while self.running and clock() < deadline:
                await asyncio.sleep(POLL)
            if self.running:
                self.report('ERROR', f"process[{self.label}] failed to terminate '{timeout:g}' "
                                     f"seconds after receiving '{number.name}', escalating to "
                                     f"'{following}'")
        if self.running:
            _signal_family(self._process.pid, signal.SIGKILL)


def _decode(line: bytes) -> str:
    return line.decode('utf-8', errors='replace').rstrip('\r')


def _die_with(parent: int) -> Callable[[], None]:
    """Return what a child calls before exec: the kernel ends it when its launch is killed."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the launch died before the line above
            os.kill(os.getpid(), signal.SIGTERM)
    return call


def _signal_family(pid: int, number: int) -> bool:
    """Signal the process group that a session leader began; return whether it has members."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return False
    return True


async def _end_family(pid: int) -> None:
    """End what a dead process left behind in its group, the hard way after a grace."""
    for _ in range(round(STRAGGLER_GRACE / POLL)):
        if not _signal_family(pid, 0):
            return
        await asyncio.sleep(POLL)
    _signal_family(pid, signal.SIGKILL)
