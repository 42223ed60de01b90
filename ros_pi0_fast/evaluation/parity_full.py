"""The full model with random weights: that it can be built and run, and in how much memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from tqdm import tqdm

from ros_pi0_fast.evaluation.parity_report import Row
from ros_pi0_fast.model.config import get_config
from ros_pi0_fast.model.decode import DecodeOptions, greedy
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast

PROMPT_TOKENS = 16
NEW_TOKENS = 4
# Of a leaf, so that its float32 form is never there as a whole.
PIECE = 1 << 24
# A CPU multiplies bfloat16 in float32. XLA would convert all weights before the loop over layers,
# and hold three times their size; so they are converted in the loop, a layer at a time.
OPTIONS = {'xla_disable_hlo_passes':
           'while-loop-invariant-code-motion,while-loop-expensive-invariant-code-motion'}


def random_params(shapes: Params, seed: int = 0) -> Params:
    """Fill a tree of shapes with bfloat16 normal numbers that keep activations of order one."""
    rng = np.random.default_rng(seed)
    leaves, structure = jax.tree.flatten(shapes)
    bar = tqdm(total=sum(leaf.size for leaf in leaves), unit=' weights', unit_scale=True,
               desc='random weights')
    filled = []
    for leaf in leaves:
        array = np.empty(leaf.size, ml_dtypes.bfloat16)
        fan_in = leaf.shape[-2] if leaf.ndim > 1 else leaf.size
        for start in range(0, leaf.size, PIECE):
            piece = array[start:start + PIECE]
            piece[:] = rng.standard_normal(len(piece), np.float32) / np.sqrt(fan_in)
            bar.update(len(piece))
        filled.append(jnp.asarray(array.reshape(leaf.shape)))
    bar.close()
    return jax.tree.unflatten(structure, filled)


def _count(tree: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def run_full(preset: str = 'full') -> Iterator[Row]:
    """Build a model in bfloat16, decode a few tokens on the CPU, and say what that took.

    Raises:
        ValueError: there is no such preset.
    """
    config = replace(get_config(preset), dtype='bfloat16')
    model = Pi0Fast(config)
    with jax.default_device(jax.local_devices(backend='cpu')[0]):
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        params = random_params(shapes)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 2 ** 30
        yield Row(name=f'{preset}: weights that the config has and the model has not',
                  tolerance=0.0, error=abs(_count(params) - _count(shapes)),
                  note=f'{size:.2f} GiB in bfloat16')
        start = time.perf_counter()
        tokens, logits = _infer(model, params)
        seconds = time.perf_counter() - start
    broken = int(np.sum(~np.isfinite(logits)))
    yield Row(name=f'{preset}: logits that are not finite', error=broken, tolerance=0.0,
              note=f'{NEW_TOKENS} tokens after {config.num_image_tokens} of images and '
              f'{PROMPT_TOKENS} of a prompt in {seconds:.0f} s, compilation included')
    wrong = int(np.sum((tokens < 0) | (tokens >= config.gemma.vocab_size)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20
    yield Row(name=f'{preset}: tokens outside the vocabulary', error=wrong, tolerance=0.0,
              note=f'peak memory {peak:.2f} GiB, {peak / size:.2f} times the weights')


def _compiled(function: Callable, *arguments: Any) -> Callable:
    return jax.jit(function).lower(*arguments).compile(compiler_options=OPTIONS)


def _infer(model: Pi0Fast, params: Params) -> tuple[np.ndarray, np.ndarray]:
    """Decode a few tokens from random pictures and a prompt; return them and the first logits."""
    config, rng = model.config, np.random.default_rng(1)
    images = {key: rng.integers(0, 256, (1, *config.siglip.image_size, 3), np.uint8)
              for key in config.camera_keys}
    prompt = rng.integers(0, config.gemma.vocab_size, (1, PROMPT_TOKENS), np.int32)
    length = jnp.array([config.num_image_tokens + PROMPT_TOKENS], jnp.int32)

    def embed(params: Params) -> jax.Array:
        return jnp.concatenate([model.embed_images(params, images),
                                model.embed_tokens(params, prompt)], axis=1)

    def generate(params: Params, embeddings: jax.Array) -> tuple[jax.Array, jax.Array]:
        cache = model.init_cache(params, 1, embeddings.shape[1] + NEW_TOKENS)
        hidden, cache = model.prefill(params, embeddings, length, cache, last_only=True)
        state = greedy(model, params, hidden, cache,
                       options=DecodeOptions(max_ids=NEW_TOKENS, eos_id=None))
        return state.tokens, model.logits(params, hidden)

    embeddings = _compiled(embed, params)(params)
    tokens, logits = _compiled(generate, params, embeddings)(params, embeddings)
    return np.asarray(tokens), np.asarray(logits.astype(jnp.float32))
