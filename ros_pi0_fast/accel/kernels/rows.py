"""Matrices stored by outputs, and the kernel that multiplies a few tokens by them on a GPU.

At batch one a decoder reads each weight once for a token or a few, so its time is that of reading
them: the kernel streams tiles of rows through the tensor cores, whose other operand are up to
16 tokens, and widens integers between the two in registers. A wide copy of a weight never exists,
and 16 tokens cost what one costs. Where outputs are too few to keep the chip busy, the inputs are
split over programs, too, whose sums whoever reads the result adds up.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from ros_pi0_fast.accel.quantized import QuantizedMatrix

TOKENS = 16
"""Tokens of a tile: what the tensor cores take, for the time that one takes."""
OUTPUTS = 64
"""Rows of a tile: 16 for each of four warps. Outputs are padded to a multiple."""
INPUTS = 128
"""Inputs are padded to a multiple."""
PROGRAMS = 132
"""Programs to aim at, at least: the multiprocessors of a large GPU."""


@flax.struct.dataclass
class Rows:
    """A matrix [in, out], stored as [out, in]; both padded with 0 to whole tiles."""

    values: jax.Array
    """[rows, columns] of activations' dtype; or int8; or, of 4 bits, uint8 [rows, columns / 2]:
    byte j of a group of g has its input j in the lower and j + g / 2 in the upper four bits."""
    scale: jax.Array | None
    """float32 [rows]: of 8 bits the scale, of 4 bits the unit of `groups`; None: wide values."""
    groups: jax.Array | None
    """uint8 [rows, columns / g]: scales of groups of 4 bits in units of `scale`; else None."""
    inputs: int = flax.struct.field(pytree_node=False)
    outputs: int = flax.struct.field(pytree_node=False)

    @classmethod
    def of(cls, w: jax.Array | QuantizedMatrix) -> Rows:
        """Store a matrix [in, out] by outputs."""
        inputs, outputs = w.shape
        if not isinstance(w, QuantizedMatrix):
            return cls(values=_padded(w.T, OUTPUTS, INPUTS), scale=None, groups=None,
                       inputs=inputs, outputs=outputs)
        groups = None if w.groups is None else _padded(
            w.groups.T, OUTPUTS, math.ceil(inputs / INPUTS) * INPUTS // w.group_size)
        return cls(values=_padded(w.values.T, OUTPUTS, INPUTS * w.bits // 8),
                   scale=_padded(w.scale[None], 1, OUTPUTS)[0], groups=groups, inputs=inputs,
                   outputs=outputs)

    @property
    def shape(self) -> tuple[int, int]:
        """[in, out]"""
        return self.inputs, self.outputs

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
        packed = self.values.reshape(*self.groups.shape, 1, -1)
        halves = jnp.array([0, 4], jnp.uint8)[:, None]
        numbers = (((packed >> halves) & 15) ^ 8).astype(jnp.int8) - jnp.int8(8)
        scaled = numbers.astype(jnp.float32) * self.groups[:, :, None, None].astype(jnp.float32)
        return scaled.astype(dtype).reshape(-1, self.columns)


def _padded(x: jax.Array, rows: int, columns: int) -> jax.Array:
    return jnp.pad(x, ((0, -x.shape[0] % rows), (0, -x.shape[1] % columns)))


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a product is cut up."""

    outputs: int = OUTPUTS
    inputs: int = INPUTS
    """Inputs of a step of the loop."""
    splits: int = 1
    """Programs that share the inputs of an output."""
    warps: int = 4
    stages: int = 4

    @classmethod
    def of(cls, w: Rows) -> Tiling:
        """Choose one: as many programs as keep the chip busy."""
        splits = 1
        while (w.values.shape[0] // OUTPUTS * splits < PROGRAMS
               and w.columns % (2 * splits * INPUTS) == 0):
            splits *= 2
        return cls(splits=splits)


def load(ref: object, mask: jax.Array) -> jax.Array:
    """Return what is at a transformed reference, 0 where it is masked."""
    return plgpu.load(ref, mask=mask, other=0)


def unpack(packed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the numbers of both halves of uint8 bytes as bfloat16.

    The four bits become the lower ones of a mantissa: 128 + 8 + the number, exactly.
    """
    wide = packed.astype(jnp.uint16)

    def number(half: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type((half & 15) ^ jnp.uint16(0x4308), jnp.bfloat16)
        return bits - jnp.bfloat16(136)

    return number(wide), number(wide >> 4)


def accumulate(sums: jax.Array, w: tuple, at: jax.Array, tile: Tiling, tokens: object,
               group_size: int) -> jax.Array:
    """Add a step's products to sums float32 [outputs, tokens].

    Args:
        sums: So far; in units of the rows' scales.
        w: References to values and groups: see Rows.
        at: int32 []: first input.
        tile: The tiling.
        tokens: Returns the activations [tokens, n] of n inputs from one on.
        group_size: Of 4 bits.
    """
    values, groups = w
    dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
    if groups is None:
        x = tokens(at, tile.inputs)
        return sums + dot(values[:, pl.ds(at, tile.inputs)].astype(x.dtype), x.T)
    half = group_size // 2
    for i in range(tile.inputs // group_size):
        first = at + i * group_size
        low, high = unpack(values[:, pl.ds(first // 2, half)])
        part = dot(low, tokens(first, half).T) + dot(high, tokens(first + half, half).T)
        sums += part * groups[:, first // group_size].astype(jnp.float32)[:, None]
    return sums


def _kernel(x_ref, values_ref, scale_ref, groups_ref, out_ref, *, tile: Tiling, count: int,
            group_size: int) -> None:
    """x [TOKENS, columns], values [outputs, …], scale [outputs], groups [outputs, n], out
    [TOKENS, outputs]."""
    steps = x_ref.shape[1] // tile.inputs // tile.splits
    begin = pl.program_id(1) * steps
    mask = jax.lax.broadcasted_iota(jnp.int32, (TOKENS, 1), 0) < count

    def tokens(at: jax.Array, size: int) -> jax.Array:
        return load(x_ref.at[:, pl.ds(at, size)], mask)

    def body(step: jax.Array, sums: jax.Array) -> jax.Array:
        at = (begin + step) * tile.inputs
        return accumulate(sums, (values_ref, groups_ref), at, tile, tokens, group_size)

    sums = jax.lax.fori_loop(0, steps, body, jnp.zeros((tile.outputs, TOKENS), jnp.float32))
    sums *= scale_ref[...][:, None]
    plgpu.store(out_ref.at[:, :], sums.T, mask=mask)


def partial_sums(w: Rows, x: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Return x [t, in] times a matrix, float32 [splits, t, out]: to be added up over splits.

    Args:
        w: The matrix, of integers.
        x: bfloat16, t ≤ TOKENS.
        interpret: Run the kernel's operations one by one on any device, to test it.
    """
    count, tile = x.shape[0], Tiling.of(w)
    x = jnp.pad(x, ((0, 0), (0, w.columns - x.shape[1])))

    def spec(array: jax.Array) -> pl.BlockSpec:
        rest = array.shape[1:]
        return pl.BlockSpec((tile.outputs, *rest), lambda j, k: (j, *(0,) * len(rest)))

    sums = pl.pallas_call(
        functools.partial(_kernel, tile=tile, count=count,
                          group_size=0 if w.groups is None else w.group_size),
        grid=(w.values.shape[0] // tile.outputs, tile.splits),
        in_specs=[pl.BlockSpec((TOKENS, w.columns), lambda j, k: (0, 0)),
                  spec(w.values), spec(w.scale), None if w.groups is None else spec(w.groups)],
        out_specs=pl.BlockSpec((None, TOKENS, tile.outputs), lambda j, k: (k, 0, j)),
        out_shape=jax.ShapeDtypeStruct((tile.splits, count, w.values.shape[0]), jnp.float32),
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        name='rows_product', interpret=interpret)(x, w.values, w.scale, w.groups)
    return sums[:, :, :w.outputs]
