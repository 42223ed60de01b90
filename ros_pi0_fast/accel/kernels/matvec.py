"""Products of a token or a few with matrices stored by outputs, as fast as these can be read.

For so few tokens tensor cores are no help: what is read must be widened in registers, and they
want it in another order than memory has it in. Here each thread multiplies what it has loaded, 16
bytes of a row at a time, and the threads' sums are added up at the end. Four bits become the upper
ones of a float32's mantissa, 1 + (8 + number) / 16, by one shift and one logical operation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from ros_pi0_fast.accel.kernels.rows import Rows

FEW_TOKENS = 4
"""Tokens that the sums of a thread have registers for."""
STEP_BYTES = 1024
"""Bytes of a row that are read in a step, where that divides the row."""
SMALLEST_STEP = 128
GROUP = 128
"""Inputs of a group of four bits."""
SUMS = 64
"""Sums a thread keeps, at most."""
PROGRAMS = 512
"""Programs to aim at, at least: four for each multiprocessor of a large GPU."""
THREADS = 128


def few_fit(w: Rows) -> bool:
    """Tell whether a matrix is without padding, and of sizes that this is for."""
    return (w.outputs == w.values.shape[0] and w.inputs == w.columns and w.outputs % 64 == 0
            and _step_bytes(w.values) >= SMALLEST_STEP
            and (w.groups is None or w.group_size == GROUP))


def _step_bytes(values: jax.Array) -> int:
    """Return how many bytes of a row [rows, …] are read in a step: a power of two."""
    return math.gcd(math.prod(values.shape[1:]) * values.dtype.itemsize, STEP_BYTES)


def _rows_of_program(parts: tuple[Rows, ...], tokens: int, gated: bool) -> int:
    """Return how many outputs a program computes: as many as there are registers for."""
    w = parts[0]
    each = _step_bytes(w.values) // w.values.dtype.itemsize * tokens * (2 if gated else 1)
    rows = 8
    while rows > 1 and (rows * each > SUMS * THREADS
                        or sum(part.outputs for part in parts) // rows < PROGRAMS):
        rows //= 2
    return rows


def few_product(parts: tuple[Rows, ...], x: jax.Array, *, gated: bool = False,
                residual: jax.Array | None = None, interpret: bool = False) -> jax.Array:
    """Return x times matrices, side by side: [t, sum of out] in the dtype of x.

    Args:
        parts: Matrices [in, out], of the same kind: see few_fit.
        x: bfloat16 [t, in], t ≤ FEW_TOKENS.
        gated: There are two: return gelu(x · first) · (x · second), [t, out].
        residual: [t, out]: is added to the product, which is rounded first.
        interpret: Run the kernel's operations one by one on any device, to test it.
    """
    count, rows = x.shape[0], _rows_of_program(parts, x.shape[0], gated)
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
        functools.partial(_kernel, offsets=None if gated else tuple(offsets)), grid=(programs,),
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


def _kernel(x_ref, part_refs, residual_ref, out_ref, *, offsets: tuple[int, ...] | None) -> None:
    """Some outputs. x [t, in], or [t, n, 2, GROUP / 2]; parts: values [rows, …], scale [rows],
    groups [rows, n]; residual, out [t, rows]."""
    count, rows = out_ref.shape

    def products(*parts: tuple) -> list[list[jax.Array]]:
        return _sums(x_ref, parts, count, rows)

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


def _sums(x_ref, parts: tuple, count: int, rows: int) -> list[list[jax.Array]]:
    """Return float32 [rows] for each matrix and token."""
    values, _, groups = parts[0]
    step = _step_bytes(values) // (values.dtype.itemsize if groups is None else GROUP // 2)
    add = _add_wide if groups is None else _add_four_bits
    shape = (rows, step) if groups is None else (rows, step, GROUP // 2)
    zero = jnp.zeros(shape, jnp.float32)

    def body(index: jax.Array, sums: list) -> list:
        at = pl.ds(index * step, step)
        return [add(x_ref, part, at, own) for part, own in zip(parts, sums, strict=True)]

    sums = jax.lax.fori_loop(0, values.shape[1] // step, body, [[zero] * count for _ in parts])
    axes = range(len(shape) - 1, 0, -1)
    return [[_scaled(functools.reduce(jnp.sum, axes, own), part) for own in each]
            for each, part in zip(sums, parts, strict=True)]


def _scaled(total: jax.Array, part: tuple) -> jax.Array:
    _, scale, groups = part
    if scale is None:
        return total
    return total * scale[...] if groups is None else total * (16 * scale[...])


def _add_wide(x_ref, part: tuple, at: object, sums: list[jax.Array]) -> list[jax.Array]:
    """Add the products of some inputs with values of 8 bits or more."""
    wide = part[0][:, at].astype(jnp.float32)
    return [own + wide * x_ref[token, at].astype(jnp.float32)[None]
            for token, own in enumerate(sums)]


def _add_four_bits(x_ref, part: tuple, at: object, sums: list[jax.Array]) -> list[jax.Array]:
    """Add the products of some groups: 16 · (1 + (8 + v) / 16 - 1.5) is v."""
    packed = part[0][:, at, :].astype(jnp.uint32)
    scales = part[2][:, at].astype(jnp.float32)[:, :, None]
    flip = jnp.uint32(0x3FC00000)
    low, high = (jax.lax.bitcast_convert_type(bits ^ flip, jnp.float32)
                 for bits in ((packed & 15) << 19, (packed & 0xF0) << 15))
    added = []
    for token, own in enumerate(sums):
        one, two = (x_ref[token, at, half, :].astype(jnp.float32)[None] for half in (0, 1))
        added.append(own + (low * one + (high * two - 1.5 * (one + two))) * scales)
    return added
