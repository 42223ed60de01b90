"""Products of one token with wide matrices stored by outputs, as fast as these can be read.

For one token tensor cores are no help: each thread multiplies what it has loaded, 16 bytes of a
row at a time, without a detour through shared memory; the threads' sums are added up at the end.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from ros_pi0_fast.accel.kernels.chain import lead
from ros_pi0_fast.accel.kernels.rows import Rows
from ros_pi0_fast.accel.kernels.side_by_side import (
    first_programs,
    gated,
    of_program,
    outputs_spec,
)

SUMS = 64
"""Sums that a thread has registers for: each is of one input in a step."""
ROWS = (8, 4, 2, 1)
"""Outputs of a program."""
PROGRAMS = 512
"""Programs to aim at, at least: four for each multiprocessor of a large GPU."""
THREADS = 128


def one_fits(w: Rows) -> bool:
    """Tell whether one_product is for a matrix."""
    return (w.scale is None and w.outputs == w.values.shape[0] and w.inputs == w.columns
            and w.columns % 2048 == 0)


def one_product(parts: Sequence[Rows], x: jax.Array, *, gate: bool, leads: bool,
                interpret: bool) -> jax.Array:
    """Return x [1, in] times wide matrices: see few_product."""
    total = sum(w.outputs for w in parts) // (2 if gate else 1)
    rows = next((rows for rows in ROWS if total // rows >= PROGRAMS), ROWS[-1])
    step = min(SUMS * THREADS // (2 * rows if gate else rows), parts[0].columns // 2)
    step = math.gcd(step, parts[0].columns)
    firsts = first_programs(parts, rows)
    programs = firsts[1] if gate else firsts[-1]
    return pl.pallas_call(
        functools.partial(_kernel, firsts=None if gate else firsts, step=step, leads=leads,
                          interpret=interpret),
        grid=(programs,),
        in_specs=[pl.BlockSpec((None, x.shape[1]), lambda i: (0, 0)),
                  [outputs_spec(w.values, rows, 0 if gate else first)
                   for w, first in zip(parts, firsts, strict=False)]],
        out_specs=pl.BlockSpec((None, rows), lambda i: (0, i)),
        out_shape=jax.ShapeDtypeStruct((1, programs * rows), x.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=THREADS // 32, num_stages=2),
        name='gated_product' if gate else 'one_product', interpret=interpret)(
            x, [w.values for w in parts])


def _kernel(x_ref, part_refs, out_ref, *, firsts: tuple[int, ...] | None, step: int, leads: bool,
            interpret: bool) -> None:
    """Some outputs. x [in]; parts [rows, in]; out [rows]."""
    there = jnp.broadcast_to(lead(1, interpret) > 0, (step,)) if leads else None
    def products(*parts: object) -> list[jax.Array]:
        def body(index: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
            at = pl.ds(index * step, step)
            x = plgpu.load(x_ref.at[at], mask=there, other=0 if leads else None)
            x = x.astype(jnp.float32)[None]
            return [multiply_add(interpret, part[:, at].astype(jnp.float32), x, own)
                    for part, own in zip(parts, sums, strict=True)]

        zero = jnp.zeros((out_ref.shape[0], step), jnp.float32)
        sums = jax.lax.fori_loop(0, x_ref.shape[0] // step, body, [zero] * len(parts))
        return [jnp.sum(own, axis=1) for own in sums]

    if firsts is None:
        result = gated(*products(*part_refs))
    else:
        result = of_program(pl.program_id(0), part_refs, firsts, lambda part: products(part)[0])
    out_ref[...] = result.astype(out_ref.dtype)


def multiply_add(interpret: bool, a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """Return a · b + c, float32, by one instruction: XLA keeps the two apart by itself."""
    if interpret:
        return a * b + c
    shape = jnp.broadcast_shapes(a.shape, b.shape, c.shape)
    return plgpu.elementwise_inline_asm(
        'fma.rn.f32 $0, $1, $2, $3;', args=[jnp.broadcast_to(x, shape) for x in (a, b, c)],
        constraints='=f,f,f,f', pack=1, result_shape_dtypes=[
            jax.ShapeDtypeStruct(shape, jnp.float32)])[0]
