"""The rows of the path that the engine takes, for each implementation of attention.

Packed prefix, unrolled layers, weights stored as matrices, no dense mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.flash_attention import flash
from ros_pi0_fast.accel.matrices import to_matrices
from ros_pi0_fast.evaluation import parity_model as reference
from ros_pi0_fast.evaluation.parity_model import Inputs
from ros_pi0_fast.evaluation.parity_report import Row, within
from ros_pi0_fast.model.attention import folded
from ros_pi0_fast.model.attention import reference as textbook
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast

Arrays = dict[str, np.ndarray]
ATTENTION = {'packed': textbook, 'folded': folded, 'flash': flash}


def engine_rows(name: str, model: Pi0Fast, params: Params, inputs: Inputs, out: Arrays,
                token_rows: Callable[..., Iterator[Row]]) -> Iterator[Row]:
    """Compare the engine's path with what openpi recorded.

    Args:
        name: Of the variant of the folder.
        model: The network.
        params: As openpi stores them.
        inputs: Of the variant; all cameras exist, and the prefix is bidirectional.
        out: What openpi recorded.
        token_rows: Compares what is decoded from an output and a cache.
    """
    steps = out['out/step_logits'].shape[1]
    for kind, attend in ATTENTION.items():
        fast = replace(model, attend=attend)
        weights = to_matrices(fast, fast.unroll(params))
        embeddings, cameras = reference.embed(fast, weights, inputs)
        for key, tokens in cameras.items():
            if f'out/siglip/{key}' in out:
                yield within(f'{name}: {kind} SigLIP {key}', tokens, out[f'out/siglip/{key}'],
                             reference.SIGLIP)
        before = embeddings.shape[1] - inputs.tokens.shape[1]
        lengths = before + jnp.sum(inputs.token_mask, axis=1, dtype=jnp.int32)
        cache = fast.init_cache(weights, len(lengths), embeddings.shape[1] + steps)
        hidden, cache = reference.prefill_packed(fast, weights, embeddings, lengths, cache)
        yield within(f'{name}: {kind} prefill logits',
                     reference.project(fast, weights, hidden[:, -1]),
                     out['out/prefill_last_logits'], reference.LOGITS)
        yield from token_rows(f'{name}: {kind}', fast, weights, hidden, cache, out)
