"""Parameters whose matrices are stored by outputs, and which product is for how many tokens."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ros_pi0_fast.accel.equations import path_of
from ros_pi0_fast.accel.kernels.device import Device, jax_refusal
from ros_pi0_fast.accel.kernels.few_product import TOKENS, Halves, few_fit, few_product
from ros_pi0_fast.accel.kernels.mixed_product import mixed_fits, mixed_product
from ros_pi0_fast.accel.kernels.rows import INPUTS, Rows
from ros_pi0_fast.accel.kernels.widen import widened
from ros_pi0_fast.accel.matrices import Matrices, product
from ros_pi0_fast.accel.quantized import QuantizedMatrix
from ros_pi0_fast.model.layers import Params

SMALLEST_CAPABILITY = 8.0
SMALL = 2 ** 22
"""Bytes of a matrix of integers that a kernel of its own is not worth while for, to widen them."""
_HIDDEN = {('MlpBlock_0', 'Dense_0', 'kernel'): 1, ('MlpBlock_0', 'Dense_0', 'bias'): 0,
           ('MlpBlock_0', 'Dense_1', 'kernel'): 0}
"""Ends of the paths of what has SigLIP's hidden axis, and which axis that is."""


@product.register
def _(w: Rows, x: jax.Array) -> jax.Array:
    if x.shape[0] <= TOKENS and few_fit(w):
        return few_product((w,), x if w.bits == 16 else Halves.of(x))[:, :w.outputs]
    return _many_product(w, x)


def _many_product(w: Rows, x: jax.Array) -> jax.Array:
    """Return x [t, in] times a matrix, [t, out], as fast as tensor cores multiply."""
    x = jnp.pad(x, ((0, 0), (0, w.columns - x.shape[1])))
    if w.bits == 16:
        return _by_outputs(x, w.values, x.dtype)[:, :w.outputs]
    if mixed_fits(w, x):
        products = mixed_product(w.values, x)
    elif w.values.size > SMALL:
        # Scaled by what follows: as part of the product XLA scales it in a pass of its own.
        products = jax.lax.optimization_barrier(_by_outputs(x, _wide(w, x.dtype), jnp.float32))
    else:
        products = _by_outputs(x, w.in_units(x.dtype), jnp.float32)
    return (products * w.scale).astype(x.dtype)[:, :w.outputs]


def _by_outputs(x: jax.Array, w: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=dtype)


def _wide(w: Rows, dtype: jnp.dtype) -> jax.Array:
    """Return a matrix of integers in units of its scale, made so by a kernel of its own: within
    the product it would be done again for each tile of tokens."""
    if w.bits == 4:
        return jax.lax.optimization_barrier(w.in_units(dtype))
    return jax.lax.platform_dependent(
        w, cuda=lambda w: widened(w.values), default=lambda w: w.in_units(dtype))


def to_rows(params: Params) -> Params:
    """Return parameters with the matrices of the decoder, and all of integers, stored by outputs,
    and the hidden axis of SigLIP's MLPs padded with 0 to whole tiles.

    SigLIP's 4304 is 16 · 269: a compiler that sums over parts of it, or over tiles, would pad
    weights and activations in every inference. What is added are channels that are 0 and stay so.
    """
    def convert(keys: tuple, leaf: object) -> object:
        path = path_of(keys)
        if isinstance(leaf, Matrices):
            leaf = leaf.replace(parts=tuple(
                Rows.of(part) if 'llm' in path or isinstance(part, QuantizedMatrix) else part
                for part in leaf.parts))
        for end, axis in _HIDDEN.items():
            leaf = _whole(leaf, axis) if path[-3:] == end else leaf
        return leaf

    return jax.tree_util.tree_map_with_path(
        convert, params, is_leaf=lambda leaf: isinstance(leaf, Matrices))


def _whole(leaf: Any, axis: int) -> Any:
    """Return a vector, a matrix [in, out], or one stored as Matrices of one part, with an axis
    padded with 0 to a multiple of INPUTS."""
    missing = -leaf.shape[axis] % INPUTS
    if isinstance(leaf, Matrices):
        shape = list(leaf.shape)
        shape[axis] += missing
        return leaf.replace(parts=(_whole(leaf.parts[0], axis),), shape=tuple(shape))
    if isinstance(leaf, Rows) and axis == 0:  # The arrays are padded already.
        return leaf.replace(inputs=leaf.columns)
    if isinstance(leaf, Rows):
        outputs = leaf.outputs + missing
        more = outputs - leaf.values.shape[0]
        return jax.tree.map(lambda x: jnp.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1)),
                            leaf.replace(outputs=outputs))
    return jnp.pad(leaf, [(0, missing if i == axis else 0) for i in range(leaf.ndim)])


def rows_refusal(device: Device, dtype: str) -> str:
    """Return why weights cannot be stored by outputs for a device, or ''."""
    if device.platform != 'gpu' or device.capability < SMALLEST_CAPABILITY:
        return (f'{device.platform} of compute capability {device.capability:g}, expected an '
                f'NVIDIA GPU of at least {SMALLEST_CAPABILITY:g}')
    return jax_refusal() if dtype == 'bfloat16' else f'dtype: {dtype}, expected bfloat16'
