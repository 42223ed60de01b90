"""Adaptive visual-token pruning: between vision encoder and decoder, keep what the action needs.

Lossy. Every image token gets a score (accel.pruning_scores), averaged over frames; near-duplicates
of better ones are marked down; the best are kept. How many is one of a few declared budgets: the
smallest that holds all tokens above the threshold. The choice is made on the device, by
`lax.switch` between prefills of different lengths (accel.pruning_prefill), so that the host still
waits once an inference; if the host chose, it would have to wait for the scores first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.pruning_scores import LearnedScorer, Scene, Scorer, Weights, normed

ADAPTIVE_BUDGETS = (0.25, 0.375, 0.5)


class PruningError(ValueError):
    """A pruner that cannot be; the message names the field, its value and what it should be."""


@flax.struct.dataclass
class PruningState:
    """What is remembered from frame to frame, of one robot."""

    scores: jax.Array
    """float32 [n]: moving average of the scores."""
    attention: jax.Array
    """float32 [n]: what action tokens paid to each image token, smoothed over chunks."""
    tokens: jax.Array
    """[n, d]: image tokens of the frame before, by which a jump of the image is noticed."""
    frames: jax.Array
    """int32 []: frames seen, ever."""
    since: jax.Array
    """int32 []: frames seen since the last reset."""
    attended: jax.Array
    """int32 []: chunks since the last reset whose attention is known."""

    @classmethod
    def blank(cls, tokens: int, width: int, dtype: jnp.dtype = jnp.float32) -> PruningState:
        """Return the state before the first frame, for so many image tokens of a width."""
        # Buffers of their own, so that the state can be donated.
        return cls(scores=jnp.zeros((tokens,)), attention=jnp.full((tokens,), 1 / tokens),
                   tokens=jnp.zeros((tokens, width), dtype), frames=jnp.zeros((), jnp.int32),
                   since=jnp.zeros((), jnp.int32), attended=jnp.zeros((), jnp.int32))


@flax.struct.dataclass
class Ranking:
    """Which image tokens of a frame are kept."""

    state: PruningState
    """For the next frame. First, so that it is what takes over the buffers of the one before."""
    scores: jax.Array
    """float32 [n]: averaged over frames, before near-duplicates are marked down."""
    rank: jax.Array
    """int32 [n]: of each token; 0 is kept first."""
    needed: jax.Array
    """int32 []: tokens that the scores ask for."""
    choice: jax.Array
    """int32 []: which of the pruner's budgets."""
    count: jax.Array
    """int32 []: tokens that are kept: that budget."""

    @property
    def kept(self) -> jax.Array:
        """bool [n]: the token is kept."""
        return self.rank < self.count[..., None]

    @property
    def slots(self) -> jax.Array:
        """int32 [n]: indices of the tokens that are kept, ascending; then those of the others."""
        return jnp.argsort(~self.kept, axis=-1, stable=True).astype(jnp.int32)


@flax.struct.dataclass
class Pruned:
    """The tokens that are kept, in the order in which they were."""

    tokens: jax.Array
    """[k, d]"""
    indices: jax.Array
    """int32 [k]: which of the image tokens, ascending."""
    positions: jax.Array
    """int32 [k]: for the rotary embedding, if what follows them is at k, k + 1, …"""


@dataclass(frozen=True, kw_only=True)
class AdaptiveVisualPruner:
    """Chooses image tokens. A pure function of weights, tokens and state; hashable.

    Raises:
        PruningError: a field is out of its range.
    """

    scorer: Scorer = field(default_factory=LearnedScorer)
    keep_ratio: float = 0.5
    """Fraction of image tokens that is kept, unless `adaptive`."""
    adaptive: bool = False
    """The threshold decides between the budgets."""
    budgets: tuple[float, ...] = ADAPTIVE_BUDGETS
    """Fractions that `adaptive` chooses from, ascending."""
    original_positions: bool = True
    """Kept tokens are as far from the prompt and one another as in the unpruned prefix; off: they
    are numbered anew."""
    cameras: tuple[bool, ...] = ()
    """For each camera of the policy, whether the robot has it; () for all. Tokens are those of the
    cameras that are there; the others' are left out, but their places count."""
    memory: float = 0.3
    """Weight of earlier scores in the average; 0 for none."""
    attention_memory: float = 0.5
    """Weight of earlier chunks' attention in its average."""
    jump: float = 0.35
    """Mean of 1 − cosine between tokens and those of the frame before, each less its mean, above
    which the picture is taken to be another, and what is remembered is forgotten."""
    duplicate: float = 0.9
    """Cosine from which on a token counts as a near-duplicate of a better one; 1 for never."""
    duplicate_cost: float = 2.0
    """What a perfect duplicate is marked down by, in deviations of the scores."""

    def __post_init__(self) -> None:
        for name in ('keep_ratio', 'duplicate'):
            _check(name, getattr(self, name), getattr(self, name) > 0, 'above 0 to 1')
        for name in ('memory', 'attention_memory'):
            _check(name, getattr(self, name), getattr(self, name) >= 0, '0 to below 1', below=True)
        if not self.budgets or list(self.budgets) != sorted(set(self.budgets)):
            raise PruningError(f'budgets: {self.budgets}, expected ascending fractions')
        for budget in self.budgets:
            _check('budgets', budget, budget > 0, 'above 0 to 1')

    def counts(self, tokens: int) -> tuple[int, ...]:
        """Return how many of so many image tokens may be kept, ascending: the static shapes.

        All is one of the choices where nothing is known before the first chunk.
        """
        ratios = self.budgets if self.adaptive else (self.keep_ratio,)
        counts = {max(1, math.ceil(ratio * tokens - 1e-9)) for ratio in ratios}
        return tuple(sorted(counts | ({tokens} if self.scorer.by_history else set())))

    def init_state(self, tokens: int, width: int, dtype: jnp.dtype = jnp.float32) -> PruningState:
        """Return the state before the first frame."""
        return PruningState.blank(tokens, width, dtype)

    def rank(self, weights: Weights, tokens: jax.Array, prompt: jax.Array,
             prompt_length: jax.Array, state: PruningState,
             reset: jax.Array | bool = False) -> Ranking:
        """Decide which tokens are kept.

        Args:
            weights: Of the scorer; {} where it has none.
            tokens: [n, d]: image tokens of all cameras.
            prompt: [l, d]: embeddings of the prompt's ids.
            prompt_length: int32 []: how many of those count, at least 1.
            state: Of the frame before.
            reset: bool []: the instruction is a new one: forget what is remembered.
        """
        with jax.named_scope('pruning'):
            state = self._forget(state, tokens, jnp.asarray(reset))
            scores = self.scorer(weights, Scene(
                tokens=tokens, prompt=prompt, prompt_length=prompt_length,
                attention=state.attention, frame=state.frames))
            averaged = self.memory * state.scores + (1 - self.memory) * scores
            scores = jnp.where(state.since > 0, averaged, scores)
            needed = self.scorer.needed(weights, scores)
            choice = self._choose(needed, state, len(tokens))
            return Ranking(
                scores=scores, rank=self.order(tokens, scores), needed=needed, choice=choice,
                count=jnp.asarray(self.counts(len(tokens)), jnp.int32)[choice],
                state=state.replace(scores=scores, tokens=tokens.astype(state.tokens.dtype),
                                    frames=state.frames + 1, since=state.since + 1))

    def _forget(self, state: PruningState, tokens: jax.Array, reset: jax.Array) -> PruningState:
        """Return the state, or a blank one if the instruction or the picture is another."""
        now, before = (normed(x - jnp.mean(x, axis=0)) for x in (
            tokens.astype(jnp.float32), state.tokens.astype(jnp.float32)))
        change = 1 - jnp.mean(now * before)
        forget = reset | (change > self.jump) | (state.since == 0)
        blank = PruningState.blank(*tokens.shape, state.tokens.dtype).replace(frames=state.frames)
        return jax.tree.map(lambda old, new: jnp.where(forget, new, old), state, blank)

    def _choose(self, needed: jax.Array, state: PruningState, tokens: int) -> jax.Array:
        """Return the index of the smallest budget that holds what is needed, or of the largest."""
        counts = self.counts(tokens)
        usual = counts[:-1] if self.scorer.by_history and len(counts) > 1 else counts
        choice = jnp.sum(needed > jnp.asarray(usual[:-1], jnp.int32), dtype=jnp.int32)
        if not self.scorer.by_history:
            return choice
        return jnp.where(state.attended > 0, choice, len(counts) - 1)

    def order(self, tokens: jax.Array, scores: jax.Array) -> jax.Array:
        """Return the rank of each token int32 [n]: by scores [n], near-duplicates marked down."""
        rank = _ranks(scores)
        if self.duplicate >= 1 or not self.duplicate_cost:
            return rank
        x = tokens.astype(jnp.float32)
        x = normed(x - jnp.mean(x, axis=0))
        cosines = jnp.einsum('id,jd->ij', x, x) / x.shape[1]
        # All at once as in Fast NMS (YOLACT, arXiv:1904.02689), not one after another.
        nearest = jnp.max(jnp.where(rank[:, None] < rank[None], cosines, -1.0), axis=0)
        excess = jnp.maximum(nearest - self.duplicate, 0.0) / (1 - self.duplicate)
        return _ranks(scores - self.duplicate_cost * jnp.std(scores) * excess)

    def keep(self, tokens: jax.Array, ranking: Ranking, count: int) -> Pruned:
        """Gather the tokens that are kept.

        Args:
            tokens: [n, d]
            ranking: Whose `count` is this one.
            count: How many, static.
        """
        indices = ranking.slots[:count]
        return Pruned(tokens=tokens[indices], indices=indices,
                      positions=self.positions(ranking)[:count])

    def positions(self, ranking: Ranking) -> jax.Array:
        """Return positions int32 [n] of the tokens `ranking.slots`.

        The rotary embedding knows distances only, so that tokens which are to be as far from the
        prompt as they were are moved, and the prompt follows the tokens kept, which leaves
        decoding as it is.
        """
        tokens = ranking.rank.shape[0]
        if not self.original_positions:
            return jnp.arange(tokens, dtype=jnp.int32)
        there = np.repeat(self._there, tokens // self._there.sum())
        places = jnp.asarray(np.flatnonzero(there), jnp.int32)
        return places[ranking.slots] - (there.size - ranking.count)

    @property
    def _there(self) -> np.ndarray:
        return np.asarray(self.cameras or (True,))

    def attend(self, state: PruningState, ranking: Ranking, paid: jax.Array) -> PruningState:
        """Remember what a chunk's action tokens paid attention to.

        Args:
            state: To remember it in: that of the ranking, or a later one.
            ranking: Of the chunk.
            paid: float32 [n]: to the tokens `ranking.slots`; what is beyond the count is ignored.

        Tokens that were not kept have not been looked at: they keep what they had, scaled so that
        all sum up to 1, and so can come back.
        """
        with jax.named_scope('pruning'):
            seen = jnp.zeros_like(state.attention).at[ranking.slots].set(paid)
            share = jnp.sum(jnp.where(ranking.kept, state.attention, 0.0))
            seen = seen * share / jnp.maximum(jnp.sum(jnp.where(ranking.kept, seen, 0.0)), 1e-9)
            memory = jnp.where(state.attended > 0, self.attention_memory, 0.0)
            mixed = memory * state.attention + (1 - memory) * seen
            return state.replace(attention=jnp.where(ranking.kept, mixed, state.attention),
                                 attended=state.attended + 1)


def _ranks(scores: jax.Array) -> jax.Array:
    """Return the rank of each of scores [n], the highest first: int32 [n]."""
    order = jnp.argsort(-scores, stable=True)
    return jnp.zeros(scores.shape, jnp.int32).at[order].set(
        jnp.arange(scores.shape[0], dtype=jnp.int32))


def _check(name: str, value: float, ok: bool, expected: str, *, below: bool = False) -> None:
    if not ok or value > 1 or (below and value >= 1):
        raise PruningError(f'{name}: {value:g}, expected {expected}')
