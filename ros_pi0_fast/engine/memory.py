"""How much memory inference takes."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

import jax

_STATM = Path('/proc/self/statm')


def device_memory_bytes() -> int:
    """Return the bytes in use on the device that runs the policy.

    A CPU does not say: then the resident memory of this process (Linux only; elsewhere 0).
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return int(stats['bytes_in_use'])
    if not _STATM.exists():
        return 0
    return int(_STATM.read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def return_free_memory() -> None:
    """Give back to the system what the compiler has freed: glibc keeps it, a lot of it."""
    with contextlib.suppress(OSError, AttributeError):  # Another C library needs no such call.
        ctypes.CDLL(None).malloc_trim(0)
