"""GPTQ: round weights to 4 bits one input after another, each making up for those before.

Frantar et al., arXiv:2210.17323. A matrix is rounded so that its outputs on recorded observations
change little, not its numbers: the error of an input's weights is spread over the inputs that are
still to be rounded, by how much they go together in the recordings. It needs nothing but the
second moments of what each weight is multiplied with, and leaves the model as it is; scaling by
activations (AWQ, arXiv:2306.00978) would have to be folded into the layers before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.equations import Path as Keys
from ros_pi0_fast.accel.equations import find_equations, path_of
from ros_pi0_fast.accel.matrices import Form, Matrices
from ros_pi0_fast.accel.quantization import Scheme, name_of, round_to_nearest
from ros_pi0_fast.accel.quantized import (
    LARGEST_INT4,
    LARGEST_SCALE,
    QuantizedMatrix,
    group_size_for,
    pack,
    pad_inputs,
    quantize_int4,
)
from ros_pi0_fast.model.einsum import multiply
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Batch, Pi0Fast

DAMPING = 0.01
"""Added to the diagonal of the second moments, as a fraction of its mean, as in the paper."""
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Group scales that are tried, as fractions of that which cuts nothing off."""
HEADROOM = 1.2
"""How much a group's largest may grow by what it makes up for."""


# --- what weights are multiplied with ------------------------------------------------------------


class _Moments(dict):
    """Sums of x xᵀ by weight. Compared by identity, as what is static in a pytree must be."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


@flax.struct.dataclass
class _Recorder:
    """A weight that adds up the second moments of its inputs."""

    matrices: Matrices
    keys: Keys = flax.struct.field(pytree_node=False)
    moments: _Moments = flax.struct.field(pytree_node=False)


@multiply.register
def _(w: _Recorder, eqn: str, x: jax.Array) -> jax.Array:
    flat = x.astype(jnp.float32).reshape(-1, w.matrices.parts[0].shape[0])
    found = np.asarray(flat.T @ flat, np.float64)
    w.moments[w.keys] = w.moments.get(w.keys, 0.0) + found
    return multiply(w.matrices, eqn, x)


def record_moments(model: Pi0Fast, params: Params, batches: Iterable[Batch],
                   ) -> dict[Keys, np.ndarray]:
    """Return Σ x xᵀ, float64 [in, in], of the inputs of each weight that is a matrix.

    Args:
        model: The network.
        params: Unrolled, plain.
        batches: What `Pi0Fast.loss` takes: prefixes and the tokens that follow. Run one by one,
            without compiling.
    """
    equations, moments = find_equations(model, params), _Moments()

    def convert(keys: tuple, leaf: jax.Array) -> Any:
        path = path_of(keys)
        eqn = equations.get(path)
        if eqn is None or not Form.fits(eqn):
            return leaf
        return _Recorder(Matrices.of(leaf, eqn), path, moments)

    recorders = jax.tree_util.tree_map_with_path(convert, params)
    for batch in batches:
        model.loss(recorders, batch)
    return dict(moments)


# --- rounding --------------------------------------------------------------------------------


def gptq_int4(w: jax.Array, moments: np.ndarray, group_size: int | None = None,
              name: str = 'matrix') -> QuantizedMatrix:
    """Round a matrix [in, out] to int4 so that its outputs on the recordings change little.

    Args:
        w: The matrix.
        moments: float64 [in, in], see record_moments.
        group_size: Inputs that share a scale; None: see group_size_for.
        name: For errors.

    Raises:
        QuantizationError: see quantize_int4.
    """
    size = group_size_for(w.shape[0], group_size, name)
    left = np.array(pad_inputs(w.astype(jnp.float32), size), np.float64)
    spread = _spread(moments, len(left))
    blocks = np.abs(left).reshape(-1, size, left.shape[1]).max(axis=1)
    unit = blocks.max(axis=0) / LARGEST_INT4 / LARGEST_SCALE * HEADROOM
    if not np.isfinite(unit).all() or not unit.all():
        return quantize_int4(w, group_size, name)  # Which says what is wrong.
    values, groups = np.zeros(left.shape, np.int8), np.zeros(blocks.shape, np.uint8)
    for group, start in enumerate(range(0, len(left), size)):
        end = start + size
        groups[group] = _best_scales(left[start:end], np.diag(spread)[start:end], unit)
        step = groups[group] * unit
        errors = np.zeros((size, left.shape[1]))
        for i in range(start, end):
            values[i] = np.clip(np.round(left[i] / step), -LARGEST_INT4, LARGEST_INT4)
            errors[i - start] = (left[i] - values[i] * step) / spread[i, i]
            left[i + 1:end] -= np.outer(spread[i, i + 1:end], errors[i - start])
        left[end:] -= spread[start:end, end:].T @ errors
    return QuantizedMatrix(
        values=pack(jnp.asarray(values.reshape(-1, size, left.shape[1]))),
        scale=jnp.asarray(unit, jnp.float32), groups=jnp.asarray(groups), inputs=w.shape[0])


def _spread(moments: np.ndarray, size: int) -> np.ndarray:
    """Return the upper Cholesky factor of the inverse of the damped moments [size, size]."""
    h = np.zeros((size, size))
    h[:len(moments), :len(moments)] = moments
    diagonal = np.diag(h)
    # Inputs that never occurred do not matter; 1 keeps them from being divided by 0.
    h[np.diag_indices(size)] += np.where(diagonal == 0, 1.0, 0.0) + DAMPING * diagonal.mean()
    return np.linalg.cholesky(np.linalg.inv(h)).T


def _best_scales(block: np.ndarray, spread: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Return the scale of a group [g, out] that costs least, uint8 [out], in units."""
    exact = np.abs(block).max(axis=0) / LARGEST_INT4 / unit
    best, least = None, np.inf
    for shrink in SHRINKS:
        scale = np.clip(np.ceil(exact * shrink), 1, LARGEST_SCALE)
        step = scale * unit
        rounded = np.clip(np.round(block / step), -LARGEST_INT4, LARGEST_INT4) * step
        cost = (np.square(block - rounded) / np.square(spread)[:, None]).sum(axis=0)
        best = scale if best is None else np.where(cost < least, scale, best)
        least = np.minimum(cost, least)
    return best.astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Quantizes matrices by GPTQ: a QuantizeMatrix."""

    moments: dict[Keys, np.ndarray]
    """See record_moments."""

    def __call__(self, keys: Keys, index: int, matrix: jax.Array,
                 scheme: Scheme) -> QuantizedMatrix:
        """Quantize a matrix.

        Raises:
            QuantizationError: see quantize_int4.
        """
        if scheme.bits(keys) == 8 or keys not in self.moments:
            return round_to_nearest(keys, index, matrix, scheme)
        return gptq_int4(matrix, self.moments[keys], scheme.group_size, name_of(keys))


# --- what it costs -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WeightError:
    """What rounding costs one weight."""

    name: str
    relative: float
    """|W − Ŵ| / |W|, root mean square."""
    output: float
    """|x W − x Ŵ| / |x W| on the recordings, root mean square."""
    largest: float
    """Largest |W − Ŵ| over the largest |W|."""


def weight_errors(plain: Params, quantized: Params,
                  moments: dict[Keys, np.ndarray]) -> list[WeightError]:
    """Return the errors of all quantized weights.

    Args:
        plain: Unrolled parameters, stored as matrices.
        quantized: The same, quantized.
        moments: See record_moments.
    """
    found = []

    def compare(keys: tuple, before: Any, after: Any) -> None:
        path = path_of(keys)
        if path not in moments:
            return
        wide, delta = (np.concatenate([np.asarray(part, np.float64) for part in parts], axis=1)
                       for parts in (before.parts, [
                           part - narrow.wide() for part, narrow in
                           zip(before.parts, after.parts, strict=True)]))

        def output(w: np.ndarray) -> float:
            return float(np.sqrt(np.einsum('io,ij,jo->', w, moments[path], w, optimize=True)))

        found.append(WeightError(
            name=name_of(path), relative=float(np.linalg.norm(delta) / np.linalg.norm(wide)),
            output=output(delta) / output(wide),
            largest=float(np.abs(delta).max() / np.abs(wide).max())))

    jax.tree_util.tree_map_with_path(compare, plain, quantized,
                                     is_leaf=lambda x: isinstance(x, Matrices))
    return found


def sensitive(errors: Iterable[WeightError], most: float) -> tuple[str, ...]:
    """Return the weights whose outputs change by more than `most`: they stay at int8."""
    return tuple(error.name for error in errors if error.output > most)
