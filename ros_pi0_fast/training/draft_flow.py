"""A flow-matching head that proposes a whole chunk: an experiment, measured without a device.

The chunk's DCT coefficients flow from noise to what the policy decoded (Lipman et al.,
arXiv:2210.02747), conditioned on the keys and values of the policy's last layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.model.attention import Visible, folded
from ros_pi0_fast.model.config import Pi0FastConfig
from ros_pi0_fast.training.loop import Batch, LossFunction

STEPS = (1, 2, 4, 8)
LENGTHS = (2, 4, 8)


def init_flow(config: Pi0FastConfig, blocks: int, hidden: int, rng: jax.Array) -> dict[str, Any]:
    g, t, dim = config.gemma, config.action_horizon, config.action_dim
    d, heads = g.width, g.num_heads * g.head_dim
    keys = iter(jax.random.split(rng, 8 + 12 * blocks))

    def m(*shape):
        return jax.random.normal(next(keys), shape) * shape[0] ** -0.5

    def zeros(*shape):
        return jnp.zeros(shape)

    w = {'in': m(dim, d), 'time': m(64, d), 'cond': m(d, d), 'place': 0.02 * m(t, d),
         'out': zeros(d, dim), 'out_scale': zeros(d)}
    return w | {f'block{i}': {
        'q': m(d, heads), 'read': m(heads, d), 'sq': m(d, heads), 'sk': m(d, g.head_dim),
        'sv': m(d, g.head_dim), 'so': m(heads, d), 'mlp_in': m(d, hidden),
        'mlp_out': m(hidden, d), 'a_scale': zeros(d), 'b_scale': zeros(d), 'c_scale': zeros(d)}
        for i in range(blocks)}


def _norm(x, scale):
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-6)
            * (1 + scale)).astype(x.dtype)


def velocity(w, config, x, time, hidden, layers, end, dtype):
    """x [b, t, dim], time [b], hidden [b, d], end [b] -> [b, t, dim]."""
    g = config.gemma
    b, t = x.shape[:2]
    angles = time[:, None] * jnp.exp(jnp.linspace(0.0, 5.0, 32))
    emb = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
    y = (x @ w['in'] + (emb @ w['time'] + hidden.astype(jnp.float32) @ w['cond'])[:, None]
         + w['place']).astype(dtype)
    ends = jnp.broadcast_to(end[:, None], (b, t))
    for i, (k, v) in enumerate(layers):
        p = jax.tree.map(lambda a: a.astype(dtype), w[f'block{i}'])
        z = _norm(y, p['a_scale'])
        q = (z @ p['sq']).reshape(b, t, g.num_heads, g.head_dim) * g.head_dim ** -0.5
        mixed = folded(q, (z @ p['sk'])[:, :, None], (z @ p['sv'])[:, :, None], None,
                       score_dtype=jnp.float32)
        y = y + mixed.reshape(b, t, -1).astype(dtype) @ p['so']
        q = (_norm(y, p['b_scale']) @ p['q']).reshape(b, t, g.num_heads, g.head_dim)
        seen = folded(q * g.head_dim ** -0.5, k, v, Visible(end=ends, uniform=True),
                      score_dtype=jnp.float32)
        y = y + seen.reshape(b, t, -1).astype(dtype) @ p['read']
        y = y + jax.nn.gelu(_norm(y, p['c_scale']) @ p['mlp_in']) @ p['mlp_out']
    return _norm(y, w['out_scale']).astype(jnp.float32) @ w['out']


def flow_loss(config: Pi0FastConfig, dtype: str) -> LossFunction:
    def loss(params: Any, arrays: Batch, rng: jax.Array):
        x1 = arrays['chunk']
        a, b = jax.random.split(rng)
        x0 = jax.random.normal(a, x1.shape)
        time = jax.random.beta(b, 1.0, 1.5, (len(x1),))
        x = (1 - time)[:, None, None] * x0 + time[:, None, None] * x1
        found = velocity(params, config, x, time, arrays['first'], _layers(params, arrays, dtype),
                         arrays['prefix'], dtype)
        error = jnp.mean(jnp.square(found - (x1 - x0)))
        return error, {'right_error': error}

    return loss


def _layers(params, arrays, dtype):
    depth = sum(name.startswith('block') for name in params)
    return [tuple(arrays[n][:, i - depth].astype(dtype) for n in ('keys', 'values'))
            for i in range(depth)]


def flow_data(codec: PolicyCodec, answers: Mapping[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """Return what the head learns from, and the scale of each coefficient [t, dim]."""
    shape = codec.profile.horizon, codec.profile.action_dim
    ids, counts = np.asarray(answers['columns']), np.asarray(answers['count'])
    chunks = np.stack([codec.fast.coefficients(row[:n]).reshape(shape)
                       for row, n in zip(ids, counts, strict=True)])
    scale = np.maximum(chunks.std(axis=0), 0.5).astype(np.float32)
    data = {name: answers[name] for name in ('keys', 'values', 'prefix', 'columns', 'count')}
    return data | {'chunk': jnp.asarray(chunks / scale, jnp.float32),
                   'first': answers['hidden'][:, 0]}, scale


def judge_flow(params: Any, config: Pi0FastConfig, codec: PolicyCodec, scale: np.ndarray,
               rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return how far its chunks are verified: ids a pass, for numbers of steps and guesses."""
    def sample(arrays, steps, noise):
        x = noise
        for i in range(steps):
            time = jnp.full((len(x),), i / steps)
            x = x + velocity(params, config, x, time, arrays['first'],
                             _layers(params, arrays, 'float32'), arrays['prefix'],
                             'float32') / steps
        return x

    found: dict[str, Any] = {}
    for steps in STEPS:
        run = jax.jit(lambda arrays, steps=steps: sample(
            arrays, steps, jnp.zeros_like(arrays['chunk'])))
        x = np.asarray(run(rows)) * scale
        wrong = np.abs(np.around(x) - np.asarray(rows['chunk']) * scale)
        found[f'{steps}/exact coefficients'] = float(np.mean(wrong < 0.5))
        drafted = [codec.fast._tokenizer.encode(''.join(map(chr, np.maximum(
            np.around(each).astype(int) - codec.fast.min_token, 0).reshape(-1)))).ids for each in x]
        own = [list(row[:n]) for row, n in zip(np.asarray(rows['columns']),
                                               np.asarray(rows['count']), strict=True)]
        for length in LENGTHS:
            found[f'{steps}/{length}'] = ids_a_pass(codec, drafted, own, length)
    return found


def ids_a_pass(codec: PolicyCodec, drafted: list, own: list, length: int) -> float:
    """Return ids a pass with the place in the draft found as drafter_previous_chunk does."""
    grammar, ids, passes = codec.grammar, 0, 0
    for draft, row in zip(drafted, own, strict=True):
        places = _along(grammar, draft)
        now = _along(grammar, row)
        at = 1
        while at < len(row):
            fits = [p for p in range(len(draft)) if places[p] == now[at]]
            guess = []
            if fits:
                def agreeing(p, at=at):
                    n = 0
                    while n < 8 and p > n and at > n and draft[p - 1 - n] == row[at - 1 - n]:
                        n += 1
                    return n
                best = max(fits, key=agreeing)
                guess = draft[best:best + length]
            right = 0
            while (right < len(guess) and at + right < len(row)
                   and guess[right] == row[at + right]):
                right += 1
            at += right + 1
            passes += 1
        ids += len(row)
        passes += 1
    return ids / passes


def _along(grammar, ids):
    state, left, found = 0, grammar.coefficients, []
    for i in ids:
        found.append((state, left))
        if left <= 0 or grammar.count[state, i] < 0:
            state, left = 0, -1
        else:
            state, left = int(grammar.next_state[state, i]), left - int(grammar.count[state, i])
    return found
