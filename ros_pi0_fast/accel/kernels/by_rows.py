"""Parameters whose matrices are stored by outputs, and which product is for how many tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ros_pi0_fast.accel.equations import path_of
from ros_pi0_fast.accel.kernels.device import Device
from ros_pi0_fast.accel.kernels.matvec import FEW_TOKENS, few_fit, few_product
from ros_pi0_fast.accel.kernels.rows import MOST_TOKENS, Rows, partial_sums
from ros_pi0_fast.accel.matrices import Matrices, product
from ros_pi0_fast.accel.quantized import QuantizedMatrix
from ros_pi0_fast.model.layers import Params

SMALLEST_CAPABILITY = 8.0


@product.register
def _(w: Rows, x: jax.Array) -> jax.Array:
    if x.shape[0] <= FEW_TOKENS and few_fit(w):
        return few_product((w,), x)
    if w.groups is None and (w.scale is None or x.shape[0] > MOST_TOKENS):
        x = jnp.pad(x, ((0, 0), (0, w.columns - x.shape[1])))
        wide = jax.lax.dot_general(x, w.values.astype(x.dtype), (((1,), (1,)), ((), ())),
                                   preferred_element_type=jnp.float32)
        wide = wide if w.scale is None else wide * w.scale
        return wide.astype(x.dtype)[:, :w.outputs]
    return jnp.sum(partial_sums(w, x), axis=0).astype(x.dtype)


def to_rows(params: Params) -> Params:
    """Return parameters with the matrices of the decoder, and all of integers, stored by outputs.
    """
    def convert(keys: tuple, leaf: object) -> object:
        if not isinstance(leaf, Matrices):
            return leaf
        decodes = 'llm' in path_of(keys)
        return leaf.replace(parts=tuple(
            Rows.of(part) if decodes or isinstance(part, QuantizedMatrix) else part
            for part in leaf.parts))

    return jax.tree_util.tree_map_with_path(
        convert, params, is_leaf=lambda leaf: isinstance(leaf, Matrices))


def rows_refusal(device: Device, dtype: str) -> str:
    """Return why weights cannot be stored by outputs for a device, or ''."""
    if device.platform != 'gpu' or device.capability < SMALLEST_CAPABILITY:
        return (f'{device.platform} of compute capability {device.capability:g}, expected an '
                f'NVIDIA GPU of at least {SMALLEST_CAPABILITY:g}')
    return '' if dtype == 'bfloat16' else f'dtype: {dtype}, expected bfloat16'
