"""What action tokens pay attention to, and attention that can be gated: wrappers of Attend.

Neither touches the model. A recorder keeps the probabilities of the layers asked for while a pass
is traced, so it works where layers are unrolled, inside one traced function and no further.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp

from ros_pi0_fast.model.attention import HIDDEN, Attend, Fresh, Visible, widen, write_slots
from ros_pi0_fast.model.cache import KVCache
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast


def middle_layers(depth: int) -> tuple[int, ...]:
    """Return which layers of a decoder to listen to: two about the middle.

    FastV (arXiv:2403.06764) finds that the first layers still look at all of a picture, and each
    layer up to the last one listened to has to be run once more.
    """
    middle = depth // 2
    return tuple(sorted({max(0, middle - 1), min(middle, depth - 1)}))


def _scores(q: jax.Array, k: jax.Array, visible: Visible | None) -> jax.Array:
    """Return masked scores float32 [b, m, g, t, s]: see attention.reference."""
    b, t, n, h = q.shape
    grouped = q.reshape(b, t, k.shape[2], n // k.shape[2], h)
    scores = jnp.einsum('btkgh,bskh->bkgts', grouped, k.astype(q.dtype),
                        preferred_element_type=jnp.float32)
    if visible is None:
        return scores
    return jnp.where(visible.mask(k.shape[1])[:, None, None], scores, HIDDEN)


class Recorder:
    """Attention that remembers whom some queries attended to.

    Args:
        attend: Does the work.
        layers: Which calls to record, counted from 0; those that see everything, as SigLIP's do,
            do not count.
        slots: Keys to record, the first ones.
        queries: float [b, t]: weight of each query in the mean.
    """

    def __init__(self, attend: Attend, layers: Sequence[int], slots: int, queries: jax.Array):
        self._attend, self._layers, self._slots = attend, frozenset(layers), slots
        self._queries = queries
        self._calls = 0
        self.recorded: list[jax.Array] = []
        """float32 [b, slots], a layer each: mean over heads and weighted mean over queries."""

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, visible: Visible | None, *,
                 score_dtype: jnp.dtype, fresh: Fresh | None = None) -> jax.Array:
        """Attend: see model.attention.Attend."""
        if visible is not None:
            if self._calls in self._layers:
                self._record(q, k, visible, fresh)
            self._calls += 1
        return self._attend(q, k, v, visible, score_dtype=score_dtype, fresh=fresh)

    def _record(self, q: jax.Array, k: jax.Array, visible: Visible, fresh: Fresh | None) -> None:
        k = widen(k)
        if fresh is not None:
            k = write_slots(k, fresh.k, fresh.slot)
        probabilities = jax.nn.softmax(_scores(q, k, visible), axis=-1)[..., :self._slots]
        weights = self._queries / jnp.maximum(
            jnp.sum(self._queries, axis=1, keepdims=True), 1e-9)
        self.recorded.append(
            jnp.einsum('bkgts,bt->bs', probabilities, weights) / (q.shape[2]))

    @property
    def mean(self) -> jax.Array:
        """float32 [b, slots]: mean over the layers, scaled to sum up to 1."""
        total = sum(self.recorded)
        return total / jnp.maximum(jnp.sum(total, axis=1, keepdims=True), 1e-9)


def attention_of_actions(model: Pi0Fast, params: Params, ids: jax.Array, count: jax.Array,
                         cache: KVCache, first: jax.Array, slots: int, *,
                         layers: Sequence[int] | None = None) -> jax.Array:
    """Return what action tokens pay to the first slots of the cache, after they were decoded.

    The decode loop is left alone: afterwards all ids go once more, in one pass, through the layers
    up to the last one listened to. With the middle ones that is half of what one decode step
    reads, and it is not waited for: the chunk is on its way by then.

    Args:
        model: The network.
        params: Its parameters; stacked ones are split here, which copies them.
        ids: int32 [b, t]: the chunk's ids.
        count: int32 [b]: how many of those count.
        cache: After decoding, with room for t tokens from `first` on.
        first: int32 [b]: tokens of the cache before the first of the ids.
        slots: Of image tokens; the pruned prefix has them first.
        layers: To listen to; None for middle_layers.

    Returns:
        float32 [b, slots], summing up to 1.
    """
    params = model.unroll(params)
    layers = middle_layers(model.config.gemma.depth) if layers is None else layers
    upto = max(layers) + 1
    llm = params['PaliGemma']['llm']
    kept = cache.layers
    if cache.stacked:
        kept = tuple(jax.tree.map(lambda x, i=i: x[i], kept) for i in range(upto))
    shortened = {'PaliGemma': {**params['PaliGemma'],
                               'llm': {**llm, 'layers': llm['layers'][:upto]}}}
    counts = jnp.arange(ids.shape[1]) < count[:, None]
    recorder = Recorder(model.attend, layers, slots, counts.astype(jnp.float32))
    with jax.named_scope('pruning'):
        # The model is a frozen value with the recorder in it: made and gone within one trace.
        replace(model, attend=recorder).decode_step(
            shortened, ids, cache.replace(layers=kept[:upto], length=first))
        return recorder.mean


def gated(gates: jax.Array) -> Attend:
    """Return attention whose keys count as much as their gate says, differentiable in it at 0 too.

    Where a gate is 0 the key might as well not exist, and the gradient says what it would change
    (DynamicViT, arXiv:2106.02034, eq. 11, without its exception for the diagonal: tokens that
    nobody sees need no output). Calls that see everything, as SigLIP's do, are not gated.

    Args:
        gates: float32 [b, s]: of every key; at least one a row that is seen must not be 0.
    """
    def attend(q: jax.Array, k: jax.Array, v: jax.Array, visible: Visible | None, *,
               score_dtype: jnp.dtype, fresh: Fresh | None = None) -> jax.Array:
        if fresh is not None:
            raise ValueError('fresh: given, expected None: gates are for training')
        scores = _scores(q, k, visible)
        if visible is None:
            probabilities = jax.nn.softmax(scores, axis=-1)
        else:
            top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
            odds = jnp.exp(scores - top) * gates[:, None, None, None]
            probabilities = odds / (jnp.sum(odds, axis=-1, keepdims=True) + 1e-20)
        return jnp.einsum('bkgts,bskh->btkgh', probabilities.astype(v.dtype), v).reshape(q.shape)

    return attend
