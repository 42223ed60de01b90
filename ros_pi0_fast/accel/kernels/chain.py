"""How a kernel of a layer leads to the next one: it lets it be started while it runs.

The next one then has its programs in place when this one ends, for which XLA makes it wait as it
begins (programmatic dependent launch: PTX's griddepcontrol, from Hopper on; openxla/xla#38544).
What follows must be another kernel of these: XLA's own may read too early, by loads that wait for
nothing (openxla/xla#43894).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from ros_pi0_fast.accel.kernels.device import Device

CAPABILITY = 9.0
"""Compute capability from which kernels can be started early."""


@functools.cache
def starts_early() -> bool:
    """Tell whether kernels of the device that JAX uses can be started early."""
    return Device.current().capability >= CAPABILITY


def lead(number: jax.typing.ArrayLike, interpret: bool) -> jax.Array:
    """Return an int32 that a kernel needs, and by that let the next one be started."""
    number = jnp.asarray(number, jnp.int32)
    if interpret or not starts_early():
        return number
    return jnp.max(plgpu.elementwise_inline_asm(
        'griddepcontrol.launch_dependents; mov.b32 $0, $1;', args=[jnp.full((1,), number)],
        constraints='=r,r', pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct((1,), jnp.int32)])[0])


def call(kernel: Callable[..., None], *, programs: int, in_specs: Sequence[pl.BlockSpec],
         out_specs: Sequence[pl.BlockSpec], out_shape: Sequence[jax.ShapeDtypeStruct],
         warps: int, name: str, interpret: bool, leads: bool = True, **options: Any,
         ) -> Callable[..., list[jax.Array]]:
    """Return a function of arrays that runs a kernel.

    Args:
        kernel: Takes the program's index and references.
        programs: Of the kernel.
        in_specs: Of the arrays.
        out_specs: Of the results.
        out_shape: Of the results.
        warps: Of a program.
        name: Of the kernel.
        interpret: See few_product.
        leads: What follows is another of these kernels.
        options: Of pl.pallas_call.
    """
    def run(*refs: Any) -> None:
        index = pl.program_id(0)
        if leads:  # Who leads must use the number.
            index = lead(index, interpret)
            pl.when(index < programs)(lambda: kernel(index, *refs))
        else:
            kernel(index, *refs)

    return pl.pallas_call(
        run, grid=(programs,), in_specs=in_specs, out_specs=out_specs, out_shape=out_shape,
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=1), name=name,
        interpret=interpret, **options)
