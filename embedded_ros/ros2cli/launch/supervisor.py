"""Run all processes of a launch until they are done, one that matters ends, or the user stops."""

import asyncio
import signal

from ros2cli.launch.description import LaunchDescription, LogLine, ProcessDescription
from ros2cli.launch.log import LaunchLog
from ros2cli.launch.process import LaunchedProcess


class Supervisor:
    """Owns the processes of one launch; `run` returns when none of them is left."""

    def __init__(self, description: LaunchDescription, log: LaunchLog) -> None:
        self._description = description
        self._log = log
        self._shutdown = asyncio.Event()
        self._exit_code = 0

    async def run(self) -> int:
        """Return the launch's exit code.

        It is that of the process which ended the launch: one with on_exit="shutdown", or, when
        all ended by themselves, the first that failed. 128 + N stands for signal N. A launch
        that the user ends by SIGINT or SIGTERM returns 0.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, number)
        tasks = []
        for step in self._description.steps:
            if isinstance(step, LogLine):
                self._log.event(step.level, 'launch.user', step.message)
            else:
                process = LaunchedProcess(len(tasks) + 1, step, self._log)
                tasks.append(asyncio.ensure_future(self._supervise(process, step)))
                await asyncio.sleep(0)  # start in the order of the file
        await asyncio.gather(*tasks)
        return self._exit_code

    def _on_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        source = 'ctrl-c (SIGINT)' if number == signal.SIGINT else f'signal {name}'
        again = ' again, ignoring...' if self._shutdown.is_set() else ''
        self._log.event('WARNING', 'launch', f'user interrupted with {source}{again}')
        self._shutdown.set()

    async def _supervise(self, process: LaunchedProcess, description: ProcessDescription) -> None:
        """Run one process, again and again where respawn is set, until it or the launch ends."""
        while not self._shutdown.is_set():
            code = await self._run_once(process)
            if self._shutdown.is_set():
                return
            if description.shutdown_on_exit:
                process.report('INFO', 'its exit shuts the launch down')
                self._exit_code = shell_exit_code(code)
                self._shutdown.set()
                return
            if not description.respawn:
                self._exit_code = self._exit_code or shell_exit_code(code)
                return
            await asyncio.wait({asyncio.ensure_future(self._shutdown.wait())},
                               timeout=description.respawn_delay)

    async def _run_once(self, process: LaunchedProcess) -> int:
        running = asyncio.ensure_future(process.run())
        stopping = asyncio.ensure_future(self._shutdown.wait())
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not running.done():
            await process.stop()
        return await running


def shell_exit_code(code: int) -> int:
    """Return what a shell reports for a process's code: 128 + N for signal N."""
    return 128 - code if code < 0 else code
