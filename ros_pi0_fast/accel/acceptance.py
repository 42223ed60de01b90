"""Which of the ids that a drafter proposed the target would have chosen itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ros_pi0_fast.accel.drafters import Proposal
from ros_pi0_fast.model.decode import likeliest


def accept_likeliest(logits: jax.Array, proposal: Proposal, there: jax.Array,
                     ) -> tuple[jax.Array, jax.Array]:
    """Accept ids for as long as each is the likeliest.

    Args:
        logits: [k + 1, n]: of what comes at the place of each proposed id, and after them all.
        proposal: Of k ids.
        there: bool [k]: the id may be accepted; once false, false for all that come after.

    Returns:
        int32 []: how many ids are accepted; and int32 []: the column to choose after them.
    """
    choice = likeliest(logits)
    accepted = _leading(there & (choice[:-1] == proposal.ids))
    return accepted, choice[accepted]


def accept_drawn(p: jax.Array, proposal: Proposal, there: jax.Array, key: jax.Array,
                 ) -> tuple[jax.Array, jax.Array]:
    """Accept ids so that what is chosen is distributed as p (arXiv:2211.17192, algorithm 1).

    An id that was drawn from q stays with probability min(1, p / q). After the first that does
    not, one is drawn from what of p is not in q; after them all, from p.

    Args:
        p: float32 [k + 1, n]: the target's probabilities at each place.
        proposal: Of k ids. Those that were not drawn count as having had probability 1.
        there: See accept_likeliest.
        key: For drawing.

    Returns:
        See accept_likeliest.
    """
    uniform, draw = jax.random.split(key)
    q = proposal.probabilities
    q = jax.nn.one_hot(proposal.ids, p.shape[-1], dtype=p.dtype) if q is None else q
    q = jnp.where(there[:, None], q, 0.0)
    at = jnp.maximum(proposal.ids, 0)[:, None]
    p_of, q_of = (jnp.take_along_axis(x, at, axis=1)[:, 0] for x in (p[:-1], q))
    stays = jax.random.uniform(uniform, p_of.shape) * q_of < p_of
    accepted = _leading(there & stays)
    left = jnp.maximum(p - jnp.concatenate([q, jnp.zeros_like(p[:1])]), 0.0)[accepted]
    # Rounding may leave nothing of two distributions that are equal.
    left = jnp.where(jnp.sum(left) > 0, left, p[accepted])
    return accepted, jax.random.categorical(draw, jnp.log(left)).astype(jnp.int32)


def _leading(flags: jax.Array) -> jax.Array:
    """Count the flags, bool [k], before the first that is false: int32 []."""
    return jnp.sum(jnp.cumprod(flags.astype(jnp.int32)), dtype=jnp.int32)
