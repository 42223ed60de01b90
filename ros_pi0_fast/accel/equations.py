"""Which einsum each weight of a model takes part in, found by tracing the model.

Whoever stores weights in another form (as matrices, quantized) must know which of their axes are
summed over. The model says so where it multiplies; this reads it off, so that it stands in one
place only.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from ros_pi0_fast.model.einsum import multiply, rows
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast

Path = tuple[str | int, ...]
"""Keys from the root of a parameter tree to a leaf; numbers are layers."""


@flax.struct.dataclass
class _Probe:
    """A weight that notes the equations in which it is multiplied."""

    array: jax.Array
    path: Path = flax.struct.field(pytree_node=False)
    found: Any = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> jnp.dtype:
        return self.array.dtype

    def astype(self, dtype: jnp.dtype) -> jax.Array:
        """Stand for an array where a weight is not multiplied: a norm's scale, a bias."""
        return self.array.astype(dtype)

    def __radd__(self, other: float) -> jax.Array:
        return other + self.array


class _Found(dict):
    """Equations by path. Compared by identity, as what is static of a probe must be hashable."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


@multiply.register
def _(w: _Probe, eqn: str, x: jax.Array) -> jax.Array:
    w.found[w.path] = eqn
    return multiply(w.array, eqn, x)


@rows.register
def _(w: _Probe, ids: jax.Array) -> jax.Array:
    return rows(w.array, ids)


def path_of(keys: tuple) -> Path:
    """Return a path of jax.tree_util as plain keys, indices and names of fields."""
    return tuple(next(getattr(key, name) for name in ('key', 'idx', 'name') if hasattr(key, name))
                 for key in keys)


def find_equations(model: Pi0Fast, params: Params) -> dict[Path, str]:
    """Return the equation of each weight that is multiplied; nothing is computed.

    Args:
        model: The network.
        params: Unrolled; arrays or shapes (jax.ShapeDtypeStruct).
    """
    found = _Found()
    probes = jax.tree_util.tree_map_with_path(
        lambda keys, leaf: _Probe(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), path_of(keys),
                                  found), params)
    images = jnp.zeros((1, *model.config.siglip.image_size, 3), jnp.uint8)
    jax.eval_shape(functools.partial(_run, model), probes, images)
    return dict(found)


def _run(model: Pi0Fast, params: Params, images: jax.Array) -> Any:
    cache = model.init_cache(params, 1, 1)
    ids = jnp.zeros((1, 1), jnp.int32)
    return model.embed_image(params, images), model.decode_step(params, ids, cache)
