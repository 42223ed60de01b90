"""Worker processes for what needs no accelerator."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

Run = Callable[..., Iterator[Any]]
"""`map`, or the `map` of a pool: applies an importable function to jobs, results in order."""


@contextmanager
def worker_pool(workers: int) -> Iterator[Run]:
    """Give a `map` that runs in so many processes; 0 gives the builtin.

    The processes are spawned, not forked: a forked child would inherit JAX's threads in an
    unknown state. They import the main module, which must therefore not import jax.
    """
    if workers == 0:
        yield map
        return
    with ProcessPoolExecutor(workers, get_context('spawn'), _end_with_parent) as pool:
        yield pool.map


def _end_with_parent() -> None:
    """End this worker when its parent is gone; a pool's workers would wait for ever."""
    def wait() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()
