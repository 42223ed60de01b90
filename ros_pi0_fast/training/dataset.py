"""A dataset that lives on the devices and grows without changing its shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 1024
"""Rows that one transfer writes."""


class DeviceDataset:
    """Arrays of one leading axis, of fixed capacity, so that growing never recompiles a step.

    Args:
        capacity: rows at most.
        put: moves a tree of arrays to the devices (`TrainLoop.put`).
    """

    def __init__(self, capacity: int, put: Callable[[Mapping[str, Any]], dict[str, Any]]):
        self.capacity = capacity
        self.rows = 0
        """Rows that hold data; they come first."""
        self.arrays: dict[str, jax.Array] = {}
        self._put = put
        self._write = jax.jit(_write, donate_argnums=0)

    def extend(self, parts: Iterable[Mapping[str, np.ndarray]]) -> int:
        """Append parts, each a dict of arrays [n, …]; return the rows that were added.

        Raises:
            ValueError: if they do not fit.
        """
        before = self.rows
        for part in parts:
            count = len(next(iter(part.values())))
            if self.rows + count > self.capacity:
                raise ValueError(f'capacity: {self.capacity} rows, expected at least '
                                 f'{self.rows + count}; raise `capacity` of the run')
            if not self.arrays:
                # A block more than the capacity, since whole blocks are written.
                self.arrays = self._put({
                    name: np.zeros((self.capacity + BLOCK, *array.shape[1:]), array.dtype)
                    for name, array in part.items()})
            for start in range(0, count, BLOCK):
                block = {name: _fill(array[start:start + BLOCK]) for name, array in part.items()}
                self.arrays = self._write(self.arrays, self._put(block),
                                          jnp.asarray(self.rows + start, jnp.int32))
            self.rows += count
        return self.rows - before


def _fill(block: np.ndarray) -> np.ndarray:
    return np.pad(block, [(0, BLOCK - len(block))] + [(0, 0)] * (block.ndim - 1))


def _write(arrays: dict[str, jax.Array], block: dict[str, jax.Array],
           start: jax.Array) -> dict[str, jax.Array]:
    return {name: jax.lax.dynamic_update_slice_in_dim(array, block[name], start, axis=0)
            for name, array in arrays.items()}
