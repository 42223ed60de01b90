"""The one seam through which weights are multiplied, looked up and declared.

A weight is an array, or any pytree type that registers itself here (quantized weights do); the
model never asks which. Weights are cast to the dtype of the activations, as openpi does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Weight = Any
"""jax.Array, or a type registered with `multiply`; of a table with `rows` and `part`, too."""


@functools.singledispatch
def multiply(w: Weight, eqn: str, x: jax.Array) -> jax.Array:
    """Compute einsum(eqn, x, w) in the dtype of x; register weight types on this."""
    return jnp.einsum(eqn, x, w.astype(x.dtype))


def einsum(eqn: str, x: jax.Array, w: Weight) -> jax.Array:
    """Return einsum(eqn, x, w), in the dtype of x."""
    return multiply(w, eqn, x)


@functools.singledispatch
def rows(w: Weight, ids: jax.Array) -> jax.Array:
    """Return rows [..., d] of an embedding table [vocabulary, d]; register weight types on this.

    Args:
        w: The table.
        ids: int32 [...]: which rows; every one must exist.
    """
    return jnp.take(w, ids, axis=0, mode='clip')


@functools.singledispatch
def part(w: Weight, ids: jax.Array) -> Weight:
    """Return an embedding table of some rows of a table; register weight types on this.

    Args:
        w: The table [vocabulary, d].
        ids: int32 [n]: which rows; every one must exist.
    """
    return rows(w, ids)


def weight(module: nn.Module, name: str, init: Callable[..., jax.Array],
           shape: tuple[int, ...]) -> Weight:
    """Declare a weight of a module, and return what the caller stored under its name.

    Unlike `module.param`, this leaves the stored value as it is, so that a weight can be of a
    registered type whose leaves have shapes of their own.

    Raises:
        KeyError: nothing is stored under that name.
    """
    if module.is_initializing():
        return module.param(name, init, shape)
    value = module.get_variable('params', name)
    if value is None:
        raise KeyError(f'{"/".join((*module.path, name))}: not among the parameters; expected '
                       f'shape {shape}')
    return value
