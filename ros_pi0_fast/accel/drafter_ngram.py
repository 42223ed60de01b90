"""A drafter that proposes what most often followed the last ids, by a table of sequences seen.

A Markov chain of up to three ids with back-off to fewer where a context was never seen, or where
the grammar forbids what followed it. The contexts are a trie, from the last id backwards, level by
level: a sorted array of keys each, found by bisection, so that nothing is hashed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.drafters import NOTHING, Prefix, Proposal, Rules, SoFar
from ros_pi0_fast.model.decode import Progress


@flax.struct.dataclass
class NgramDrafter:
    """Proposes the most frequent continuation of the longest context that is in the table."""

    keys: tuple[jax.Array, ...]
    """For each level l from 0 on int32 [m], ascending: node of the l ids after it (0 at level 0)
    · base + the id, which is node number `index in keys` of the next level."""
    following: tuple[jax.Array, ...]
    """For each level int32 [m]: the column that most often followed the context."""
    base: int = flax.struct.field(pytree_node=False)
    """Columns, and one for what is before the first id."""

    @classmethod
    def build(cls, sequences: Iterable[Sequence[int]], columns: int, *, order: int = 3,
              ) -> NgramDrafter:
        """Count continuations.

        Args:
            sequences: Columns of chunks (FAST ids, where those are the candidates).
            columns: How many columns there are.
            order: Most ids of a context, at least 1.

        Raises:
            ValueError: no sequence has two ids; an id is no column; there are too many contexts
                for keys of 32 bits.
        """
        base = columns + 1
        contexts, after = _continuations(sequences, columns, order)
        keys, following = [], []
        node = np.zeros(len(after), np.int64)
        for level in range(order):
            found, node = np.unique(node * base + contexts[:, level], return_inverse=True)
            if found[-1] > np.iinfo(np.int32).max:
                raise ValueError(f'order: {order} with {columns} columns, expected keys of 32 '
                                 f'bits, found {found[-1]}')
            keys.append(jnp.asarray(found, jnp.int32))
            following.append(jnp.asarray(_most_frequent(node, after, base), jnp.int32))
        return cls(keys=tuple(keys), following=tuple(following), base=base)

    def start(self, prefix: Prefix | None, rules: Rules, length: int,
              key: jax.Array | None) -> tuple[()]:
        """Remember nothing: see Drafter."""
        del prefix, rules, length, key
        return ()

    def propose(self, state: tuple[()], so_far: SoFar, rules: Rules, length: int,
                ) -> tuple[Proposal, tuple[()]]:
        """Propose ids, each after the ones before it: see Drafter."""
        back = so_far.count - jnp.arange(1, len(self.keys) + 1, dtype=jnp.int32)
        context = jnp.where(back >= 0, so_far.ids[jnp.maximum(back, 0)], self.base - 1)

        def step(carry: tuple[jax.Array, Progress | None], chosen: jax.Array) -> tuple:
            context, progress = carry
            choice = self._next(context, progress, chosen, rules)
            column = jnp.maximum(choice, 0)
            context = jnp.concatenate([column[None], context[:-1]])
            return (context, rules.advance(progress, column[None])), choice

        chosen = so_far.count + jnp.arange(length, dtype=jnp.int32)
        # Unrolled: see Rules.along.
        _, ids = jax.lax.scan(step, (context, so_far.progress), chosen, unroll=True)
        return Proposal(ids=ids), state

    def _next(self, context: jax.Array, progress: Progress | None, chosen: jax.Array,
              rules: Rules) -> jax.Array:
        """Return the column, int32 [], to follow the context int32 [order], its last id first."""
        node, known = jnp.zeros((), jnp.int32), jnp.ones((), bool)
        may = None if rules.grammar is None else rules.allowed(progress, chosen[None])[0]
        choice = jnp.full((), NOTHING, jnp.int32)
        for level, (keys, following) in enumerate(zip(self.keys, self.following, strict=True)):
            key = node * self.base + context[level]
            node = jnp.minimum(jnp.searchsorted(keys, key), len(keys) - 1).astype(jnp.int32)
            known = known & (keys[node] == key)
            usable = known if may is None else known & may[following[node]]
            choice = jnp.where(usable, following[node], choice)
        return choice


def _continuations(sequences: Iterable[Sequence[int]], columns: int, order: int,
                   ) -> tuple[np.ndarray, np.ndarray]:
    """Return contexts int64 [n, order], their last id first, and what followed them, int64 [n]."""
    contexts, after = [], []
    for sequence in sequences:
        ids = np.asarray(sequence, np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < columns:
            raise ValueError(f'sequences: ids from {ids.min()} to {ids.max()}, expected columns '
                             f'from 0 to {columns - 1}')
        padded = np.concatenate([np.full(order, columns), ids])
        after.append(ids[1:])
        contexts.append(np.stack([padded[order - back:len(padded) - 1 - back]
                                  for back in range(order)], axis=1))
    if not sum(map(len, after)):
        raise ValueError('sequences: expected at least one of two or more ids')
    return np.concatenate(contexts), np.concatenate(after)


def _most_frequent(node: np.ndarray, after: np.ndarray, base: int) -> np.ndarray:
    """Return for each node, int64 [m], what most often came after it; the smallest of equals."""
    pairs, counts = np.unique(node * base + after, return_counts=True)
    nodes, ids = pairs // base, pairs % base
    best = np.lexsort((ids, -counts, nodes))
    return ids[best][np.unique(nodes[best], return_index=True)[1]]
