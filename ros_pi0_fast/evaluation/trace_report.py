"""What a profiler's trace of a GPU shows: kernels by executable, traffic, and the host's share."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

TRACED = ('MemcpyD2H', 'MemcpyH2D', 'GraphLaunch', 'StreamSynchronize', 'EventSynchronize')
"""What is counted in a trace."""
MOST = 14
"""Kernels of an executable, and functions of the host, that are reported, at most."""
HOST = 'python'
"""How the name of the thread that calls begins."""


class Kernel(NamedTuple):
    """One run of a kernel."""

    function: str
    """Name of the function that was compiled."""
    name: str
    start_us: float
    end_us: float


def trace_file(folder: Path) -> Path:
    """Return the newest trace below a folder."""
    return max(folder.rglob('*.xplane.pb'), key=lambda path: path.stat().st_mtime)


def _events(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield plane, line and event.

    Raises:
        RuntimeError: this JAX cannot read traces.
    """
    if not hasattr(jax.profiler, 'ProfileData'):
        raise RuntimeError(f'JAX {jax.__version__}: cannot read traces, expected one that has '
                           'jax.profiler.ProfileData')
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                yield plane.name, line.name, event


def _kernel(plane: str, event: Any) -> Kernel | None:
    """Return the kernel that an event is; None for what is none."""
    module = dict(event.stats).get('hlo_module') if plane.startswith('/device:') else None
    return module and Kernel(str(module).removeprefix('jit_'), event.name,
                             1e-3 * event.start_ns, 1e-3 * event.end_ns)


def kernels_of(path: Path) -> list[Kernel]:
    """Return the kernels in a trace."""
    return [kernel for plane, _, event in _events(path) if (kernel := _kernel(plane, event))]


def trace_report(path: Path) -> str:
    """Say what a trace of one inference shows.

    Returns:
        The traffic between host and device; for each executable the time from its first kernel to
        its last and the kernels that take most of it; and what takes most of the host's time,
        where one may be part of another.
    """
    counts: Counter[str] = Counter()
    host: dict[str, list[float]] = defaultdict(list)
    functions: dict[str, list[Kernel]] = defaultdict(list)
    for plane, line, event in _events(path):
        counts.update(word for word in TRACED if word.lower() in event.name.lower())
        if not plane.startswith('/device:') and line.startswith(HOST):
            host[event.name[:60]].append(1e-3 * (event.end_ns - event.start_ns))
        elif kernel := _kernel(plane, event):
            functions[kernel.function].append(kernel)
    return '\n'.join([', '.join(f'{counts[word]} x {word}' for word in TRACED),
                      *(_of_function(*each) for each in functions.items()),
                      'host:', *_longest(host)])


def _of_function(function: str, kernels: list[Kernel]) -> str:
    """Return lines about an executable's kernels."""
    times: dict[str, list[float]] = defaultdict(list)
    for kernel in kernels:
        times[kernel.name[:60]].append(kernel.end_us - kernel.start_us)
    span = max(kernel.end_us for kernel in kernels) - min(kernel.start_us for kernel in kernels)
    return '\n'.join([f'{function}: {len(kernels)} kernels in {1e-3 * span:.2f} ms, of which they '
                      f'run {1e-3 * sum(map(sum, times.values())):.2f} ms', *_longest(times)])


def _longest(times: dict[str, list[float]]) -> list[str]:
    """Return lines about what takes longest, of microseconds by name."""
    most = sorted(times.items(), key=lambda item: -sum(item[1]))[:MOST]
    return [f'{sum(each):11.0f} us {len(each):6} x {np.median(each):7.2f} us  {name}'
            for name, each in most]
