"""Products of a token or a few with matrices stored by outputs, as fast as these can be read.

For so few tokens tensor cores are no help: what is read must be widened in registers, and they
want it in another order than memory has it in. Here each thread multiplies what it has loaded, 16
bytes of a row at a time, and the threads' sums are added up at the end. Four bits become the upper
ones of a float32's mantissa, 1 + (8 + number) / 16, by one shift and one logical operation.
Widening integers takes about as long as reading them, so the next ones are read meanwhile.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from ros_pi0_fast.accel.kernels.rows import Rows

FEW_TOKENS = 4
"""Tokens that the sums of a thread have registers for."""
STEP_BYTES = (1024, 512, 256, 128)
"""Bytes of a row that are read in a step, of which one must divide the row."""
STEPS = 4
"""Steps of a row, at least: adding up what the threads have costs as much as a step or two."""
GROUP = 128
"""Inputs of a group of four bits."""
SUMS = 64
"""Sums a thread keeps for one token; half as many more for several, which read less again."""
ROWS = (16, 8, 4, 2, 1)
PROGRAMS = 512
"""Programs to aim at, at least: four for each multiprocessor of a large GPU."""
THREADS = 128
LOAD_BYTES = 16
"""Bytes that a thread loads at once."""


def few_fit(w: Rows) -> bool:
    """Tell whether a matrix is without padding, and of sizes that this is for."""
    return (w.outputs == w.values.shape[0] and w.inputs == w.columns and w.outputs % 64 == 0
            and _row_bytes(w) % (STEPS * STEP_BYTES[-1]) == 0
            and (w.groups is None or w.group_size == GROUP))


def _row_bytes(w: Rows) -> int:
    return w.values.shape[1] * w.values.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a product is cut up."""

    rows: int
    """Outputs that a program computes."""
    step: int
    """Bytes of a row that are read at once."""
    ahead: bool
    """A step is read before the one before it is multiplied; else after that."""

    @classmethod
    def of(cls, parts: tuple[Rows, ...], tokens: int, gated: bool) -> Cut:
        """Choose one.

        For one token long steps are best; for several, many rows that share what is read of them.
        """
        outputs = sum(w.outputs for w in parts) // (2 if gated else 1)
        most = (SUMS if tokens == 1 else SUMS * 3 // 2) * THREADS
        fitting = [step for step in STEP_BYTES if _row_bytes(parts[0]) % (STEPS * step) == 0]
        tiles = [(rows, step) for rows in ROWS for step in fitting
                 if (rows == 1 or outputs // rows >= PROGRAMS)
                 and rows * step // parts[0].values.dtype.itemsize * tokens * (1 + gated) <= most]
        whole = [tile for tile in tiles if math.prod(tile) >= THREADS * LOAD_BYTES] or tiles
        rows, step = max(whole, key=lambda tile: tile[tokens == 1])
        return cls(rows=rows, step=step, ahead=parts[0].scale is not None)


def few_product(parts: tuple[Rows, ...], x: jax.Array, *, gated: bool = False,
                residual: jax.Array | None = None, cut: Cut | None = None,
                interpret: bool = False) -> jax.Array:
    """Return x times matrices, side by side: [t, sum of out] in the dtype of x.

    Args:
        parts: Matrices [in, out], of the same kind: see few_fit.
        x: bfloat16 [t, in], t ≤ FEW_TOKENS.
        gated: There are two: return gelu(x · first) · (x · second), [t, out].
        residual: [t, out]: is added to the product, which is rounded first.
        cut: How to cut it up; None: chosen.
        interpret: Run the kernel's operations one by one on any device, to test it.
    """
    count = x.shape[0]
    cut = cut or Cut.of(parts, count, gated)
    rows = cut.rows
    offsets = [0]
    for w in parts:
        offsets.append(offsets[-1] + w.outputs // rows)
    programs = offsets[1] if gated else offsets[-1]
    arrays, specs = zip(*(_operands(w, rows, 0 if gated else offset)
                          for w, offset in zip(parts, offsets, strict=False)), strict=True)
    out = pl.BlockSpec((count, rows), lambda i: (0, i))
    groups = parts[0].groups
    if groups is not None:
        x = x.reshape(count, -1, 2, GROUP // 2)
    return pl.pallas_call(
        functools.partial(_kernel, offsets=None if gated else tuple(offsets), cut=cut,
                          add=functools.partial(multiply_add, interpret)), grid=(programs,),
        in_specs=[pl.BlockSpec(x.shape, lambda i: (0,) * x.ndim), list(specs),
                  None if residual is None else out],
        out_specs=out, out_shape=jax.ShapeDtypeStruct((count, programs * rows), x.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=THREADS // 32, num_stages=2),
        name='gated_product' if gated else 'few_product', interpret=interpret)(
            x, list(arrays), residual)


def _operands(w: Rows, rows: int, offset: int) -> tuple[tuple, tuple]:
    """Return the arrays of a matrix, and how programs from `offset` on see them."""
    def spec(x: jax.Array) -> pl.BlockSpec:
        last = x.shape[0] // rows - 1

        def index(i: jax.Array) -> tuple:
            return jnp.clip(i - offset, 0, last), *(0,) * (x.ndim - 1)

        return pl.BlockSpec((rows, *x.shape[1:]), index)

    if w.groups is None:
        arrays = w.values, w.scale, None
    else:
        arrays = w.values.reshape(w.outputs, -1, GROUP // 2), w.scale, w.groups
    return arrays, tuple(x if x is None else spec(x) for x in arrays)


def _kernel(x_ref, part_refs, residual_ref, out_ref, *, offsets: tuple[int, ...] | None,
            cut: Cut, add: Callable) -> None:
    """Some outputs. x [t, in], or [t, n, 2, GROUP / 2]; parts: values [rows, …], scale [rows],
    groups [rows, n]; residual, out [t, rows]."""
    count = out_ref.shape[0]

    def products(*parts: tuple) -> list[list[jax.Array]]:
        return _sums(x_ref, parts, count, cut, add)

    if offsets is None:
        gates, ups = products(*part_refs)
        results = [jax.nn.gelu(gate.astype(jnp.bfloat16).astype(jnp.float32)) * up
                   for gate, up in zip(gates, ups, strict=True)]
    else:
        results = _of_program(pl.program_id(0), part_refs, offsets, lambda part: products(part)[0])
    for token, result in enumerate(results):
        result = result.astype(out_ref.dtype)
        if residual_ref is not None:
            result = residual_ref[token, :] + result
        out_ref[token, :] = result


def _of_program(program: jax.Array, part_refs: list, offsets: tuple[int, ...],
                products: Callable) -> list[jax.Array]:
    """Return the products of the one matrix that the program is for."""
    first, *rest = part_refs
    if not rest:
        return products(first)
    return jax.lax.cond(program < offsets[1], lambda: products(first),
                        lambda: _of_program(program, rest, offsets[1:], products))


def _sums(x_ref, parts: tuple, count: int, cut: Cut, add: Callable) -> list[list[jax.Array]]:
    """Return float32 [rows] for each matrix and token."""
    values, _, groups = parts[0]
    step = cut.step // (values.dtype.itemsize if groups is None else GROUP // 2)
    of_step = _wide if groups is None else _four_bits
    shape = (cut.rows, step) if groups is None else (cut.rows, step, GROUP // 2)
    zero = jnp.zeros(shape, jnp.float32)

    def read(index: jax.Array | int) -> list[tuple]:
        at = pl.ds(index * step, step)
        return [(values[:, at], None if groups is None else groups[:, at])
                for values, _, groups in parts]

    def added(index: jax.Array | int, now: list[tuple], sums: list) -> list:
        at = pl.ds(index * step, step)
        return [of_step(x_ref, *stored, at, own, add)
                for stored, own in zip(now, sums, strict=True)]

    def body(index: jax.Array, carry: tuple) -> tuple:
        now, sums = carry
        following = read(index + 1)
        return following, added(index, now, sums)

    sums, last = [[zero] * count for _ in parts], values.shape[1] // step - 1
    if cut.ahead:
        now, sums = jax.lax.fori_loop(0, last, body, (read(0), sums))
        sums = added(last, now, sums)
    else:
        sums = jax.lax.fori_loop(
            0, last + 1, lambda index, sums: added(index, read(index), sums), sums)
    axes = range(len(shape) - 1, 0, -1)
    return [[_scaled(functools.reduce(jnp.sum, axes, own), part) for own in each]
            for each, part in zip(sums, parts, strict=True)]


def _scaled(total: jax.Array, part: tuple) -> jax.Array:
    _, scale, groups = part
    if scale is None:
        return total
    return total * scale[...] if groups is None else total * (16 * scale[...])


def multiply_add(interpret: bool, a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """Return a · b + c, float32, by one instruction: XLA keeps the two apart by itself."""
    if interpret:
        return a * b + c
    shape = jnp.broadcast_shapes(a.shape, b.shape, c.shape)
    return plgpu.elementwise_inline_asm(
        'fma.rn.f32 $0, $1, $2, $3;', args=[jnp.broadcast_to(x, shape) for x in (a, b, c)],
        constraints='=f,f,f,f', pack=1, result_shape_dtypes=[
            jax.ShapeDtypeStruct(shape, jnp.float32)])[0]


def _widened(x: jax.Array) -> jax.Array:
    """Return a value of 8 bits or more as float32.

    Integers become the lower ones of a mantissa, 2^23 + 128 + x: conversions are slow.
    """
    if x.dtype != jnp.int8:
        return x.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint8).astype(jnp.uint32) ^ jnp.uint32(0x4B000080)
    return jax.lax.bitcast_convert_type(bits, jnp.float32) - jnp.float32(2**23 + 128)


def _wide(x_ref, values: jax.Array, groups: None, at: object, sums: list[jax.Array],
          add: Callable) -> list[jax.Array]:
    """Add the products of some inputs with values of 8 bits or more."""
    del groups
    wide = _widened(values)
    return [add(wide, x_ref[token, at].astype(jnp.float32)[None], own)
            for token, own in enumerate(sums)]


def _four_bits(x_ref, values: jax.Array, groups: jax.Array, at: object, sums: list[jax.Array],
               add: Callable) -> list[jax.Array]:
    """Add the products of some groups: 16 · (1 + (8 + v) / 16 - 1.5) is v."""
    packed = values.astype(jnp.uint32)
    scales = groups.astype(jnp.uint32) | jnp.uint32(0x4B000000)
    scales = jax.lax.bitcast_convert_type(scales, jnp.float32) - jnp.float32(2**23)
    scales = scales[:, :, None]
    flip = jnp.uint32(0x3FC00000)
    low, high = (jax.lax.bitcast_convert_type(bits ^ flip, jnp.float32)
                 for bits in ((packed & 15) << 19, (packed & 0xF0) << 15))
    added = []
    for token, own in enumerate(sums):
        one, two = (x_ref[token, at, half, :].astype(jnp.float32)[None] for half in (0, 1))
        added.append(add(add(low, one, add(high, two, -1.5 * (one + two))), scales, own))
    return added
