"""What a launch file comes down to: processes and log lines, in order."""

from collections.abc import Mapping
from dataclasses import dataclass, field

OUTPUTS = ('screen', 'both', 'log', 'own_log', 'full')


@dataclass(frozen=True, kw_only=True)
class ProcessDescription:
    """One process to start; every text is final, nothing is substituted later."""

    name: str                          # shown as [name-N]
    command: tuple[str, ...]           # argv, or one shell line when shell is set
    environment: Mapping[str, str]     # the whole environment
    shell: bool = False
    cwd: str | None = None
    output: str = 'log'                # screen, both, full: all to the screen; log: stderr only
    respawn: bool = False
    respawn_delay: float = 0.0         # s
    shutdown_on_exit: bool = False     # its end ends the launch, with its exit code
    sigterm_timeout: float = 5.0       # s from SIGINT to SIGTERM
    sigkill_timeout: float = 5.0       # s from SIGTERM to SIGKILL


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """A <log> action."""

    level: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Argument:
    """A declared launch argument; default is the text before substitution."""

    name: str
    default: str | None
    description: str
    choices: tuple[str, ...] = ()


@dataclass
class LaunchDescription:
    """The outcome of reading a launch file with its arguments."""

    steps: list[ProcessDescription | LogLine] = field(default_factory=list)
    arguments: dict[str, Argument] = field(default_factory=dict)
