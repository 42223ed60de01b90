"""A dataset that lives on the devices and grows without changing its shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 1024
"""Rows that one transfer writes."""


class DeviceDataset:
    """Arrays of one leading axis, of fixed capacity, so that growing never recompiles a step.

    Args:
        capacity: rows at most.
        sharding: where the arrays live.
    """

    def __init__(self, capacity: int, sharding: jax.sharding.Sharding):
        self.capacity = capacity
        self.rows = 0
        """Rows that hold data; they come first."""
        self.arrays: dict[str, jax.Array] = {}
        self._sharding = sharding
        self._write = jax.jit(_write, donate_argnums=0, out_shardings=sharding)

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
                self.arrays = self._allocate(part)
            for start in range(0, count, BLOCK):
                block = {name: _fill(array[start:start + BLOCK]) for name, array in part.items()}
                self.arrays = self._write(self.arrays, jax.device_put(block, self._sharding),
                                          jnp.asarray(self.rows + start, jnp.int32))
            self.rows += count
        return self.rows - before

    def _allocate(self, part: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Make the arrays: a block over the capacity, since whole blocks are written."""
        shapes = {name: (self.capacity + BLOCK, *array.shape[1:]) for name, array in part.items()}
        zeros = jax.jit(lambda: {name: jnp.zeros(shape, part[name].dtype)
                                 for name, shape in shapes.items()},
                        out_shardings=self._sharding)
        return zeros()


def _fill(block: np.ndarray) -> np.ndarray:
    return np.pad(block, [(0, BLOCK - len(block))] + [(0, 0)] * (block.ndim - 1))


def _write(arrays: dict[str, jax.Array], block: dict[str, jax.Array],
           start: jax.Array) -> dict[str, jax.Array]:
    return {name: jax.lax.dynamic_update_slice_in_dim(array, block[name], start, axis=0)
            for name, array in arrays.items()}
