"""What this machine is, and how fast it moves bytes and multiplies."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MIB = 2**20
COPY_BYTES = 256 * MIB
MATRIX = (512, 4096)
"""A decoder's matrix; enough of them are read in turn to fill no cache."""
MATMUL_SIZE = 2048
REPEATS = 11
GPU_STEPS = 32
"""Copies that a GPU makes in one call, which would take about as long as one of them."""
GPU_SCALE = {'copy': 8, 'matrix': (16, 4), 'matmul': 4}
"""How much larger arrays are on a GPU, so that they fill it and none of its caches."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Rates, medians of several runs."""

    device: str
    copy: float
    """Bytes a second that an update of an array in place reads and writes."""
    matrix_vector: float
    """Bytes of weights a second that products of one row and a matrix read."""
    matmul: float
    """Floating-point operations a second of a large product."""

    def floor_ms(self, weight_bytes: float, operations: float) -> float:
        """Return the least time for reading weights and for operations, whichever is longer."""
        return 1e3 * max(weight_bytes / self.matrix_vector, operations / self.matmul)


def seconds_of(function: Callable[..., jax.Array], *arguments: object) -> float:
    """Return the median time of a call, the device done."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def _copy_seconds(values: jax.Array, steps: int) -> float:
    """Return the median time of reading and writing an array in place, of so many in one call."""
    step = jax.jit(lambda x: jax.lax.fori_loop(0, steps, lambda _, x: x + 1, x),
                   donate_argnums=0)
    values = step(values)
    times = []
    for _ in range(REPEATS):
        jax.block_until_ready(values)
        began = time.perf_counter()
        values = jax.block_until_ready(step(values))
        times.append((time.perf_counter() - began) / steps)
    return float(np.median(times))


def measure_machine(dtype: str = 'float32') -> Machine:
    """Measure the device that JAX uses; takes a few seconds.

    Args:
        dtype: Of the matrices.
    """
    size, steps, (rows, columns), square = COPY_BYTES, 1, MATRIX, MATMUL_SIZE
    if jax.default_backend() == 'gpu':
        size, steps, square = GPU_SCALE['copy'] * size, GPU_STEPS, GPU_SCALE['matmul'] * square
        rows, columns = (scale * side for scale, side in
                         zip(GPU_SCALE['matrix'], MATRIX, strict=True))
    copy = 2 * size / _copy_seconds(jnp.zeros(size // 4, jnp.float32), steps)
    count = max(1, size // (rows * columns * jnp.dtype(dtype).itemsize))
    make = jax.jit(lambda key: 0.01 * jax.random.normal(key, (rows, columns), dtype))
    weights = [make(key) for key in jax.random.split(jax.random.key(0), count)]
    vector = jnp.ones((1, rows), dtype)
    matrix_vector = sum(w.nbytes for w in weights) / seconds_of(
        jax.jit(lambda x, ws: [x @ w for w in ws]), vector, weights)
    # Random: products of constants draw less power, and are faster than any that count.
    a = jax.random.normal(jax.random.key(1), (square, square), dtype)
    matmul = 2 * square**3 / seconds_of(jax.jit(lambda a: a @ a), a)
    return Machine(device=jax.devices()[0].device_kind, copy=copy, matrix_vector=matrix_vector,
                   matmul=matmul)


def describe_machine() -> dict[str, Any]:
    """Return what a report says of the machine, and the most memory that was in use so far."""
    device, memory = jax.devices()[0], None
    with suppress(NotImplementedError):
        memory = device.memory_stats()
    cpu = Path('/proc/cpuinfo')
    names = [line.partition(':')[2].strip() for line in cpu.read_text('utf-8').splitlines()
             if line.startswith('model name')] if cpu.exists() else []
    return {
        'device': device.device_kind if device.platform != 'cpu' else (names or ['CPU'])[0],
        'platform': device.platform, 'cores': len(names), 'jax': jax.__version__,
        'python': platform.python_version(),
        'peak_device_mb': round(memory['peak_bytes_in_use'] / MIB) if memory else None,
        'peak_process_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
