"""Threads that give way to inference."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

COMPILE_THREAD = 'compile'
COMPILE_NICENESS = 15

T = TypeVar('T')


def yield_to_inference() -> None:
    """Let this thread and those that it starts compute when nothing else does (Linux only)."""
    if hasattr(os, 'setpriority'):
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), COMPILE_NICENESS)


def in_background(work: Callable[[], None]) -> threading.Thread:
    """Run something in a thread of its own that gives way; return the thread, started."""
    def run() -> None:
        yield_to_inference()
        work()

    thread = threading.Thread(target=run, daemon=True, name=COMPILE_THREAD)
    thread.start()
    return thread


def wait_for(work: Callable[[], T]) -> T:
    """Run something in a thread that gives way, and wait for what it returns or raises."""
    with ThreadPoolExecutor(1, COMPILE_THREAD, initializer=yield_to_inference) as pool:
        return pool.submit(work).result()
