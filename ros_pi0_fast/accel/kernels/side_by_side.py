"""Matrices side by side in one kernel, some outputs of one of them a program; or two that gate."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ros_pi0_fast.accel.kernels.rows import Rows


def first_programs(parts: Sequence[Rows], outputs: int) -> tuple[int, ...]:
    """Return the first program of each matrix, and one more than the last of all.

    Args:
        parts: The matrices, of which each has whole programs.
        outputs: Of a program.
    """
    return tuple(itertools.accumulate(
        (w.values.shape[0] // outputs for w in parts), initial=0))


def outputs_spec(x: jax.Array, outputs: int, first: int) -> pl.BlockSpec:
    """Return how programs from `first` on see the outputs of an array [out, …] that are theirs."""
    last = x.shape[0] // outputs - 1
    return pl.BlockSpec((outputs, *x.shape[1:]), lambda i, *_: (
        jnp.clip(i - first, 0, last), *(0,) * (x.ndim - 1)))


def of_program(program: jax.Array, parts: Sequence, firsts: tuple[int, ...],
               product: Callable) -> jax.Array:
    """Return the product of the one matrix that a program is for."""
    first, *rest = parts
    if not rest:
        return product(first)
    return jax.lax.cond(program < firsts[1], lambda: product(first),
                        lambda: of_program(program, rest, firsts[1:], product))


def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    """Return gelu(gate) · up of float32; the gate is rounded to bfloat16, as by the model."""
    return jax.nn.gelu(gate.astype(jnp.bfloat16).astype(jnp.float32)) * up
