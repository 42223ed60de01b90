"""Quantize a whole model, leaf by leaf: which weight gets how many bits, and what that costs.

    python -m ros_pi0_fast.accel.quantization CHECKPOINT OUT --weights int4

writes a checkpoint of quantized weights. Each weight is read, quantized and given up before the
next, so that a model need never be in memory at full precision.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ros_pi0_fast.accel.equations import Path as Keys
from ros_pi0_fast.accel.equations import find_equations, path_of
from ros_pi0_fast.accel.matrices import Form, Matrices
from ros_pi0_fast.accel.quantized import (
    GROUP_SIZES,
    QuantizationError,
    QuantizedMatrix,
    quantize_int4,
    quantize_int8,
    quantize_table,
)
from ros_pi0_fast.model.layers import STACKS, Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast

FORMAT = 1
"""Version of what a Scheme means; a reader refuses others."""
WEIGHTS = ('int8', 'int4')
EMBEDDING: Keys = ('PaliGemma', 'llm', 'embedder', 'input_embedding')
QuantizeMatrix = Callable[[Keys, int, jax.Array, 'Scheme'], QuantizedMatrix]
"""(keys of the weight, which of its matrices, that matrix [in, out], scheme) -> quantized."""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How a model is quantized: matrices as `weights` says, the embedding and the head in int8.

    Norms, biases, position embeddings and the projection of patches stay as they are.

    Raises:
        QuantizationError: a field has a value that this version does not know.
    """

    weights: str
    """One of WEIGHTS."""
    group_size: int | None = None
    """Inputs that share a scale in int4, one of GROUP_SIZES; None: the largest that divides."""
    keep_int8: tuple[str, ...] = ()
    """Names of weights that stay at int8 in int4, such as 'PaliGemma/llm/layers/0/mlp/linear'."""
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise QuantizationError(f'scheme: format {self.format}, expected {FORMAT}; it was '
                                    'written by another version of this package')
        if self.weights not in WEIGHTS:
            raise QuantizationError(f'scheme: weights {self.weights!r}, expected one of '
                                    f'{", ".join(WEIGHTS)}')
        if self.group_size is not None and self.group_size not in GROUP_SIZES:
            raise QuantizationError(f'scheme: group_size {self.group_size}, expected one of '
                                    f'{", ".join(map(str, GROUP_SIZES))}, or none')

    def bits(self, keys: Keys) -> int:
        """Return the bits of a weight's matrices."""
        return 4 if self.weights == 'int4' and name_of(keys) not in self.keep_int8 else 8


def name_of(keys: Keys) -> str:
    """Return keys as one name."""
    return '/'.join(map(str, keys))


def round_to_nearest(keys: Keys, index: int, matrix: jax.Array, scheme: Scheme) -> QuantizedMatrix:
    """Quantize a matrix by rounding alone: a QuantizeMatrix.

    Raises:
        QuantizationError: see quantize_int8 and quantize_int4.
    """
    name = name_of((*keys, index)) if index else name_of(keys)
    if scheme.bits(keys) == 8:
        return quantize_int8(matrix, name)
    return quantize_int4(matrix, scheme.group_size, name)


class Quantizer:
    """Quantizes the leaves of one model, in any order.

    Args:
        model: The network.
        shapes: Its parameters or their shapes, unrolled or stacked.
        scheme: How.
        matrix: What quantizes a matrix.
        table: What quantizes the embedding, given with its name.
    """

    def __init__(self, model: Pi0Fast, shapes: Params, scheme: Scheme,
                 matrix: QuantizeMatrix = round_to_nearest,
                 table: Callable[[jax.Array, str], Any] = quantize_table):
        abstract = jax.eval_shape(model.unroll, shapes)
        self._equations = find_equations(model, abstract)
        self._scheme, self._matrix, self._table = scheme, matrix, table

    def layer(self, keys: Keys, leaf: Any) -> Any:
        """Quantize one leaf of an unrolled tree."""
        if keys == EMBEDDING:
            return self._table(jnp.asarray(leaf), name_of(keys))
        eqn = self._equations.get(keys)
        if eqn is None or not Form.fits(eqn):
            return jnp.asarray(leaf)
        plain = Matrices.of(jnp.asarray(leaf), eqn)
        return plain.replace(parts=tuple(self._matrix(keys, i, part, self._scheme)
                                         for i, part in enumerate(plain.parts)))

    def stacked(self, keys: Keys, leaf: Any) -> Any:
        """Quantize one leaf of a stacked tree; a tuple, one a layer, where it is of a stack."""
        for stack in STACKS:
            if keys[:len(stack)] == stack:
                return tuple(self.layer((*stack, i, *keys[len(stack):]), leaf[i])
                             for i in range(leaf.shape[0]))
        return self.layer(keys, leaf)


def quantize_params(model: Pi0Fast, params: Params, scheme: Scheme,
                    matrix: QuantizeMatrix = round_to_nearest) -> Params:
    """Return stacked parameters quantized and unrolled. May be traced.

    Raises:
        QuantizationError: a weight cannot be quantized so; the message names it.
    """
    quantizer = Quantizer(model, params, scheme, matrix)
    return split_layers(_walk(params, quantizer.stacked))


def fake_quantized(model: Pi0Fast, params: Params, scheme: Scheme) -> Params:
    """Return unrolled parameters with the values that quantized ones have, for training.

    Quantization-aware training (Jacob et al., arXiv:1712.05877): the loss is that of the rounded
    weights, and its gradient goes to the exact ones as if nothing had been rounded (the
    straight-through estimator, Bengio et al., arXiv:1308.3432).
    """
    def rounded(keys: Keys, index: int, matrix: jax.Array, scheme: Scheme) -> jax.Array:
        wide = round_to_nearest(keys, index, matrix, scheme).wide()
        return matrix + jax.lax.stop_gradient(wide.astype(matrix.dtype) - matrix)

    def table(leaf: jax.Array, name: str) -> jax.Array:
        whole = quantize_table(leaf, name)
        wide = whole.values.astype(leaf.dtype) * whole.scale[:, None].astype(leaf.dtype)
        return leaf + jax.lax.stop_gradient(wide - leaf)

    quantizer = Quantizer(model, params, scheme, rounded, table)
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: quantizer.layer(path_of(keys), leaf), params)


def _walk(tree: Any, function: Callable[[Keys, Any], Any], keys: Keys = ()) -> Any:
    if isinstance(tree, Mapping):
        return {key: _walk(child, function, (*keys, key)) for key, child in tree.items()}
    return function(keys, tree)


def split_layers(params: Params) -> Params:
    """Turn stacks whose leaves are tuples, one entry a layer, into tuples of trees."""
    def at(tree: Any, path: Sequence[str]) -> Any:
        if path:
            head, *rest = path
            return {**tree, head: at(tree[head], rest)}
        depth = len(_first(tree))
        return tuple(_walk(tree, lambda _, leaves, i=i: leaves[i]) for i in range(depth))

    for stack in STACKS:
        params = at(params, stack)
    return params


def _first(tree: Any) -> tuple:
    while isinstance(tree, Mapping):
        tree = next(iter(tree.values()))
    return tree


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', type=Path, help="of this package or of openpi's")
    parser.add_argument('out', type=Path, help='folder to write; CHECKPOINT/int4 (or int8) is '
                        'what the node takes for that variant of CHECKPOINT')
    parser.add_argument('--weights', choices=WEIGHTS, default='int4')
    parser.add_argument('--group-size', type=int, help='inputs that share a scale in int4; by '
                        f'default the largest of {", ".join(map(str, GROUP_SIZES))} that divides')
    parser.add_argument('--keep-int8', nargs='*', default=[], metavar='NAME',
                        help='weights to leave at int8')
    options = parser.parse_args(arguments)
    from ros_pi0_fast.accel.quantized_checkpoint import quantize_checkpoint
    from ros_pi0_fast.weights.errors import CheckpointError
    from ros_pi0_fast.weights.openpi import progress_bar

    try:
        scheme = Scheme(weights=options.weights, group_size=options.group_size,
                        keep_int8=tuple(options.keep_int8))
        before, after = quantize_checkpoint(options.checkpoint, options.out, scheme,
                                            progress=progress_bar())
    except (QuantizationError, CheckpointError) as error:
        sys.exit(f'error: {error}')
    print(f'{options.out}: {after / 2**20:.1f} MiB of weights, {after / before:.3f} of the '
          f'{before / 2**20:.1f} MiB that they take in {options.checkpoint}')


if __name__ == '__main__':
    main()
