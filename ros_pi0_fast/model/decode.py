"""Greedy decoding in one loop on the device.

A loop pass feeds the last id through the decoder and chooses the next, so that n ids cost n − 1
passes after the prefill. With a grammar, only ids may be chosen from which the chunk can still be
completed, and a row stops as soon as it is complete.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp

from ros_pi0_fast.model.cache import KVCache
from ros_pi0_fast.model.einsum import Weight
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast


@flax.struct.dataclass
class GrammarTables:
    """The tables of codec.grammar.FastGrammar on the device; column i is candidate i."""

    count: jax.Array
    """int32 [states, n]: coefficients that a candidate completes; -1 where not allowed."""
    next_state: jax.Array
    """int32 [states, n]: state after it."""
    shortest: jax.Array
    """int32 [states, coefficients + 1]: fewest ids that complete the chunk from a state with so
    many coefficients remaining."""


def likeliest(scores: jax.Array) -> jax.Array:
    """Return the index of the highest of scores [..., n], the first of equals: int32 [...].

    What jnp.argmax returns, by two plain reductions, which XLA vectorizes on a CPU: its own of a
    pair it does number by number, in three times the time.
    """
    top = jnp.max(scores, axis=-1, keepdims=True)
    index = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    # Nothing equals NaN: that the actions are checked for.
    last = scores.shape[-1] - 1
    return jnp.min(jnp.where(scores == top, index, last), axis=-1)


@flax.struct.dataclass
class Progress:
    """How far each row's chunk is, by the grammar."""

    state: jax.Array
    """int32 [b]: state of the grammar; 0 between coefficients."""
    remaining: jax.Array
    """int32 [b]: coefficients to go."""

    @classmethod
    def start(cls, grammar: GrammarTables, batch: int) -> Progress:
        """Return the progress of rows in which nothing is decoded yet."""
        whole = grammar.shortest.shape[1] - 1
        return cls(state=jnp.zeros((batch,), jnp.int32),
                   remaining=jnp.full((batch,), whole, jnp.int32))

    @property
    def complete(self) -> jax.Array:
        """bool [b]: the chunk is whole."""
        return (self.remaining == 0) & (self.state == 0)

    def allowed(self, grammar: GrammarTables, ids_left: jax.Array) -> jax.Array:
        """Tell which candidates may follow so that `ids_left` ids suffice: bool [b, n]."""
        count = grammar.count[self.state]
        rest = self.remaining[:, None] - jnp.maximum(count, 0)
        needed = grammar.shortest[grammar.next_state[self.state], jnp.maximum(rest, 0)]
        return (count >= 0) & (rest >= 0) & (needed < ids_left)

    def advance(self, grammar: GrammarTables, choice: jax.Array) -> Progress:
        """Return the progress after candidates int32 [b]; a complete row stays as it is."""
        count, state = grammar.count[self.state, choice], grammar.next_state[self.state, choice]
        return Progress(state=jnp.where(self.complete, self.state, state),
                        remaining=jnp.where(self.complete, 0, self.remaining - count))


@flax.struct.dataclass
class Forced:
    """Ids around a chunk that nothing has to be chosen for.

    openpi lets the model say them one by one. Feeding `before` in one pass ahead of the loop, and
    not asking for `after` at all, gives the same chunk for fewer passes.
    """

    before: jax.Array
    """int32 [p]: model ids of 'Action: '."""
    after: jax.Array
    """int32 [q]: model ids of '|' and EOS."""


@flax.struct.dataclass
class DecodeState:
    """What the loop carries. Every buffer is updated in place."""

    step: jax.Array
    """int32 []: ids chosen so far, the same for all rows."""
    token: jax.Array
    """int32 [b]: the model id chosen last; 0 in rows that are finished."""
    tokens: jax.Array
    """int32 [b, ids]: model ids chosen or forced; 0 beyond a row's end."""
    length: jax.Array
    """int32 [b]: ids of each row, forced ones and its EOS included."""
    finished: jax.Array
    """bool [b]: the row has its EOS, or its chunk is complete and nothing forced is left."""
    ended: jax.Array
    """int32 [b]: how many ids of `Forced.after` the row has."""
    progress: Progress | None
    """By the grammar; None where there is none."""
    cache: KVCache
    """Of all tokens but the one chosen last."""


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """What is static about decoding."""

    max_ids: int
    """Most ids of a row to choose; with a grammar, at least shortest[0, coefficients]."""
    eos_id: int | None = 1
    """Model id that ends a row (1 in PaliGemma's vocabulary); None for none."""


def greedy(model: Pi0Fast, params: Params, hidden: jax.Array, cache: KVCache, *,
           options: DecodeOptions, candidates: jax.Array | None = None,
           head: Weight | None = None, grammar: GrammarTables | None = None,
           forced: Forced | None = None) -> DecodeState:
    """Choose the likeliest id, again and again.

    Args:
        model: The network.
        params: Its parameters.
        hidden: [b, 1, d]: output at the last token so far.
        cache: Of all tokens so far, with room for one less than the ids to come (this is not
            checked: lengths are not static).
        options: What is static.
        candidates: int32 [n]: model ids to choose from; None for the whole vocabulary.
        head: The head's rows of the candidates, where the caller has them at hand; or the whole
            head, of whose logits those of the candidates are taken then.
        grammar: Over the candidates: constrains the choice, and ends a row that is complete.
        forced: Ids that the loop takes one by one before and after the chosen ones, needing a
            grammar; None for none.

    Returns:
        The loop's last state.
    """
    head = model.head(params, candidates) if head is None else head
    chooser = _Chooser(model, head, candidates, grammar, options, forced)
    most = options.max_ids + chooser.forced_ids

    def body(state: DecodeState) -> DecodeState:
        hidden, cache = model.decode_step(params, state.token[:, None], state.cache)
        return chooser(hidden, state.replace(cache=cache))

    def going_on(state: DecodeState) -> jax.Array:
        return (state.step < most) & ~jnp.all(state.finished)

    with jax.named_scope('decode'):
        return jax.lax.while_loop(going_on, body,
                                  chooser(hidden, _start(hidden.shape[0], cache, grammar, most)))


def _start(batch: int, cache: KVCache, grammar: GrammarTables | None, most: int) -> DecodeState:
    zero = jnp.zeros((batch,), jnp.int32)
    return DecodeState(
        step=jnp.zeros((), jnp.int32), token=zero, length=zero, finished=zero > 0, cache=cache,
        tokens=jnp.zeros((batch, most), jnp.int32), ended=zero,
        progress=None if grammar is None else Progress.start(grammar, batch))


@dataclass(frozen=True)
class _Chooser:
    """Appends to a state what its rows' outputs [b, 1, d] point to."""

    model: Pi0Fast
    head: Weight
    candidates: jax.Array | None
    grammar: GrammarTables | None
    options: DecodeOptions
    forced: Forced | None

    @property
    def forced_ids(self) -> int:
        """How many ids are not chosen."""
        return 0 if self.forced is None else len(self.forced.before) + len(self.forced.after)

    def __call__(self, hidden: jax.Array, state: DecodeState) -> DecodeState:
        choice = likeliest(self._logits(hidden, state))
        token = choice if self.candidates is None else self.candidates[choice]
        token, progress, ended = self._follow(state, choice, token)
        token = jnp.where(state.finished, 0, token)
        finished = state.finished
        if self.options.eos_id is not None:
            finished = finished | (token == self.options.eos_id)
        if progress is not None:
            left = 0 if self.forced is None else len(self.forced.after) - ended
            finished = finished | (progress.complete & (left == 0))
        return state.replace(
            step=state.step + 1, token=token, finished=finished, progress=progress, ended=ended,
            tokens=jax.lax.dynamic_update_slice(state.tokens, token[:, None], (0, state.step)),
            length=state.length + (~state.finished).astype(jnp.int32))

    def _logits(self, hidden: jax.Array, state: DecodeState) -> jax.Array:
        """Return logits of the candidates [b, n], -inf where the grammar forbids one."""
        logits = self.model.project(hidden[:, -1], self.head)
        if self.candidates is not None and logits.shape[-1] != len(self.candidates):
            logits = logits[:, self.candidates]
        if self.grammar is None:
            return logits
        before = 0 if self.forced is None else len(self.forced.before)
        chosen = jnp.maximum(state.step - before, 0)
        allowed = state.progress.allowed(self.grammar, self.options.max_ids - chosen)
        return jnp.where(allowed, logits, -jnp.inf)

    def _follow(self, state: DecodeState, choice: jax.Array, token: jax.Array,
                ) -> tuple[jax.Array, Progress | None, jax.Array]:
        """Return the ids [b], forced where they are, and how far each row is after them."""
        if self.grammar is None:
            return token, None, state.ended
        progress = state.progress.advance(self.grammar, choice)
        if self.forced is None:
            return token, progress, state.ended
        before, after = self.forced.before, self.forced.after
        early = state.step < len(before)
        progress = jax.tree.map(lambda old, new: jnp.where(early, old, new), state.progress,
                                progress)
        token = jnp.where(early, _at(before, state.step), token)
        late = state.progress.complete & ~early
        token = jnp.where(late, _at(after, state.ended), token)
        return token, progress, state.ended + (late & ~state.finished).astype(jnp.int32)


def _at(ids: jax.Array, index: jax.Array) -> jax.Array:
    """Return ids[index], or 0 where there are no ids."""
    return ids.at[index].get(mode='clip') if len(ids) else jnp.zeros_like(index)
