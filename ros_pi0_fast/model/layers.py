"""Running a stack of equal layers: scanned over stacked weights, or unrolled over split ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Params = Mapping[str, Any]
"""Nested dict of weights, with openpi's names."""
Layers = Params | tuple[Params, ...]
"""Weights of a stack: one tree whose leaves have a first axis of layers, or a tree a layer."""
Body = Callable[..., tuple[jax.Array, Any]]
"""(weights of one layer, x, its cache, last=bool) -> (x, its cache)."""

STACKS = (('PaliGemma', 'img', 'Transformer', 'encoderblock'), ('PaliGemma', 'llm', 'layers'))
"""Where the stacks of layers are in a parameter tree."""


def run_layers(body: Body, layers: Layers, x: jax.Array, caches: Any = None, *,
               remat: str | None = None) -> tuple[jax.Array, Any]:
    """Feed x through all layers.

    Scanned layers compile once however many there are, but each step copies its layer's weights
    and cache out of the stack and back; unrolled ones read their weights in place, and write their
    caches in place where these are a tuple. Only unrolled layers are told by `last=True` which of
    them is the last.

    Args:
        body: What one layer does.
        layers: Their weights.
        x: [b, t, d]
        caches: Stacked, or a tuple with an entry a layer (for unrolled layers only), or None.
        remat: Name of a policy in jax.checkpoint_policies: what the forward pass keeps for the
            backward pass, which computes the rest again. None keeps everything.

    Returns:
        x and the caches after the last layer.

    Raises:
        ValueError: weights are stacked and caches are not; or there is no such policy.
    """
    if not isinstance(layers, tuple):
        if isinstance(caches, tuple):
            raise ValueError('layers: stacked, expected a tuple of layers, as the cache is one')
        step = _checkpointed(lambda weights, x, cache: body(weights, x, cache, last=False), remat,
                             prevent_cse=False)
        return jax.lax.scan(lambda x, xs: step(xs[0], x, xs[1]), x, (layers, caches))
    stacked = caches is not None and not isinstance(caches, tuple)
    if stacked:
        caches = tuple(jax.tree.map(lambda x, i=i: x[i], caches) for i in range(len(layers)))
    written = []
    for index, weights in enumerate(layers):
        last = index == len(layers) - 1
        step = _checkpointed(
            lambda weights, x, cache, last=last: body(weights, x, cache, last=last), remat)
        x, cache = step(weights, x, None if caches is None else caches[index])
        written.append(cache)
    if stacked:
        return x, jax.tree.map(lambda *entries: jnp.stack(entries), *written)
    return x, None if caches is None else tuple(written)


def _checkpointed(function: Callable, remat: str | None, prevent_cse: bool = True) -> Callable:
    if remat is None:
        return function
    policy = getattr(jax.checkpoint_policies, remat, None)
    if policy is None:
        raise ValueError(f'remat: {remat!r}, expected the name of a policy in '
                         'jax.checkpoint_policies, such as nothing_saveable')
    return jax.checkpoint(function, policy=policy, prevent_cse=prevent_cse)


def init_layers(init: Callable[[jax.Array], Params], rng: jax.Array, depth: int) -> Params:
    """Initialize a stack, with a leading axis of layers on every leaf."""
    return jax.vmap(init)(jax.random.split(rng, depth))


def unroll(params: Params) -> Params:
    """Split the stacks of a parameter tree into tuples of trees, one a layer.

    NumPy leaves become views; jax.Array leaves are copied layer by layer. The tree may be of one
    of the two towers only.
    """
    for path in [path for path in STACKS if path[1] in params[path[0]]]:
        stacked = _get(params, path)
        if not isinstance(stacked, tuple):
            depth = jax.tree.leaves(stacked)[0].shape[0]
            params = _set(params, path, tuple(
                jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(depth)))
    return params


def stack(params: Params) -> Params:
    """Undo `unroll`: the tree as openpi stores it."""
    for path in STACKS:
        layers = _get(params, path)
        if isinstance(layers, tuple):
            params = _set(params, path, jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers))
    return params


def _get(tree: Params, path: Sequence[str]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _set(tree: Params, path: Sequence[str], value: Any) -> Params:
    head, *rest = path
    return {**tree, head: _set(tree[head], rest, value) if rest else value}
