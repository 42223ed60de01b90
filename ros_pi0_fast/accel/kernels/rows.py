"""Matrices stored by outputs: what a kernel reads at once lies side by side."""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp

from ros_pi0_fast.accel.quantized import QuantizedMatrix

OUTPUTS = 64
"""Outputs are padded to a multiple."""
INPUTS = 128
"""Inputs are padded to a multiple."""


@flax.struct.dataclass
class Rows:
    """A matrix [in, out], stored as [out, in]; both padded with 0 to whole tiles."""

    values: jax.Array
    """[rows, columns] of activations' dtype; or int8; or, of 4 bits, uint8 [rows, columns / 2]:
    byte j of a block of b inputs has input j in the lower and j + b / 2 in the upper four bits."""
    scale: jax.Array | None
    """float32 [rows]: of 8 bits the scale, of 4 bits the unit of `groups`; None: wide values."""
    groups: jax.Array | None
    """uint8 [rows, columns / g]: scales of groups of 4 bits in units of `scale`; else None."""
    inputs: int = flax.struct.field(pytree_node=False)
    outputs: int = flax.struct.field(pytree_node=False)
    block: int = flax.struct.field(pytree_node=False, default=0)
    """Inputs of a block of 4 bits: two groups, so that many bytes are read side by side, where
    there is an even number of them; else one."""

    @classmethod
    def of(cls, w: jax.Array | QuantizedMatrix) -> Rows:
        """Store a matrix [in, out] by outputs."""
        inputs, outputs = w.shape
        if not isinstance(w, QuantizedMatrix):
            return cls(values=_padded(w.T, OUTPUTS, INPUTS), scale=None, groups=None,
                       inputs=inputs, outputs=outputs)
        values = _padded(w.values.T, OUTPUTS, INPUTS * w.bits // 8)
        scale = _padded(w.scale[None], 1, OUTPUTS)[0]
        if w.groups is None:
            return cls(values=values, scale=scale, groups=None, inputs=inputs, outputs=outputs)
        size = w.group_size
        groups = _padded(w.groups.T, OUTPUTS, math.ceil(inputs / INPUTS) * INPUTS // size)
        block = size
        if groups.shape[1] % 2 == 0:
            values, block = _paired(values, size), 2 * size
        return cls(values=values, scale=scale, groups=groups, inputs=inputs, outputs=outputs,
                   block=block)

    @property
    def shape(self) -> tuple[int, int]:
        """[in, out]"""
        return self.inputs, self.outputs

    @property
    def bits(self) -> int:
        """Of a number: 16 of a wide one, 8 or 4."""
        if self.scale is None:
            return 16
        return 8 if self.groups is None else 4

    @property
    def columns(self) -> int:
        """Inputs, those of padding included."""
        return self.values.shape[1] * (1 if self.groups is None else 2)

    @property
    def group_size(self) -> int:
        """Inputs that share a scale in 4 bits."""
        return self.columns // self.groups.shape[1]

    def in_units(self, dtype: jnp.dtype) -> jax.Array:
        """Return it in units of `scale`, [rows, columns] of a floating type.

        Of 8 bits and in bfloat16 that is exact; of 4 bits it rounds what has 11 bits to 8, which
        is a hundredth of what quantization has rounded.
        """
        if self.groups is None:
            return self.values.astype(dtype)
        packed = self.values.reshape(len(self.values), -1, 1, self.block // 2)
        halves = jnp.array([0, 4], jnp.uint8)[:, None]
        numbers = (((packed >> halves) & 15) ^ 8).astype(jnp.int8) - jnp.int8(8)
        scaled = (numbers.astype(jnp.float32).reshape(*self.groups.shape, -1)
                  * self.groups[:, :, None].astype(jnp.float32))
        return scaled.astype(dtype).reshape(-1, self.columns)


def _paired(packed: jax.Array, size: int) -> jax.Array:
    """Return bytes [rows, n] of groups as those of blocks of two groups."""
    both = packed.reshape(len(packed), -1, 2, size // 2)
    first, second = both[:, :, 0], both[:, :, 1]
    lower = (first & 15) | (second & 15) << 4
    upper = first >> 4 | (second & 0xF0)
    return jnp.concatenate([lower, upper], axis=2).reshape(packed.shape)


def _padded(x: jax.Array, rows: int, columns: int) -> jax.Array:
    return jnp.pad(x, ((0, -x.shape[0] % rows), (0, -x.shape[1] % columns)))
