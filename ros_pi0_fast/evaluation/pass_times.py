"""How long a decoding pass of Gemma 2B takes on this GPU: as one kernel, and as several a layer.

    python -m ros_pi0_fast.evaluation.pass_times --kinds int8 int4 --tokens 1 3

Random weights; passes in a loop on the GPU, each fed what the one before returned, without the
output head. Medians of loops of one way and the other in turns. The floor is the time that
reading the weights takes at the rate at which the GPU copies (bytes read and written).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.kernels.few_tokens import FewTokensBlock
from ros_pi0_fast.accel.kernels.rows import Rows
from ros_pi0_fast.accel.matrices import Matrices
from ros_pi0_fast.engine.compiler import PLATFORM_OPTIONS
from ros_pi0_fast.evaluation.machine import measure_machine
from ros_pi0_fast.evaluation.product_cuts import KINDS
from ros_pi0_fast.model.attention import Visible, folded
from ros_pi0_fast.model.cache import LayerCache
from ros_pi0_fast.model.config import GemmaConfig, get_config
from ros_pi0_fast.model.gemma import Tokens
from ros_pi0_fast.model.layers import Params

PASSES = 16
"""Of a loop."""
PREFIX = 600
"""Slots of the cache that are taken before the first pass."""
SLOTS = 881
RUNS = 7


def random_layer(kind: str, config: GemmaConfig, key: jax.Array) -> Params:
    """Return a layer's parameters, matrices stored by outputs."""
    keys = iter(jax.random.split(key, 9))

    def matrices(*sizes: tuple[int, int]) -> Matrices:
        return Matrices(parts=tuple(
            Rows.of(KINDS[kind](jax.random.normal(next(keys), size) * size[0] ** -0.5))
            for size in sizes), eqn='', shape=())

    def gain() -> dict[str, jax.Array]:
        noise = jax.random.normal(next(keys), (config.width,))
        return {'scale': (0.1 * noise).astype(jnp.bfloat16)}

    d, inner, hidden = config.width, config.num_heads * config.head_dim, config.mlp_dim
    return {
        'attn': {'q_einsum': {'w': matrices((d, inner))},
                 'kv_einsum': {'w': matrices(*[(d, config.head_dim)] * 2)},
                 'attn_vec_einsum': {'w': matrices((inner, d))}},
        'mlp': {'gating_einsum': matrices(*[(d, hidden)] * 2), 'linear': matrices((hidden, d))},
        'pre_attention_norm': gain(), 'pre_ffw_norm': gain()}


def loop(block: FewTokensBlock) -> Callable[..., jax.Array]:
    """Return a function of layers, caches and tokens [1, t, d] that runs PASSES passes."""
    def run(layers: tuple[Params, ...], caches: tuple[LayerCache, ...], x: jax.Array) -> jax.Array:
        steps = jnp.arange(x.shape[1], dtype=jnp.int32)

        def body(state: tuple) -> tuple:
            index, x, caches = state
            slot = (PREFIX + index)[None]
            tokens = Tokens(positions=slot[:, None] + steps, slot=slot, visible=Visible(
                start=jnp.zeros_like(slot), end=slot[:, None] + steps + 1,
                uniform=len(steps) == 1))
            y, found = block.whole(layers, x, tokens, caches) or (x, [])
            if not found:
                for weights, cache in zip(layers, caches, strict=True):
                    y, cache = block.apply({'params': weights}, y, tokens, cache)
                    found.append(cache)
            return index + 1, block.finish(y, layers[0]['pre_ffw_norm']), tuple(found)

        return jax.lax.while_loop(
            lambda state: state[0] < PASSES, body, (jnp.zeros((), jnp.int32), x, caches))[1]

    return run


def measure(kind: str, tokens: int, config: GemmaConfig, copy: float) -> None:
    """Print the times of passes of so many tokens, and how far from the floor they are."""
    make = jax.jit(lambda key: random_layer(kind, config, key))
    keys = jax.random.split(jax.random.key(0), config.depth)
    layers = tuple(make(key) for key in keys)
    empty = jnp.zeros((1, SLOTS, 1, config.head_dim), jnp.bfloat16)
    caches = tuple(LayerCache(k=empty, v=empty) for _ in layers)
    x = jax.random.normal(keys[0], (1, tokens, config.width)).astype(jnp.bfloat16)
    ways = {name: jax.jit(loop(FewTokensBlock(config, folded, together=together))).lower(
        layers, caches, x).compile(compiler_options=PLATFORM_OPTIONS[jax.devices()[0].platform])
        for name, together in (('one kernel', True), ('kernels of layers', False))}
    times: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for run, (name, way) in itertools.product(range(-1, RUNS), ways.items()):
        began = time.perf_counter()
        results[name] = jax.block_until_ready(way(layers, caches, x))
        if run >= 0:
            times[name].append(1e3 * (time.perf_counter() - began) / PASSES)
    floor = 1e3 * sum(leaf.nbytes for leaf in jax.tree.leaves(layers)) / copy
    for name, own in times.items():
        print(f'{kind}, {tokens} tokens, {name}: {np.median(own):.3f} ms a pass, '
              f'{np.median(own) / floor:.2f} times the floor', flush=True)
    one, other = (np.asarray(result, np.float32) for result in results.values())
    print(f'  after {PASSES} passes they differ by '
          f'{np.linalg.norm(one - other) / np.linalg.norm(other):.1e}', flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kinds', nargs='+', default=list(KINDS), choices=KINDS)
    parser.add_argument('--tokens', nargs='+', type=int, default=[1, 3])
    options = parser.parse_args(arguments)
    if jax.devices()[0].platform != 'gpu':
        parser.error(f'device: {jax.devices()[0].platform}, expected a GPU that JAX can use')
    copy = measure_machine().copy
    for kind, tokens in itertools.product(options.kinds, options.tokens):
        measure(kind, tokens, get_config('full').gemma, copy)


if __name__ == '__main__':
    main()
