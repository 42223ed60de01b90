"""Weights stored as the matrices that they are multiplied as. Lossless.

openpi stores a query projection as [heads, width, head_dim], and both projections of a gated MLP
as one [2, width, hidden]. To multiply a token by them, a compiler must bring the summed axis in
front, and XLA does so in every step of the decoding loop: on a CPU that costs more than the
product itself. Stored as [in, out], a weight is read once, in order.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from ros_pi0_fast.accel.equations import find_equations, path_of
from ros_pi0_fast.model.einsum import multiply
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast


class EquationError(ValueError):
    """A weight cannot be stored as matrices for such an equation; the message names it."""


@flax.struct.dataclass
class Form:
    """How an equation `x, w -> y` is done by matrix products."""

    stacked: str = flax.struct.field(pytree_node=False)
    """Axes of w that come first in y: one matrix for each index of them."""
    summed: str = flax.struct.field(pytree_node=False)
    """Axes that x and w share, in the order of x, which ends with them."""
    free: str = flax.struct.field(pytree_node=False)
    """Axes of w that y ends with."""
    order: tuple[int, ...] = flax.struct.field(pytree_node=False)
    """Permutation of w's axes into stacked, summed, free."""

    @classmethod
    def fits(cls, eqn: str) -> bool:
        """Tell whether an equation can be done so."""
        try:
            cls.of(eqn)
        except EquationError:
            return False
        return True

    @classmethod
    def of(cls, eqn: str) -> Form:
        """Take an equation apart.

        Raises:
            EquationError: it is no matrix product of x's last axes with w.
        """
        inputs, output = eqn.split('->')
        x, w = inputs.split(',')
        own = [axis for axis in w if axis not in x]
        stacked = output[:next((i for i, axis in enumerate(output) if axis in x), len(output))]
        free = ''.join(axis for axis in own if axis not in stacked)
        summed = ''.join(axis for axis in x if axis in w)
        rest = ''.join(axis for axis in x if axis not in w)
        if x != rest + summed or output != stacked + rest + free:
            raise EquationError(f'equation: {eqn}, expected the last axes of the first argument '
                                'to be summed over')
        return cls(stacked=stacked, summed=summed, free=free,
                   order=tuple(w.index(axis) for axis in stacked + summed + free))


@functools.singledispatch
def product(w: Any, x: jax.Array) -> jax.Array:
    """Return x [t, in] times w [in, out] in the dtype of x; register matrix types on this."""
    return x @ w.astype(x.dtype)


@flax.struct.dataclass
class Matrices:
    """A weight as matrices."""

    parts: tuple[Any, ...]
    """Each an array [in, out], or of a type registered with `product`; more than one where the
    equation stacks results."""
    eqn: str = flax.struct.field(pytree_node=False)
    """The equation that it was made for."""
    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)
    """As openpi stores it."""

    @property
    def dtype(self) -> jnp.dtype:
        """Of the weight."""
        return self.parts[0].dtype

    @classmethod
    def of(cls, w: jax.Array, eqn: str) -> Matrices:
        """Store an array for an equation.

        Raises:
            EquationError: the equation is no matrix product.
        """
        form = Form.of(eqn)
        count, depth = len(form.stacked), len(form.stacked) + len(form.summed)
        ordered = jnp.transpose(w, form.order)
        sizes = ordered.shape
        matrices = ordered.reshape(math.prod(sizes[:count]), math.prod(sizes[count:depth]), -1)
        return cls(parts=tuple(matrices), eqn=eqn, shape=w.shape)


@multiply.register
def _(w: Matrices, eqn: str, x: jax.Array) -> jax.Array:
    if eqn != w.eqn:
        raise EquationError(f'equation: {eqn}, expected {w.eqn}, for which the weight is stored')
    form = Form.of(eqn)
    sizes = dict(zip(eqn.split('->')[0].split(',')[1], w.shape, strict=True))
    lead = x.shape[:x.ndim - len(form.summed)]
    flat = x.reshape(math.prod(lead), -1)
    products = [product(part, flat).reshape(*lead, *(sizes[axis] for axis in form.free))
                for part in w.parts]
    if not form.stacked:
        return products[0]
    return jnp.stack(products).reshape(
        *(sizes[axis] for axis in form.stacked), *products[0].shape)


def to_matrices(model: Pi0Fast, params: Params) -> Params:
    """Return unrolled parameters with all weights stored as matrices that are multiplied so.

    The patches' projection is none: the axes of a picture that it sums over are not adjacent.
    Leaves that stay as they are are shared, not copied.
    """
    equations = find_equations(model, params)

    def convert(keys: tuple, leaf: jax.Array) -> jax.Array | Matrices:
        eqn = equations.get(path_of(keys))
        return leaf if eqn is None or not Form.fits(eqn) else Matrices.of(leaf, eqn)

    return jax.tree_util.tree_map_with_path(convert, params)
