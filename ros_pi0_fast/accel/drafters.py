"""What a drafter is: it guesses the ids that come next, for speculative decoding to verify.

Ids are counted as the decoder chooses them: in columns, of which column i is candidate i (the FAST
ids), or the model's id i where the whole vocabulary is chosen from. A drafter is a pytree: what is
static about it belongs to its structure, and so to what is compiled; its tables and weights are
arguments. What it remembers within an inference is a pytree of its own, which the loop carries.
"""

from __future__ import annotations

from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from ros_pi0_fast.model.cache import KVCache
from ros_pi0_fast.model.decode import GrammarTables, Progress, likeliest

UNROLLED = 16
"""Most ids of a loop that is compiled turn by turn."""
NOTHING = -1
"""In a proposal: nothing is proposed here, nor after it."""


@flax.struct.dataclass
class Prefix:
    """What the first id is chosen after, for drafters that read it themselves."""

    images: jax.Array
    """[n, d]: image tokens as the target's prefill took them."""
    prompt: jax.Array
    """int32 [bucket]: model ids."""
    prompt_length: jax.Array
    """int32 []: ids of it that count."""
    before: jax.Array
    """int32 [p]: model ids between the prompt and the first choice, whoever feeds them."""


@flax.struct.dataclass
class SoFar:
    """What is decided already; what was accepted of a proposal is part of it the next time."""

    ids: jax.Array
    """int32 [max_ids + k]: columns chosen; beyond `count` any columns."""
    count: jax.Array
    """int32 []: how many were chosen, less than max_ids."""
    progress: Progress | None
    """After them, one row; None where there is no grammar."""
    hidden: jax.Array
    """[d]: the target's output that the last of them was chosen from; before the first, that at
    the end of the prompt."""
    cache: KVCache
    """The target's, of all tokens but the last of them; before the first, of the prompt. To be
    read only."""


@flax.struct.dataclass
class Proposal:
    """Guesses of the next ids."""

    ids: jax.Array
    """int32 [k]: columns; from the first NOTHING on they do not count."""
    probabilities: jax.Array | None = None
    """float32 [k, n]: what each was drawn from; None if they were not drawn."""


@flax.struct.dataclass
class Rules:
    """What may follow, for target and drafter alike."""

    grammar: GrammarTables | None
    candidates: jax.Array | None
    """int32 [n]: model id of each column; None where columns are model ids."""
    max_ids: int = flax.struct.field(pytree_node=False)
    """Most ids to choose."""
    temperature: float = flax.struct.field(pytree_node=False, default=0.0)
    """Of drawing; 0: the likeliest is taken."""

    def model_ids(self, columns: jax.Array) -> jax.Array:
        """Return the model ids of columns int32 [...]."""
        return columns if self.candidates is None else self.candidates[columns]

    def allowed(self, progress: Progress, chosen: jax.Array) -> jax.Array:
        """Tell which columns may follow: bool [t, n].

        Args:
            progress: Of t rows.
            chosen: int32 [t]: ids chosen before.
        """
        return progress.allowed(self.grammar, self.max_ids - chosen[:, None])

    def mask(self, logits: jax.Array, progress: Progress | None, chosen: jax.Array) -> jax.Array:
        """Return logits [t, n] with -inf where a column may not follow: see allowed."""
        if self.grammar is None:
            return logits
        return jnp.where(self.allowed(progress, chosen), logits, -jnp.inf)

    def choose(self, scores: jax.Array, key: jax.Array | None,
               ) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
        """Take the likeliest column, or draw one.

        Args:
            scores: [1, n]: masked logits.
            key: For drawing; not used at temperature 0.

        Returns:
            int32 [1]: the column; what it was drawn from, float32 [n], or None; the next key.
        """
        if self.temperature == 0:
            return likeliest(scores), None, key
        scaled = scores.astype(jnp.float32) / self.temperature
        key, draw = jax.random.split(key)
        column = jax.random.categorical(draw, scaled, axis=-1).astype(jnp.int32)
        return column, jax.nn.softmax(scaled)[0], key

    def advance(self, progress: Progress | None, columns: jax.Array) -> Progress | None:
        """Return the progress of t rows after columns int32 [t]."""
        return None if self.grammar is None else progress.advance(self.grammar, columns)

    def along(self, progress: Progress | None, columns: jax.Array) -> Progress | None:
        """Return the progress, one row, after each of 0 … k of the columns: k + 1 rows.

        Args:
            progress: One row.
            columns: int32 [k]
        """
        if self.grammar is None:
            return None

        def step(now: Progress, column: jax.Array) -> tuple[Progress, Progress]:
            after = now.advance(self.grammar, column[None])
            return after, after

        # Unrolled where it is a guess: each turn of a loop is a launch of its own on a GPU, for
        # next to no work. Fifty turns of a whole chunk would take 400 MiB to compile.
        _, rows = jax.lax.scan(step, progress, columns, unroll=len(columns) <= UNROLLED)
        return jax.tree.map(lambda first, rest: jnp.concatenate([first, rest[:, 0]]), progress,
                            rows)


class Drafter(Protocol):
    """What proposes ids. Its methods are traced; a batch of one throughout."""

    def start(self, prefix: Prefix | None, rules: Rules, length: int,
              key: jax.Array | None) -> Any:
        """Return what to remember before the first proposal.

        Args:
            prefix: What came before; None where the caller has a drafter that does not read it.
            rules: What may follow.
            length: Ids of a proposal.
            key: For a drafter that draws; None where rules.temperature is 0.
        """
        ...

    def propose(self, state: Any, so_far: SoFar, rules: Rules, length: int,
                ) -> tuple[Proposal, Any]:
        """Guess the next ids.

        Args:
            state: What was remembered.
            so_far: What was chosen, by the target, until now.
            rules: What may follow.
            length: How many ids to propose.

        Returns:
            The guesses, and what to remember.
        """
        ...
