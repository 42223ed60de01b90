"""Weights of 8 and 4 bits: what they are, how they are made, how they are multiplied. Lossy.

Only weights are quantized; products are of activations with weights that are widened block by
block, so that no wide copy of a weight ever exists. Symmetric, no zero points:

- int8: one float32 scale for each output channel.
- int4: groups along the input have scales of their own, which are themselves 8-bit multiples of a
  float32 unit for each output channel (double quantization, Dettmers et al., arXiv:2305.14314):
  scales of 16 bits would cost more than the layers can spare beside an int8 embedding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.matrices import product
from ros_pi0_fast.model.einsum import multiply, part, rows

GROUP_SIZES = (128, 64, 32)
"""Inputs that may share a scale in int4."""
LARGEST_INT8 = 127
LARGEST_INT4 = 7
LARGEST_SCALE = 255
INPUT_BLOCK = 128
"""Rows of a matrix that are widened at a time, at most, on a CPU."""
OUTPUT_BLOCK = 512
"""Rows of a table that are widened at a time, at most, on a CPU."""


class QuantizationError(ValueError):
    """A weight cannot be quantized as asked; the message names it, what was found, expected."""


@flax.struct.dataclass
class QuantizedMatrix:
    """A matrix [in, out] of small integers; w ≈ integer · scale."""

    values: jax.Array
    """int8 [in, out]; or, of 4 bits, uint8 [padded / 2, out], where padded is `inputs` rounded up
    to whole groups: byte j of a group of g has its input j in the lower and j + g / 2 in the upper
    four bits, both in two's complement, never -8."""
    scale: jax.Array
    """float32 [out]: of 8 bits, the scale; of 4 bits, the unit of `groups`."""
    groups: jax.Array | None
    """uint8 [padded / g, out], never 0: scales of the groups, in units of `scale`; None of 8 bits.
    """
    inputs: int = flax.struct.field(pytree_node=False)

    @property
    def bits(self) -> int:
        """8 or 4."""
        return 8 if self.groups is None else 4

    @property
    def shape(self) -> tuple[int, int]:
        """[in, out]"""
        return self.inputs, self.values.shape[1]

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return self.inputs if self.groups is None else (
            2 * self.values.shape[0] // self.groups.shape[0])

    def wide(self) -> jax.Array:
        """Return it as float32 [in, out]: for tests, errors and training, not for products."""
        if self.groups is None:
            return self.values.astype(jnp.float32) * self.scale
        both = jnp.concatenate(_unpack(_packed_groups(self)), axis=1).astype(jnp.float32)
        both *= (self.groups.astype(jnp.float32) * self.scale)[:, None]
        return both.reshape(-1, self.shape[1])[:self.inputs]


@flax.struct.dataclass
class QuantizedTable:
    """A table [rows, d] of int8, such as an embedding; one scale for each row."""

    values: jax.Array
    """int8 [rows, d]"""
    scale: jax.Array
    """float32 [rows]"""
    dtype: jnp.dtype = flax.struct.field(pytree_node=False)
    """Of the rows that are looked up: that of the table before."""

    @property
    def shape(self) -> tuple[int, int]:
        """[rows, d]"""
        return self.values.shape


# --- making them -----------------------------------------------------------------------------


def quantize_int8(w: jax.Array, name: str = 'matrix') -> QuantizedMatrix:
    """Round a matrix [in, out] to int8, the largest of each output channel to ±127.

    Raises:
        QuantizationError: an output channel has NaN or infinity, or nothing but 0.
    """
    return _checked(_quantize_int8(w), name)


@jax.jit
def _quantize_int8(w: jax.Array) -> QuantizedMatrix:
    wide = w.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=0) / LARGEST_INT8
    return QuantizedMatrix(values=_round(wide / scale, LARGEST_INT8), scale=scale, groups=None,
                           inputs=w.shape[0])


def group_size_for(inputs: int, wanted: int | None, name: str) -> int:
    """Return how many inputs are to share a scale: `wanted`, or the largest that divides.

    An axis that none divides (SigLIP's hidden axis of 4304 is 16 · 269) is padded to whole groups
    of the largest.

    Raises:
        QuantizationError: `wanted` is no size that there is, or does not divide.
    """
    if wanted is None:
        return next((size for size in GROUP_SIZES if inputs % size == 0), GROUP_SIZES[0])
    if wanted not in GROUP_SIZES or inputs % wanted:
        fitting = [str(size) for size in GROUP_SIZES if inputs % size == 0]
        raise QuantizationError(f'{name}: groups of {wanted} along an input axis of {inputs}, '
                                f'expected one of {", ".join(fitting) or "none"}, or no size, '
                                'for the largest that divides')
    return wanted


def quantize_int4(w: jax.Array, group_size: int | None = None,
                  name: str = 'matrix') -> QuantizedMatrix:
    """Round a matrix [in, out] to int4, the largest of each group to about ±7.

    Raises:
        QuantizationError: see quantize_int8 and group_size_for.
    """
    return _checked(_quantize_int4(w, group_size_for(w.shape[0], group_size, name)), name)


@functools.partial(jax.jit, static_argnums=1)
def _quantize_int4(w: jax.Array, size: int) -> QuantizedMatrix:
    blocks = pad_inputs(w.astype(jnp.float32), size).reshape(-1, size, w.shape[1])
    groups, scale = group_scales(jnp.max(jnp.abs(blocks), axis=1))
    steps = (groups.astype(jnp.float32) * scale)[:, None]
    values = _round(blocks / steps, LARGEST_INT4)
    return QuantizedMatrix(values=pack(values), scale=scale, groups=groups, inputs=w.shape[0])


def pad_inputs(w: jax.Array, size: int) -> jax.Array:
    """Return w [in, out] with rows of 0 up to whole groups."""
    return jnp.pad(w, ((0, -w.shape[0] % size), (0, 0)))


def group_scales(largest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the scales of groups whose largest values are given, float32 [n, out].

    Rounded up, so that no value is cut off.

    Returns:
        uint8 [n, out] and their unit, float32 [out]; see QuantizedMatrix.
    """
    exact = largest / LARGEST_INT4
    unit = jnp.max(exact, axis=0) / LARGEST_SCALE
    # A little less than exact, so that the largest itself is not rounded up beyond its range.
    return jnp.clip(jnp.ceil(exact / unit * (1 - 1e-6)), 1, LARGEST_SCALE).astype(jnp.uint8), unit


def pack(values: jax.Array) -> jax.Array:
    """Pack int8 [n, g, out], each -7 to 7, two to a byte: uint8 [n · g / 2, out]."""
    low, high = jnp.split(values.astype(jnp.uint8), 2, axis=1)
    return ((high << 4) | (low & 15)).reshape(-1, values.shape[2])


def quantize_table(table: jax.Array, name: str = 'table') -> QuantizedTable:
    """Round a table [rows, d] to int8, the largest of each row to ±127.

    A row of nothing but 0 is one: an embedding may have rows that no text has used.

    Raises:
        QuantizationError: a row has NaN or infinity.
    """
    return _checked(_quantize_table(table), name)


@jax.jit
def _quantize_table(table: jax.Array) -> QuantizedTable:
    wide = table.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=1)
    scale = jnp.where(largest == 0, 1.0, largest) / LARGEST_INT8
    return QuantizedTable(values=_round(wide / scale[:, None], LARGEST_INT8), scale=scale,
                          dtype=jnp.dtype(table.dtype))


def _round(x: jax.Array, largest: int) -> jax.Array:
    return jnp.clip(jnp.round(x), -largest, largest).astype(jnp.int8)


Quantized = TypeVar('Quantized', QuantizedMatrix, QuantizedTable)


def _checked(found: Quantized, name: str) -> Quantized:
    """Return what was quantized; refuse scales that mean nothing, unless only shapes are known."""
    if isinstance(found.scale, jax.core.Tracer):
        return found
    scale = np.asarray(found.scale)
    for wrong, what in ((~np.isfinite(scale), 'NaN or infinity'), (scale == 0, 'nothing but 0')):
        if wrong.any():
            raise QuantizationError(f'{name}: channel {int(np.argmax(wrong))} of {len(scale)} has '
                                    f'{what} ({int(wrong.sum())} such), expected finite weights, '
                                    'some of them not 0')
    return found


# --- multiplying -----------------------------------------------------------------------------


def _packed_groups(m: QuantizedMatrix) -> jax.Array:
    """Return the bytes of a matrix of 4 bits by groups, uint8 [n, g / 2, out]."""
    return m.values.reshape(m.groups.shape[0], -1, m.values.shape[1])


def _unpack(packed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the numbers in the lower and in the upper halves of uint8 bytes, int8."""
    def signed(half: jax.Array) -> jax.Array:
        return (half ^ 8).astype(jnp.int8) - jnp.int8(8)

    return signed(packed & 15), signed(packed >> 4)


def _divisor(count: int, most: int) -> int:
    """Return the largest divisor of a count up to `most`, or all where only tiny ones divide."""
    largest = next(size for size in range(min(most, count), 0, -1) if count % size == 0)
    return largest if largest >= 16 else count


def _dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiply x [t, k] by integers w [k, out]; float32."""
    return jax.lax.dot(x, w.astype(x.dtype), preferred_element_type=jnp.float32)


def _sum_blocks(add: Callable, blocks: tuple) -> jax.Array:
    """Add up add(block) over blocks, one after another; the first of a block are activations.

    The 0 that it starts from depends on the activations. XLA would make constant zeros of all
    layers at once and keep them until they are needed, and would widen a constant first block of
    each weight before the decoding loop.
    """
    shape = jax.eval_shape(lambda *parts: add(*(x[0] for x in parts)), *blocks)
    some = jnp.abs(blocks[0][0, 0, 0]).astype(jnp.int32)
    start = jnp.broadcast_to(jnp.minimum(some, 0).astype(shape.dtype), shape.shape)
    return jax.lax.scan(lambda total, block: (total + add(*block), None), start, blocks)[0]


def _split_inputs(x: jax.Array, count: int) -> jax.Array:
    """Return x [t, in] as [count, t, in / count]."""
    return jnp.moveaxis(x.reshape(x.shape[0], count, -1), 1, 0)


def _product_int8(x: jax.Array, m: QuantizedMatrix) -> jax.Array:
    def by_blocks(x: jax.Array, values: jax.Array) -> jax.Array:
        count = values.shape[0] // _divisor(values.shape[0], INPUT_BLOCK)
        return _sum_blocks(_dot, (_split_inputs(x, count),
                                  values.reshape(count, -1, values.shape[1])))

    # A GPU's compiler widens in the product's own loop; a CPU's would write a wide copy.
    return jax.lax.platform_dependent(x, m.values, cpu=by_blocks, default=_dot) * m.scale


def _product_int4(x: jax.Array, m: QuantizedMatrix) -> jax.Array:
    padded = jnp.pad(x, ((0, 0), (0, 2 * m.values.shape[0] - x.shape[1])))
    lower, upper = jnp.split(_split_inputs(padded, m.groups.shape[0]), 2, axis=2)

    def add(lower: jax.Array, upper: jax.Array, packed: jax.Array, group: jax.Array) -> jax.Array:
        low, high = _unpack(packed)
        return (_dot(lower, low) + _dot(upper, high)) * group.astype(jnp.float32)

    def by_blocks(*blocks: jax.Array) -> jax.Array:
        return _sum_blocks(add, blocks)

    def at_once(*blocks: jax.Array) -> jax.Array:
        return jnp.sum(jax.vmap(add)(*blocks), axis=0)

    return jax.lax.platform_dependent(lower, upper, _packed_groups(m), m.groups, cpu=by_blocks,
                                      default=at_once) * m.scale


@product.register
def _(w: QuantizedMatrix, x: jax.Array) -> jax.Array:
    result = _product_int8(x, w) if w.groups is None else _product_int4(x, w)
    return result.astype(x.dtype)


@multiply.register
def _(w: QuantizedTable, eqn: str, x: jax.Array) -> jax.Array:
    if eqn != '...d,vd->...v':
        raise QuantizationError(f'equation: {eqn}, expected ...d,vd->...v, for which a table is '
                                'stored')
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])

    def by_blocks(flat: jax.Array, values: jax.Array) -> jax.Array:
        blocks = values.reshape(-1, _divisor(values.shape[0], OUTPUT_BLOCK), values.shape[1])
        parts = jax.lax.map(lambda block: _dot(flat, block.T), blocks)
        return jnp.moveaxis(parts, 0, 1).reshape(flat.shape[0], -1)

    def at_once(flat: jax.Array, values: jax.Array) -> jax.Array:
        return _dot(flat, values.T)

    result = jax.lax.platform_dependent(flat, w.values, cpu=by_blocks, default=at_once) * w.scale
    return result.astype(x.dtype).reshape(*x.shape[:-1], -1)


@rows.register
def _(w: QuantizedTable, ids: jax.Array) -> jax.Array:
    chosen = part(w, ids)
    return (chosen.values.astype(jnp.float32) * chosen.scale[..., None]).astype(w.dtype)


@part.register
def _(w: QuantizedTable, ids: jax.Array) -> QuantizedTable:
    return w.replace(values=jnp.take(w.values, ids, axis=0, mode='clip'),
                     scale=jnp.take(w.scale, ids, axis=0, mode='clip'))
