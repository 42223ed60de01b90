"""`ros2 launch` as a process: what it prints, how it ends, and that nothing outlives it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

PYTHON = sys.executable
WAIT = 20.0  # s; far above what is needed, for a busy machine


class Launch:
    """A running `ros2 launch` whose output is read from a file."""

    def __init__(self, folder: Path, body: str, *arguments: str) -> None:
        path = folder / 'test.launch.xml'
        path.write_text(f'<launch>{body}</launch>')
        self.output_path = folder / 'output'
        with self.output_path.open('wb') as output:
            self.process = subprocess.Popen(
                [PYTHON, '-m', 'ros2cli.main', 'launch', str(path), *arguments], stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, 'ROS_LOG_DIR': str(folder / 'log'), 'TMPDIR': str(folder)})

    @property
    def output(self) -> str:
        return self.output_path.read_text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + WAIT
        while not (match := re.search(pattern, self.output)):
            assert time.monotonic() < deadline, f'no {pattern!r} in:\n{self.output}'
            assert self.process.poll() is None, f'launch has ended:\n{self.output}'
            time.sleep(0.02)
        return match

    def end(self) -> int:
        return self.process.wait(WAIT)


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., Launch]:
    started = []

    def start(body: str, *arguments: str) -> Launch:
        started.append(Launch(tmp_path, body, *arguments))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


def script(folder: Path, name: str, code: str) -> str:
    """Write a Python program and return the attribute that runs it."""
    path = folder / name
    path.write_text(code)
    return f'cmd="{PYTHON} {path}" name="{name}"'


def alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie that nobody has collected yet does not."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def gone(*pids: int) -> bool:
    deadline = time.monotonic() + WAIT
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(alive(pid) for pid in pids)


SLEEPER = 'import time\nprint("up", flush=True)\ntime.sleep(60)\n'
STUBBORN = """
import signal, sys, time
for number in map(int, sys.argv[1:]):
    signal.signal(number, signal.SIG_IGN)
print('up', flush=True)
time.sleep(60)
"""


def test_output_is_prefixed_and_ends_are_reported(launch, tmp_path) -> None:
    say = script(tmp_path, 'say', 'import sys\nprint("out")\nsys.stderr.write("err")\n')
    running = launch(f'<log message="hello $(var who)"/><arg name="x" default="1"/>'
                     f'<executable {say} output="screen"/><executable {say}/>'
                     '<executable cmd="sh -c \'exit 3\'" name="fails"/>', 'who:=you', 'xx:=2')
    assert running.end() == 3
    assert '[INFO] [launch.user]: hello you\n' in running.output
    assert re.search(r'\[INFO\] \[say-1\]: process started with pid \[\d+\]\n', running.output)
    assert '[say-1] out\n' in running.output
    assert '[say-2] out\n' not in running.output  # output="log": only stderr on the screen
    assert '[say-1] err\n' in running.output
    assert '[say-2] err\n' in running.output
    assert '[INFO] [say-1]: process has finished cleanly [pid ' in running.output
    assert re.search(r"\[ERROR\] \[fails-3\]: process has died \[pid \d+, exit code 3, cmd "
                     r"'sh -c 'exit 3''\]\.", running.output)
    assert "[WARNING] [launch]: argument 'xx' is not declared" in running.output
    log, = (tmp_path / 'log').glob('*/launch.log')
    assert '[say-2] out\n' in log.read_text()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_all_children(launch, tmp_path, number) -> None:
    running = launch(f'<executable {script(tmp_path, "a", SLEEPER)} output="screen"/>'
                     f'<executable {script(tmp_path, "b", SLEEPER)} output="screen"/>')
    pids = [int(running.wait_for(rf'\[{name}\]: process started with pid \[(\d+)\]')[1])
            for name in ('a-1', 'b-2')]
    running.wait_for(r'\[a-1\] up')
    running.wait_for(r'\[b-2\] up')
    running.process.send_signal(number)
    assert running.end() == 0
    assert gone(*pids)
    assert "[INFO] [a-1]: sending signal 'SIGINT' to process[a-1]" in running.output
    assert '[WARNING] [launch]: user interrupted with ' in running.output


def test_escalation_from_sigint_to_sigkill(launch, tmp_path) -> None:
    deaf = script(tmp_path, 'deaf', STUBBORN).replace('deaf"', 'deaf 2 15"', 1)
    running = launch(f'<executable {deaf} output="screen"/>', 'sigterm_timeout:=0.2',
                     'sigkill_timeout:=0.3')
    running.wait_for(r'\[deaf-1\] up')
    running.process.send_signal(signal.SIGINT)
    assert running.end() == 0
    assert ("process[deaf-1] failed to terminate '0.2' seconds after receiving 'SIGINT', "
            "escalating to 'SIGTERM'") in running.output
    assert ("failed to terminate '0.3' seconds after receiving 'SIGTERM', "
            "escalating to 'SIGKILL'") in running.output
    assert 'exit code -9' in running.output


@pytest.mark.parametrize(('code', 'expected'), [
    ('sys.exit(0)', 0), ('sys.exit(5)', 5), ('os.kill(os.getpid(), 9)', 137)])
def test_on_exit_shutdown_gives_the_exit_code(launch, tmp_path, code, expected) -> None:
    # The main process waits for the other one, so that there is something to shut down.
    flag = tmp_path / 'flag'
    other = script(tmp_path, 'other', f'open({str(flag)!r}, "w")\n' + SLEEPER)
    main = script(tmp_path, 'main', 'import os, sys, time\n'
                  f'while not os.path.exists({str(flag)!r}): time.sleep(0.01)\n{code}\n')
    running = launch(f'<executable {other}/><executable {main} on_exit="shutdown"/>')
    pid = int(running.wait_for(r'\[other-1\]: process started with pid \[(\d+)\]')[1])
    assert running.end() == expected
    assert gone(pid)


def test_grandchildren_do_not_outlive_the_launch(launch, tmp_path) -> None:
    code = ('import subprocess, sys, time\n'
            'c = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])\n'
            'print("child", c.pid, flush=True)\n')
    forgetful = script(tmp_path, 'forgetful', code)
    running = launch(f'<executable {forgetful} output="screen"/>')
    assert running.end() == 0
    assert gone(int(re.search(r'child (\d+)', running.output)[1]))


def test_children_die_with_a_killed_launch(launch, tmp_path) -> None:
    running = launch(f'<executable {script(tmp_path, "a", SLEEPER)} output="screen"/>')
    pid = int(running.wait_for(r'\[a-1\]: process started with pid \[(\d+)\]')[1])
    running.wait_for(r'\[a-1\] up')
    running.process.kill()
    running.process.wait()
    assert gone(pid)


def test_respawn_until_interrupted(launch, tmp_path) -> None:
    dies = script(tmp_path, 'dies', 'print("again", flush=True)\nraise SystemExit(1)\n')
    running = launch(f'<executable {dies} output="screen" respawn="true" respawn_delay="0.05"/>')
    running.wait_for(r'(?s)again.*again.*again')
    running.process.send_signal(signal.SIGINT)
    assert running.end() == 0


def test_what_cannot_start_is_reported(launch) -> None:
    running = launch('<executable cmd="/no/such/program --x"/>')
    assert running.end() == 127
    assert ('[ERROR] [program-1]: cannot start /no/such/program --x: No such file or directory'
            in running.output)


def test_errors_have_no_traceback(launch) -> None:
    running = launch('<node pkg="no_such_package" exec="x"/>')
    assert running.end() == 1
    assert "test.launch.xml:1: <node>: Package 'no_such_package' not found" in running.output
    assert 'Traceback' not in running.output
