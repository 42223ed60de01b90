"""Products of some hundreds of tokens with a large matrix of 8 bits, by JAX's kernel for Hopper.

It widens the integers in registers on their way to the tensor cores, at which Triton is half as
fast (jax.experimental.pallas.ops.gpu.hopper_mixed_type_matmul_mgpu). For more tokens it is no
faster than integers that were widened before.
"""

from __future__ import annotations

import functools
import math
from types import ModuleType

import jax
import jax.numpy as jnp

from ros_pi0_fast.accel.kernels.device import Device
from ros_pi0_fast.accel.kernels.rows import Rows

CAPABILITY = 9.0
"""Compute capability that the kernel is for, and no other."""
MOST_TOKENS = 512
WIDEST = 160
"""Tokens of a tile, at most."""
MULTIPLE = 16
"""What the tokens of a tile are a multiple of."""
OUTPUTS, INPUTS, STEPS = 256, 64, 4
"""Of a tile, of a step, and steps that are loaded at once."""
PROGRAMS = 96
"""Tiles that keep a large GPU busy."""


def mixed_fits(w: Rows, x: jax.Array) -> bool:
    """Tell whether mixed_product is for a matrix, activations [t, in] and the device that JAX
    uses."""
    tokens, outputs = len(x), len(w.values)
    return (w.bits == 8 and x.dtype == jnp.bfloat16 and tokens <= MOST_TOKENS
            and outputs % OUTPUTS == 0 and w.columns % INPUTS == 0
            and outputs // OUTPUTS * _tiles(tokens) >= PROGRAMS
            and Device.current().capability == CAPABILITY and _kernel() is not None)


def mixed_product(w: jax.Array, x: jax.Array) -> jax.Array:
    """Return bfloat16 x [t, in] times int8 w [out, in], bfloat16 [t, out]: see mixed_fits."""
    tokens = len(x)
    tile = math.ceil(tokens / _tiles(tokens) / MULTIPLE) * MULTIPLE
    x = jnp.pad(x, ((0, tile * _tiles(tokens) - tokens), (0, 0)))
    kernel = _kernel()
    config = kernel.TuningConfig(
        tile_m=OUTPUTS // 2, tile_n=tile, tile_k=INPUTS, max_concurrent_steps=STEPS,
        epi_tile_m=64, epi_tile_n=_part(tile), grid_minor_dim=kernel.MatmulDimension.N,
        grid_tile_width=8, wg_dimension=kernel.MatmulDimension.M)
    return kernel.mixed_matmul_kernel(w, x.T, out_dtype=jnp.bfloat16, config=config).T[:tokens]


def _tiles(tokens: int) -> int:
    return math.ceil(tokens / WIDEST)


def _part(tile: int) -> int:
    """Return how many tokens of a tile are stored at once: the most that divide it, up to 80."""
    return next(part for part in range(5 * MULTIPLE, 0, -MULTIPLE) if tile % part == 0)


@functools.cache
def _kernel() -> ModuleType | None:
    """Return JAX's module; None where this JAX has none."""
    try:
        from jax.experimental.pallas.ops.gpu import hopper_mixed_type_matmul_mgpu
    except ImportError:
        return None
    return hopper_mixed_type_matmul_mgpu
