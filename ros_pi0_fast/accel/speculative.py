"""Speculative decoding: several ids for one pass of the target. Lossless.

A drafter proposes k ids, the target scores all k + 1 places in one pass, and what it would have
chosen itself stays (Leviathan et al., arXiv:2211.17192). A pass over a few tokens reads the same
weights as one over a single token, and at batch one that is what it costs. One loop on the device,
for a batch of one. Taken back is what the cache holds of refused ids by lowering its length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from ros_pi0_fast.accel.acceptance import accept_drawn, accept_likeliest
from ros_pi0_fast.accel.drafters import Drafter, Prefix, Proposal, Rules, SoFar
from ros_pi0_fast.accel.relaxation import Relaxation
from ros_pi0_fast.model.cache import KVCache
from ros_pi0_fast.model.decode import (
    DecodeOptions,
    Forced,
    GrammarTables,
    Progress,
    likeliest,
)
from ros_pi0_fast.model.einsum import Weight
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast


@dataclass(frozen=True, kw_only=True)
class SpeculativeOptions(DecodeOptions):
    """What is static about speculative decoding."""

    draft_length: int
    """Ids of a proposal, k."""
    temperature: float = 0.0
    """0: the likeliest id; else ids are drawn from softmax(logits / temperature)."""

    def __post_init__(self) -> None:
        """Refuse what means nothing.

        Raises:
            ValueError: names the field.
        """
        if self.draft_length < 1:
            raise ValueError(f'draft_length: {self.draft_length}, expected at least 1')
        if self.temperature < 0:
            raise ValueError(f'temperature: {self.temperature:g}, expected 0 or more')


@flax.struct.dataclass
class SpeculativeState:
    """What the loop carries. Every buffer is updated in place."""

    step: jax.Array
    """int32 []: passes of the target, that of the prefill included."""
    ids: jax.Array
    """int32 [max_ids + k]: columns chosen; beyond `count` any columns."""
    count: jax.Array
    """int32 []: how many were chosen."""
    finished: jax.Array
    """bool []: the chunk is complete, the last id is EOS, or there are max_ids."""
    progress: Progress | None
    """By the grammar, one row; None where there is none."""
    hidden: jax.Array
    """[d]: the output that the last id was chosen from; before the first, that at the end of the
    prompt."""
    cache: KVCache
    """Of all tokens but the one chosen last; what is in slots beyond its length is of no use."""
    draft: Any
    """What the drafter remembers: see Drafter."""
    proposed: jax.Array
    """int32 []: ids that the drafter proposed for places that there were."""
    accepted: jax.Array
    """int32 []: those of them that were chosen."""
    key: jax.Array | None
    """For drawing; None at temperature 0."""
    changed: jax.Array | None
    """float32 [joints]: what relaxed acceptance changed so far; None where it is exact."""


@flax.struct.dataclass
class Speculated:
    """What `greedy`'s last state says, under the same names, and how the drafter did."""

    tokens: jax.Array
    """int32 [1, ids]: model ids chosen or forced; 0 beyond the end."""
    length: jax.Array
    """int32 [1]: how many there are, forced ones and EOS included."""
    step: jax.Array
    """int32 []: passes of the target, that of the prefill included."""
    cache: KVCache
    """Of all tokens but the last one chosen and those of `Forced.after`."""
    proposed: jax.Array
    """int32 []: see SpeculativeState."""
    accepted: jax.Array
    """int32 []: see SpeculativeState."""


def speculate(model: Pi0Fast, params: Params, hidden: jax.Array, cache: KVCache, *,
              options: SpeculativeOptions, drafter: Drafter, prefix: Prefix | None = None,
              candidates: jax.Array | None = None, head: Weight | None = None,
              grammar: GrammarTables | None = None, forced: Forced | None = None,
              relaxation: Relaxation | None = None, key: jax.Array | None = None) -> Speculated:
    """Choose ids as model.decode.greedy does, or draw them, in fewer passes.

    Ids that are forced cost no passes of their own: those before the chunk are fed in one, with
    guesses of the first ids after them, those after it in none.

    Args:
        model: The network.
        params: Its parameters.
        hidden: [1, 1, d]: output at the last token so far.
        cache: Of all tokens so far, with room for `Forced.before` and max_ids + k − 1 more ids: k
            more than greedy decoding needs, since refused ids take slots, too. With less, the last
            passes would write over tokens that count (not checked: lengths are not static).
        options: What is static.
        drafter: Proposes ids.
        prefix: For drafters that read it.
        candidates: See greedy; and so the next three.
        head: See greedy.
        grammar: See greedy.
        forced: See greedy.
        relaxation: Of what is accepted, needing a grammar; None for exact acceptance.
        key: For drawing; needed if the temperature is not 0.

    Raises:
        ValueError: there are several rows; a temperature without a key, or with a relaxation.
    """
    if hidden.shape[0] != 1:
        raise ValueError(f'hidden: {hidden.shape[0]} rows, expected one')
    if options.temperature and key is None:
        raise ValueError(f'key: None, expected one at temperature {options.temperature:g}')
    if options.temperature and relaxation is not None:
        raise ValueError(f'relaxation: given, expected None at temperature '
                         f'{options.temperature:g}')
    rules = Rules(grammar=grammar, candidates=candidates, max_ids=options.max_ids,
                  temperature=options.temperature)
    head = model.head(params, candidates) if head is None else head
    loop = _Loop(model, params, head, rules, options, drafter, relaxation)
    with jax.named_scope('decode'):
        changed = None if relaxation is None else relaxation.unused()
        state = _start(hidden, cache, rules, options.draft_length, drafter, prefix, key)
        state = state.replace(changed=changed)
        if forced is not None and len(forced.before):
            state = loop.advance(forced.before, state.replace(step=state.step + 1))
        else:
            state = loop.verify(hidden, Proposal(ids=jnp.zeros((0,), jnp.int32)), state)
        state = jax.lax.while_loop(lambda state: ~state.finished, loop.body, state)
        return _result(state, rules, forced, options)


def _start(hidden: jax.Array, cache: KVCache, rules: Rules, length: int, drafter: Drafter,
           prefix: Prefix | None, key: jax.Array | None) -> SpeculativeState:
    zero, draw = jnp.zeros((), jnp.int32), None
    if rules.temperature:
        key, draw = jax.random.split(key)
    return SpeculativeState(
        step=zero, ids=jnp.zeros((rules.max_ids + length,), jnp.int32), count=zero,
        finished=zero > 0, hidden=hidden[0, 0], cache=cache, proposed=zero, accepted=zero,
        progress=None if rules.grammar is None else Progress.start(rules.grammar, 1),
        draft=drafter.start(prefix, rules, length, draw), changed=None,
        key=key if rules.temperature else None)


def _result(state: SpeculativeState, rules: Rules, forced: Forced | None,
            options: SpeculativeOptions) -> Speculated:
    """Put the ids chosen between those that are forced."""
    index = jnp.arange(rules.max_ids, dtype=jnp.int32)
    chosen = rules.model_ids(state.ids[:rules.max_ids])
    tokens = jnp.where(index < state.count, chosen, 0)
    length = state.count
    if forced is not None:
        before, after = forced.before, forced.after
        tokens = jnp.concatenate([before, tokens, jnp.zeros_like(after)])
        length = length + len(before)
        whole = state.progress.complete[0] & ~_ends(chosen[state.count - 1], options)
        added = jax.lax.dynamic_update_slice(tokens, after, (length,))
        tokens = jnp.where(whole, added, tokens)
        length = length + jnp.where(whole, len(after), 0)
    return Speculated(tokens=tokens[None], length=length[None], step=state.step,
                      cache=state.cache, proposed=state.proposed, accepted=state.accepted)


def _ends(token: jax.Array, options: DecodeOptions) -> jax.Array:
    """Tell which model ids end a row: bool, of the shape of token."""
    return jnp.zeros(token.shape, bool) if options.eos_id is None else token == options.eos_id


@dataclass(frozen=True)
class _Loop:
    """What a pass of the loop does to its state."""

    model: Pi0Fast
    params: Params
    head: Weight
    rules: Rules
    options: SpeculativeOptions
    drafter: Drafter
    relaxation: Relaxation | None

    def body(self, state: SpeculativeState) -> SpeculativeState:
        """Choose more ids."""
        last = jax.lax.dynamic_slice(state.ids, (state.count - 1,), (1,))
        return self.advance(self.rules.model_ids(last), state)

    def advance(self, before: jax.Array, state: SpeculativeState) -> SpeculativeState:
        """Have ids proposed, and feed them to the target after model ids that are decided."""
        so_far = SoFar(ids=state.ids, count=state.count, progress=state.progress,
                       hidden=state.hidden, cache=state.cache)
        proposal, draft = self.drafter.propose(state.draft, so_far, self.rules,
                                               self.options.draft_length)
        ids = jnp.concatenate([before, self.rules.model_ids(jnp.maximum(proposal.ids, 0))])
        hidden, cache = self.model.decode_step(self.params, ids[None], state.cache)
        return self.verify(hidden[:, len(before) - 1:], proposal,
                           state.replace(cache=cache, draft=draft))

    def verify(self, hidden: jax.Array, proposal: Proposal, state: SpeculativeState,
               ) -> SpeculativeState:
        """Append what the target makes of t − 1 ids: see accept_likeliest.

        Args:
            hidden: [1, t, d]: outputs of the pass that fed them, at the id before them and at
                each of them.
            proposal: Of these ids.
            state: With the cache of that pass.
        """
        rules, ids = self.rules, jnp.maximum(proposal.ids, 0)
        index = jnp.arange(hidden.shape[1], dtype=jnp.int32)
        progress = rules.along(state.progress, ids)
        over = self._over(ids, progress, state.count + index)
        logits = rules.mask(self._logits(hidden[0]), progress, state.count + index)
        there = (jnp.cumprod((proposal.ids >= 0).astype(jnp.int32)) > 0) & ~over[:-1]
        accepted, own, state = self._judge(logits, proposal, there, progress, state)
        # Where the row ends with an accepted id, nothing is chosen after it.
        over = over[accepted]
        new = accepted + (~over).astype(jnp.int32)
        here = jax.tree.map(lambda rows: jax.lax.dynamic_slice_in_dim(rows, accepted, 1), progress)
        after = rules.advance(here, own[None])
        written = jnp.where(index == accepted, own, jnp.pad(ids, (0, 1)))
        finished = (over | _ends(rules.model_ids(own), self.options)
                    | (state.count + new >= rules.max_ids))
        if after is not None:
            after = jax.tree.map(lambda old, new: jnp.where(over, old, new), here, after)
            finished = finished | after.complete[0]
        return state.replace(
            step=state.step + 1, count=state.count + new, finished=finished, progress=after,
            hidden=hidden[0, accepted],
            ids=jax.lax.dynamic_update_slice(state.ids, written, (state.count,)),
            cache=state.cache.rollback(len(index) - new), accepted=state.accepted + accepted,
            proposed=state.proposed + jnp.sum(there, dtype=jnp.int32))

    def _logits(self, hidden: jax.Array) -> jax.Array:
        """Return logits of the columns: [t, n]."""
        logits, candidates = self.model.project(hidden, self.head), self.rules.candidates
        if candidates is not None and logits.shape[-1] != len(candidates):
            logits = logits[:, candidates]
        return logits

    def _over(self, ids: jax.Array, progress: Progress | None, chosen: jax.Array) -> jax.Array:
        """Tell whether the row has ended before each of t places, the first not: bool [t]."""
        ended = jnp.cumsum(_ends(self.rules.model_ids(ids), self.options), dtype=jnp.int32) > 0
        over = jnp.concatenate([jnp.zeros((1,), bool), ended]) | (chosen >= self.rules.max_ids)
        return over if progress is None else over | progress.complete

    def _judge(self, logits: jax.Array, proposal: Proposal, there: jax.Array,
               progress: Progress | None, state: SpeculativeState,
               ) -> tuple[jax.Array, jax.Array, SpeculativeState]:
        """Return how many ids to accept, what to choose after them, and the state after it."""
        if self.options.temperature:
            key, draw = jax.random.split(state.key)
            scaled = logits.astype(jnp.float32) / self.options.temperature
            return (*accept_drawn(jax.nn.softmax(scaled), proposal, there, draw),
                    state.replace(key=key))
        if self.relaxation is None or not len(there):
            return *accept_likeliest(logits, proposal, there), state
        choice = likeliest(logits)
        before = jax.tree.map(lambda rows: rows[:-1], progress)
        accepted, changed = self.relaxation.accept(choice[:-1], proposal.ids, there, before,
                                                   state.changed)
        return accepted, choice[accepted], state.replace(changed=changed)
