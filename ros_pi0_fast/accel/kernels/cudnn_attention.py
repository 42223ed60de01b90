"""cuDNN's attention, through jax.nn.dot_product_attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ros_pi0_fast.accel.kernels.device import Device
from ros_pi0_fast.model.attention import Fresh, Visible, widen, write_slots

WIDEST = {9.0: 256, 8.0: 128}
"""Largest head dimension from a compute capability on."""


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, visible: Visible | None, *,
          score_dtype: jnp.dtype = jnp.float32, fresh: Fresh | None = None) -> jax.Array:
    """Attend: see model.attention.Attend. Where `visible` is given, all queries must see the same,
    from slot 0 on.

    Raises:
        ValueError: they do not.
    """
    del score_dtype  # cuDNN keeps scores in float32.
    if visible is not None and not visible.uniform:
        raise ValueError('visible: queries that see different slots, expected uniform ones')
    k, v = widen(k), widen(v)
    if fresh is not None:
        k, v = write_slots(k, fresh.k, fresh.slot), write_slots(v, fresh.v, fresh.slot)
    lengths = None if visible is None else jnp.broadcast_to(visible.end[:, 0], q.shape[:1])
    queries = None if lengths is None else jnp.full_like(lengths, q.shape[1])
    return jax.nn.dot_product_attention(
        q.astype(k.dtype), k, v, scale=1.0, query_seq_lengths=queries,
        key_value_seq_lengths=lengths, implementation='cudnn')


def cudnn_refusal(device: Device, *, head_dim: int, dtype: str, tokens: int, kind: str) -> str:
    """Return why cuDNN cannot attend here, or ''.

    Args:
        device: To run on.
        head_dim, dtype, tokens, kind: See attention_choice.AttentionShape.
    """
    widest = next((width for capability, width in WIDEST.items()
                   if device.capability >= capability), 0)
    if device.platform != 'gpu' or not widest:
        return (f'{device.platform} of compute capability {device.capability:g}, expected an '
                f'NVIDIA GPU of at least {min(WIDEST):g}')
    if dtype not in ('bfloat16', 'float16'):
        return f'dtype: {dtype}, expected bfloat16 or float16'
    if head_dim > widest or head_dim % 8:
        return (f'head_dim: {head_dim}, expected a multiple of 8 up to {widest} at compute '
                f'capability {device.capability:g}')
    if kind == 'cache' and tokens > 1:
        return f'{tokens} new tokens, each of which sees other slots, expected 1'
    return ''
