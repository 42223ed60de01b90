"""RMS norms of a few tokens, with what comes before and after them: sums, and halves of 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ros_pi0_fast.accel.kernels.chain import call
from ros_pi0_fast.accel.kernels.few_product import GROUP, Halves, halve
from ros_pi0_fast.model.gemma import NORM_EPSILON

ADD_WARPS = 16
"""Of a program that adds up what was split, and norms it."""


@flax.struct.dataclass
class Sum:
    """What a layer returns: the norm that follows adds it up. Only a kernel of these may read it
    (see chain)."""

    x: jax.Array
    """bfloat16 [t, d]"""
    parts: jax.Array
    """float32 [splits, t, d] or bfloat16 [t, d]: of a product."""

    def whole(self, interpret: bool = False) -> jax.Array:
        """Return it added up, [1, t, d]."""
        gain = jnp.zeros(self.x.shape[1:], self.x.dtype)
        return add_and_norm(self, gain, False, interpret, leads=False)[0][None]


def norm(x: jax.Array, gain: jax.Array, halved: bool = False, interpret: bool = False,
         leads: bool = True) -> jax.Array | Halves:
    """Return the RMS norm of x [t, d], as Halves if asked to: see model.gemma.RMSNorm, chain."""
    return _by_rows(_norm_kernel, 'rms_norm', halved, interpret, x, gain, leads=leads)


def add_and_norm(x: Sum, gain: jax.Array, halved: bool, interpret: bool, leads: bool = True,
                 ) -> tuple[jax.Array, jax.Array | Halves]:
    """Return a sum, bfloat16 [t, d], and its norm: see norm."""
    row = pl.BlockSpec((None, x.x.shape[1]), lambda i: (i, 0))
    shapes, specs = row_outputs(x.x.shape, x.x.dtype, row, halved)
    parts = x.parts if x.parts.ndim == 3 else x.parts[None]
    y, *out = call(
        _add_and_norm_kernel, programs=x.x.shape[0],
        in_specs=[pl.BlockSpec((len(parts), None, x.x.shape[1]), lambda i: (0, i, 0)), row,
                  pl.BlockSpec(gain.shape, lambda i: (0,))],
        out_specs=[row, *specs],
        out_shape=[jax.ShapeDtypeStruct(x.x.shape, x.x.dtype), *shapes],
        warps=ADD_WARPS, name='add_and_norm', interpret=interpret, leads=leads)(
            parts, x.x, gain)
    return y, Halves(*out) if halved else out[0]


def halves(x: jax.Array, interpret: bool = False) -> Halves:
    """Return Halves of x [t, d], of groups of GROUP."""
    found = _by_rows(_halve_kernel, 'halve', True, interpret,
                     x.reshape(-1, min(GROUP, x.shape[1])))
    return jax.tree.map(lambda leaf: leaf.reshape(len(x), -1), found)


def _by_rows(kernel: Callable, name: str, halved: bool, interpret: bool, x: jax.Array,
             *gain: jax.Array, leads: bool = True) -> jax.Array | Halves:
    """Run a kernel for each row of x [t, d]."""
    row = pl.BlockSpec((None, x.shape[1]), lambda i: (i, 0))
    shapes, specs = row_outputs(x.shape, x.dtype, row, halved)
    out = call(kernel, programs=x.shape[0],
               in_specs=[row, *(pl.BlockSpec(g.shape, lambda i: (0,)) for g in gain)],
               out_specs=specs, out_shape=shapes, warps=4, name=name, interpret=interpret,
               leads=leads)(x, *gain)
    return Halves(*out) if halved else out[0]


def row_outputs(shape: tuple[int, int], dtype: jnp.dtype, row: pl.BlockSpec, halved: bool,
             ) -> tuple[list[jax.ShapeDtypeStruct], list[pl.BlockSpec]]:
    """Return shapes and blocks of a kernel's rows [n, d], or of their Halves."""
    if not halved:
        return [jax.ShapeDtypeStruct(shape, dtype)], [row]
    half = jax.ShapeDtypeStruct(shape, jnp.int8)
    return ([half, half, jax.ShapeDtypeStruct((shape[0], 1), jnp.float32)],
            [row, row, pl.BlockSpec((None, 1), lambda i: (i, 0))])


def store_row(x: jax.Array, out_refs: Sequence) -> None:
    """Store float32 [d] as it is, or as Halves."""
    if len(out_refs) == 1:
        out_refs[0][...] = x.astype(out_refs[0].dtype)
    else:
        for ref, own in zip(out_refs, halve(x), strict=True):
            ref[...] = own


def _norm_kernel(_, x_ref, gain_ref, *out_refs) -> None:
    """One token; all [d]."""
    _store_norm(x_ref[...], gain_ref, out_refs)


def _add_and_norm_kernel(_, parts_ref, x_ref, gain_ref, y_ref, *out_refs) -> None:
    """One token. parts [splits, d]; all others [d]."""
    found = sum(parts_ref[i, :] for i in range(parts_ref.shape[0]))
    y = x_ref[...] + found.astype(x_ref.dtype)
    y_ref[...] = y
    _store_norm(y, gain_ref, out_refs)


def _store_norm(x: jax.Array, gain_ref: Any, out_refs: Sequence) -> None:
    wide = x.astype(jnp.float32)
    scale = 1 / jnp.sqrt(jnp.mean(wide * wide) + NORM_EPSILON)
    gain = (1 + gain_ref[...]).astype(jnp.float32)
    store_row(wide * scale * gain, out_refs)


def _halve_kernel(_, x_ref, *out_refs) -> None:
    """One token; all [d]."""
    store_row(x_ref[...].astype(jnp.float32), out_refs)


# --- attention ---------------------------------------------------------------------------------
