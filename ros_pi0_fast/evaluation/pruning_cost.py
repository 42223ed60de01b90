"""What pruning saves of one inference, by XLA's own count for the compiled stages; no weights.

    python -m ros_pi0_fast.evaluation.pruning_cost --preset full

Floating-point operations of the vision encoder, the prefill (with scoring) and the decoder's
passes, and bytes of the image tokens' keys and values, for each fraction of tokens kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.pruning import AdaptiveVisualPruner
from ros_pi0_fast.accel.pruning_scores import LearnedScorer
from ros_pi0_fast.engine.pruning import PrunedPrefill
from ros_pi0_fast.engine.stages import Prefill, Vision
from ros_pi0_fast.evaluation.benchmark import PRESETS
from ros_pi0_fast.model.config import Pi0FastConfig, get_config
from ros_pi0_fast.model.pi0_fast import Pi0Fast


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one inference."""

    cameras: int
    """That the robot has; the policy's others are black."""
    keep: float
    """Fraction of image tokens that is kept; 1: no pruning."""
    vision: float
    """Floating-point operations, and so the next two."""
    prefill: float
    decode: float
    cache_bytes: int
    """Of the keys and values of image tokens."""

    @property
    def total(self) -> float:
        """Floating-point operations."""
        return self.vision + self.prefill + self.decode


def cost_of(config: Pi0FastConfig, *, cameras: int, keep: float, prompt_tokens: int,
            tokens: int) -> Cost:
    """Compile the stages for shapes alone, and count.

    Args:
        config: Of the policy.
        cameras: That the robot has, the first ones of the policy's.
        keep: Fraction of image tokens; 1: no pruning.
        prompt_tokens: Of the instruction and the state.
        tokens: That are decoded, one a pass.
    """
    model = Pi0Fast(config)
    params = jax.eval_shape(lambda: jax.tree.map(
        lambda x: x.astype(model.dtype), model.unroll(model.init(jax.random.key(0)))))
    of_camera, width = config.siglip.num_tokens, config.gemma.width
    rows = tuple(range(cameras)) + (-1,) * (len(config.camera_keys) - cameras)
    capacity = config.num_image_tokens + prompt_tokens + tokens
    pictures = _shape((cameras, *config.siglip.image_size, 3), jnp.uint8)
    seen = _shape((cameras, of_camera, width), model.dtype)
    prompt, length = _shape((prompt_tokens,), jnp.int32), _shape((), jnp.int32)
    if keep == 1:
        kept = config.num_image_tokens
        prefill = _operations(
            Prefill(model=model, rows=rows, capacity=capacity, packed=True, stacked_cache=False),
            params, seen, _shape((of_camera, width), model.dtype), prompt, length)
    else:
        pruner = AdaptiveVisualPruner(scorer=LearnedScorer(), keep_ratio=keep, cameras=tuple(
            row >= 0 for row in rows))
        [kept] = pruner.counts(cameras * of_camera)
        weights = jax.eval_shape(lambda: pruner.scorer.init(
            jax.random.key(0), cameras * of_camera, width))
        state = jax.eval_shape(lambda: pruner.init_state(
            cameras * of_camera, width, model.dtype))
        prefill = _operations(
            PrunedPrefill(model=model, pruner=pruner, rows=rows[:cameras], capacity=capacity,
                          stacked_cache=False),
            params, weights, seen, prompt, length, state, _shape((), jnp.bool_))
    one = _operations(lambda params, ids, cache: model.decode_step(params, ids, cache), params,
                      _shape((1, 1), jnp.int32),
                      jax.eval_shape(lambda params: model.init_cache(
                          params, 1, kept + prompt_tokens + tokens), params))
    gemma = config.gemma
    of_token = 2 * gemma.depth * gemma.num_kv_heads * gemma.head_dim * model.dtype.itemsize
    return Cost(cameras=cameras, keep=keep, prefill=prefill, decode=tokens * one,
                vision=_operations(Vision(model=model), params, pictures),
                cache_bytes=kept * of_token)


def _shape(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.dtype(dtype))


def _operations(function: Any, *arguments: Any) -> float:
    """Return the floating-point operations of a compiled function."""
    return float(jax.jit(function).lower(*arguments).compile().cost_analysis()['flops'])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--preset', default='full', choices=PRESETS)
    parser.add_argument('--cameras', nargs='+', type=int, default=[2, 3],
                        help='that the robot has; the others of the policy are black')
    parser.add_argument('--keep', nargs='+', type=float, default=[1.0, 0.5, 0.375, 0.25])
    parser.add_argument('--prompt-tokens', type=int, default=60)
    parser.add_argument('--tokens', type=int, default=48, help='decoded, one a pass')
    options = parser.parse_args(arguments)
    print(f'{"cameras":>7}{"kept":>8}{"vision":>10}{"prefill":>10}{"decode":>10}{"total":>10}'
          f'{"saved":>8}{"cache of image tokens":>24}')
    found = []
    for cameras in options.cameras:
        whole = None
        for keep in options.keep:
            cost = cost_of(get_config(options.preset), cameras=cameras, keep=keep,
                           prompt_tokens=options.prompt_tokens, tokens=options.tokens)
            whole = whole or cost
            numbers = (cost.vision, cost.prefill, cost.decode, cost.total)
            print(f'{cameras:>7}{100 * keep:>6.4g} %'
                  + ''.join(f'{number / 1e9:>10.5g}' for number in numbers)
                  + f'{100 * (1 - cost.total / whole.total):>6.1f} %'
                  + f'{cost.cache_bytes / 2 ** 20:>15.2f} MiB'
                  + f'{cost.cache_bytes / whole.cache_bytes:>5.3g}', flush=True)
            found.append({'cameras': cameras, 'keep': keep, 'gflop': cost.total / 1e9,
                          'saved': 1 - cost.total / whole.total,
                          'cache_bytes': cost.cache_bytes})
    print('10⁹ floating-point operations; saved: of those with the first fraction')
    print(json.dumps({'preset': options.preset, 'costs': found}))


if __name__ == '__main__':
    main()
