"""Products of a few tokens with matrices stored by outputs, as fast as these can be read.

At batch one a decoder reads each weight once for a token or a few, so its time is that of reading
them. Tensor cores multiply them by up to 16 tokens in that time, if the weights go to them as they
are stored: whatever is done to each of them on the way takes longer than to read it. So weights of
8 bits stay integers, and the activations become integers: of 16 bits, in two halves of 8 that are
multiplied one after the other, with a scale for each token and group of inputs. That rounds them
to 2^-16 of the largest of their group, where bfloat16 has rounded each to 2^-9 of itself. Of four
bits each half of a byte becomes 16 times its number by one operation on four bytes, or two.

One token of bfloat16 is left to accel.kernels.matvec, which is still faster at that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from ros_pi0_fast.accel.kernels.chain import call, lead
from ros_pi0_fast.accel.kernels.matvec import one_fits, one_product
from ros_pi0_fast.accel.kernels.rows import Rows
from ros_pi0_fast.accel.kernels.side_by_side import (
    first_programs,
    gated,
    of_program,
    outputs_spec,
)

TOKENS = 16
"""Tokens of a tile: what the tensor cores take, for the time that one takes."""
LARGEST = 127 * 256
"""What the largest activation of a group becomes."""
TINY = 1e-30
GROUP = 2048
"""Inputs that share a scale of activations, where a product has more."""
LARGEST_GROUP = 512
"""Inputs that share a scale of a matrix of four bits, at most."""
SHARE = {16: 2048, 8: 2048, 4: 512}
"""By bits, inputs of a program, at most: more are split, but where the product is gated."""
MOST_SPLITS = 16
SUMMED = 256
"""Outputs of a program that adds up what was split."""
STAGES = {16: 4, 8: 3, 4: 2}
"""By bits. What is not read ahead leaves room for more programs, which four bits have work for."""
PROGRAMS = 256
"""Programs of 64 outputs that are enough: two for each multiprocessor of a large GPU."""
SMALL_PROGRAMS = 512
"""Programs of 16 outputs that are."""


@flax.struct.dataclass
class Halves:
    """Activations as integers: (256 · high + low) · scale."""

    high: jax.Array
    """int8 [t, in]"""
    low: jax.Array
    """int8 [t, in]"""
    scale: jax.Array
    """float32 [t, in / g], of groups of g inputs."""

    @classmethod
    def of(cls, x: jax.Array) -> Halves:
        """Return activations [t, in], of one group a token."""
        return cls(*halve(x.astype(jnp.float32)))


def halve(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the arrays of Halves of float32 [..., in], of one group each: scales are [..., 1]."""
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), TINY) / LARGEST
    number = jnp.floor(x / scale + 0.5).astype(jnp.int32)
    high = (number + 128) >> 8
    return high.astype(jnp.int8), (number - (high << 8)).astype(jnp.int8), scale


@dataclass(frozen=True, kw_only=True)
class Tile:
    """How a product is cut up."""

    outputs: int
    """That a program computes, 16 a warp."""
    inputs: int
    """Of a step."""
    splits: int = 1
    """Programs that share the inputs of an output."""
    stages: int = 4
    """Steps that are read ahead, and the one that is multiplied."""

    @classmethod
    def of(cls, w: Rows, gate: bool, whole: bool = True) -> Tile:
        """Choose one, from what evaluation.product_cuts measured: see few_product."""
        if gate:
            return cls(outputs=16 if w.bits == 16 else 32, stages=STAGES[w.bits],
                       inputs=_step(w.columns, 512 if w.bits == 4 else 256))
        splits = 1
        while (splits < MOST_SPLITS and w.columns // splits > SHARE[w.bits]
               and w.columns // splits % 512 == 0):
            splits *= 2
        if w.values.shape[0] // 64 * splits >= PROGRAMS:
            return cls(outputs=64, splits=splits, stages=STAGES[w.bits],
                       inputs=_step(w.columns // splits, 128 if w.bits == 16 else 256))
        # A small matrix is not read faster than its inputs are gone through one after the other,
        # but to add up by a kernel of its own takes as long.
        while (not whole and w.values.shape[0] // 16 * splits < SMALL_PROGRAMS
               and w.columns // splits % 1024 == 0):
            splits *= 2
        return cls(outputs=16, splits=splits, stages=STAGES[w.bits],
                   inputs=_step(w.columns // splits, 256))


def _step(inputs: int, wanted: int) -> int:
    """Return the largest step that some inputs are a multiple of, up to the one wanted."""
    return next(step for step in (wanted, 256, 128) if step <= wanted and inputs % step == 0)


def load(ref: object, mask: jax.Array) -> jax.Array:
    """Return what is at a transformed reference, 0 where it is masked."""
    return plgpu.load(ref, mask=mask, other=0)


def few_fit(w: Rows) -> bool:
    """Tell whether few_product is for a matrix."""
    return w.values.shape[0] % 64 == 0 and (w.bits != 4 or (
        w.block == 2 * w.group_size and w.group_size <= LARGEST_GROUP))


def few_product(parts: Sequence[Rows], x: jax.Array | Halves, *, gate: bool = False,
                tile: Tile | None = None, whole: bool = True, leads: bool = False,
                interpret: bool = False) -> jax.Array:
    """Return x times matrices, side by side: bfloat16 [t, sum of out].

    Args:
        parts: Matrices [in, out], of the same kind and inputs: see few_fit.
        x: bfloat16 [t, in], t ≤ TOKENS, for wide matrices; Halves for those of integers.
        gate: There are two: return gelu(x · first) · (x · second), [t, out].
        tile: How to cut it up; None: chosen.
        whole: False: what is split is not added up, float32 [splits, t, sum of out]; for one token
            and wide matrices nothing is.
        leads: What follows is another kernel that waits for this one: see chain.
        interpret: Run the kernel's operations one by one on any device, to test it.
    """
    x = _columns(x, parts[0].columns)
    count = jax.tree.leaves(x)[0].shape[0]
    if tile is None and count == 1 and all(map(one_fits, parts)):
        return one_product(parts, x, gate=gate, leads=leads, interpret=interpret)
    tile = tile or Tile.of(parts[0], gate, whole)
    firsts = first_programs(parts, tile.outputs)
    programs = firsts[1] if gate else firsts[-1]
    arrays = [(w.values, w.scale, w.groups) for w in parts]
    shape = (count, programs * tile.outputs)
    block = pl.BlockSpec((TOKENS, tile.outputs), lambda i, j: (0, i))
    out_shape, out_spec = jax.ShapeDtypeStruct(shape, jnp.bfloat16), block
    if tile.splits > 1:
        out_shape = jax.ShapeDtypeStruct((tile.splits, *shape), jnp.float32)
        out_spec = pl.BlockSpec((None, TOKENS, tile.outputs), lambda i, j: (j, 0, i))
    out = pl.pallas_call(
        functools.partial(_kernel, firsts=None if gate else firsts, tile=tile, count=count,
                          leads=leads or (whole and tile.splits > 1), interpret=interpret),
        grid=(programs, tile.splits),
        in_specs=[jax.tree.map(lambda leaf: pl.BlockSpec((TOKENS, leaf.shape[1]),
                                                         lambda i, j: (0, 0)), x),
                  [jax.tree.map(lambda x, first=first: outputs_spec(
                      x, tile.outputs, 0 if gate else first), own)
                   for own, first in zip(arrays, firsts, strict=False)]],
        out_specs=out_spec, out_shape=out_shape,
        compiler_params=plgpu.CompilerParams(num_warps=tile.outputs // 16,
                                             num_stages=tile.stages),
        name='gated_product' if gate else 'few_product', interpret=interpret)(x, arrays)
    return out if tile.splits == 1 or not whole else _summed(out, interpret)


def _summed(parts: jax.Array, interpret: bool) -> jax.Array:
    """Return the sum of float32 [splits, t, out], rounded: bfloat16 [t, out]."""
    count, outputs = parts.shape[1:]
    step = math.gcd(SUMMED, outputs)
    return call(_sum_kernel, programs=count * (outputs // step), leads=False,
                in_specs=[pl.BlockSpec((parts.shape[0], None, step),
                                       lambda i: (0, i % count, i // count))],
                out_specs=[pl.BlockSpec((None, step), lambda i: (i % count, i // count))],
                out_shape=[jax.ShapeDtypeStruct((count, outputs), jnp.bfloat16)], warps=4,
                name='sum_of_parts', interpret=interpret)(parts)[0]


def _sum_kernel(_, parts_ref, out_ref) -> None:
    """Some outputs of a token. parts [splits, n]; out [n]."""
    out_ref[...] = jnp.sum(parts_ref[...], axis=0).astype(jnp.bfloat16)


def _columns(x: jax.Array | Halves, columns: int) -> jax.Array | Halves:
    """Return activations with inputs of 0 up to a number of columns."""
    if isinstance(x, Halves):
        return x.replace(high=_columns(x.high, columns), low=_columns(x.low, columns))
    return x if x.shape[1] == columns else jnp.pad(x, ((0, 0), (0, columns - x.shape[1])))


def _kernel(x_refs, part_refs, out_ref, *, firsts: tuple[int, ...] | None,
            tile: Tile, count: int, leads: bool, interpret: bool) -> None:
    """Some outputs. x [TOKENS, in], or Halves of it; parts: values [outputs, …], scale [outputs],
    groups [outputs, n]; out [TOKENS, outputs]."""
    mask = jax.lax.broadcasted_iota(jnp.int32, (TOKENS, 1), 0) < (
        lead(count, interpret) if leads else count)
    make = _WideProduct if not isinstance(x_refs, Halves) else (
        _EightBits if part_refs[0][2] is None else _FourBits)
    columns = jax.tree.leaves(x_refs)[0].shape[1] // tile.splits
    first = pl.program_id(1) * columns
    product = make(x_refs, mask, tile.inputs, first, columns, interpret)

    def sums(parts: Sequence) -> list[jax.Array]:
        def body(step: jax.Array, carry: tuple[list, list]) -> tuple[list, list]:
            at = first + step * tile.inputs
            following = [product.ahead(part, at + tile.inputs) for part in parts]
            return [product.add(own, part, at, ready) for own, part, ready in zip(
                carry[0], parts, carry[1], strict=True)], following

        found, _ = jax.lax.fori_loop(0, columns // tile.inputs, body, (
            [product.zero((tile.outputs, TOKENS)) for _ in parts],
            [product.ahead(part, first) for part in parts]))
        return [product.scaled(own, part) for own, part in zip(found, parts, strict=True)]

    if firsts is None:
        result = gated(*sums(part_refs))
    else:
        result = of_program(pl.program_id(0), part_refs, firsts, lambda part: sums([part])[0])
    plgpu.store(out_ref.at[:, :], result.T.astype(out_ref.dtype), mask=mask)


@dataclass(frozen=True)
class _WideProduct:
    """How a step of a product is added up; here that of wide matrices."""

    x: Any
    """Reference to activations, or Halves of references."""
    mask: jax.Array
    """bool [TOKENS, 1]: there is such a token."""
    inputs: int
    """Of a step."""
    first: jax.Array
    """The first input of the program."""
    columns: int
    """Inputs of the program."""
    interpret: bool

    def tokens(self, ref: Any, at: jax.Array, size: int) -> jax.Array:
        """Return activations [TOKENS, size], those of tokens that are not there as 0."""
        return load(ref.at[:, pl.ds(at, size)], self.mask)

    def zero(self, shape: tuple[int, int]) -> Any:
        """Return what is added to first."""
        return jnp.zeros(shape, jnp.float32)

    def ahead(self, part: tuple, at: jax.Array) -> Any:
        """Return what is loaded for a step from an input on while the one before is added."""
        return ()

    def add(self, sums: Any, part: tuple, at: jax.Array, ready: Any) -> Any:
        """Add the products of a step from an input on, for which `ahead` has returned `ready`."""
        return sums + jnp.dot(part[0][:, pl.ds(at, self.inputs)],
                              self.tokens(self.x, at, self.inputs).T,
                              preferred_element_type=jnp.float32)

    def scaled(self, sums: Any, part: tuple) -> jax.Array:
        """Return products float32 [outputs, TOKENS]."""
        del part
        return sums


class _EightBits(_WideProduct):
    """Of matrices of 8 bits."""

    @property
    def group(self) -> int:
        """Inputs of a token that share a scale."""
        return self.x.high.shape[1] // self.x.scale.shape[1]

    @property
    def uniform(self) -> bool:
        """All that the program adds up shares a scale."""
        return self.group % self.columns == 0

    @property
    def exact(self) -> bool:
        """Sums stay integers."""
        return self.uniform

    def unit(self, at: jax.Array) -> jax.Array:
        """Return the scales [1, TOKENS] of the group of an input."""
        there = jnp.sum(self.mask.astype(jnp.int32), axis=1) > 0
        return load(self.x.scale.at[:, jnp.asarray(at // self.group, jnp.int32)], there)[None, :]

    def zero(self, shape: tuple[int, int]) -> Any:
        """Return what is added to first: of high and low halves where sums stay integers."""
        return (jnp.zeros(shape, jnp.int32),) * 2 if self.exact else super().zero(shape)

    def products(self, w: jax.Array, at: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return those of integers [outputs, n] with high and low halves."""
        return tuple(jnp.dot(w, self.tokens(ref, at, w.shape[1]).T,
                             preferred_element_type=jnp.int32)
                     for ref in (self.x.high, self.x.low))

    def add(self, sums: Any, part: tuple, at: jax.Array, ready: Any) -> Any:
        """Add the products of a step, which is of one group."""
        found = self.products(part[0][:, pl.ds(at, self.inputs)], at)
        if self.exact:
            return tuple(own + more for own, more in zip(sums, found, strict=True))
        return sums + _joined(found) * self.unit(at)

    def scaled(self, sums: Any, part: tuple) -> jax.Array:
        """Return products float32 [outputs, TOKENS]."""
        if self.uniform:
            sums = (_joined(sums) if self.exact else sums) * self.unit(self.first)
        return sums * part[1][...][:, None]


class _FourBits(_EightBits):
    """Of matrices of 4 bits, whose groups have scales of their own."""

    exact = False

    def ahead(self, part: tuple, at: jax.Array) -> jax.Array:
        """Return the scales of a step's groups, float32 [outputs, n], or of any after the last.

        They are bytes, which cannot be copied asynchronously: where they are needed, each would
        be waited for.
        """
        values, _, groups = part
        size = values.shape[1] * 2 // groups.shape[1]
        at = jnp.minimum(at, values.shape[1] * 2 - self.inputs)
        return groups[:, pl.ds(jax.lax.div(at, size), self.inputs // size)].astype(jnp.float32)

    def add(self, sums: Any, part: tuple, at: jax.Array, ready: Any) -> Any:
        """Add the products of a step: of blocks of two groups."""
        values = part[0]
        size = self.inputs // ready.shape[1]
        number = jax.lax.broadcasted_iota(jnp.int32, ready.shape, 1)
        for first in range(0, self.inputs, 2 * size):
            # Not `//`, which a compiler cannot see to be a multiple of anything.
            packed = values[:, pl.ds(jax.lax.div(at + first, 2), size)]
            for shift, start in ((4, first), (0, first + size)):
                high, low = self.products(sixteenfold(packed, shift, self.interpret), at + start)
                # Of a group that fits: 128 · 127 · LARGEST_GROUP · 256 < 2^31.
                found = ((high << 8) + low).astype(jnp.float32)
                found *= jnp.sum(jnp.where(number == start // size, ready, 0), axis=1)[:, None]
                sums += found if self.uniform else found * self.unit(at + start)
        return sums

    def scaled(self, sums: Any, part: tuple) -> jax.Array:
        """Return products float32 [outputs, TOKENS]."""
        return super().scaled(sums, part) / 16


def _joined(halves: tuple[jax.Array, jax.Array]) -> jax.Array:
    high, low = (half.astype(jnp.float32) for half in halves)
    return 256 * high + low


def sixteenfold(packed: jax.Array, shift: int, interpret: bool) -> jax.Array:
    """Return 16 times the numbers in the upper four bits of uint8, shifted first, as int8."""
    if interpret:
        return jax.lax.bitcast_convert_type((packed << shift) & jnp.uint8(0xF0), jnp.int8)
    upper = 'and.b32 $0, {}, 0xF0F0F0F0;'
    return plgpu.elementwise_inline_asm(
        f'shl.b32 $0, $1, {shift}; ' + upper.format('$0') if shift else upper.format('$1'),
        args=[packed], constraints='=r,r', pack=4,
        result_shape_dtypes=[jax.ShapeDtypeStruct(packed.shape, jnp.int8)])[0]
