"""Integers of 8 bits made bfloat16 as fast as memory takes them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

BLOCK = 8192
"""Integers of a program: sixteen side by side for each thread, four times."""


def widened(values: jax.Array, interpret: bool = False) -> jax.Array:
    """Return int8 [r, c] as bfloat16, which is exact.

    Args:
        values: r · c must be a multiple of a power of two that is worth a program, as it is of
            accel.kernels.rows.Rows.
        interpret: See few_product.
    """
    block = math.gcd(BLOCK, values.size)
    spec = pl.BlockSpec((block,), lambda i: (i,))
    return pl.pallas_call(
        _kernel, grid=(values.size // block,), in_specs=[spec], out_specs=spec,
        out_shape=jax.ShapeDtypeStruct((values.size,), jnp.bfloat16),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1), name='widen',
        interpret=interpret)(values.reshape(-1)).reshape(values.shape)


def _kernel(values_ref, out_ref) -> None:
    """values int8 [n], out bfloat16 [n]."""
    out_ref[...] = values_ref[...].astype(jnp.bfloat16)
