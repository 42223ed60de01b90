"""Relaxed acceptance: ids that are wrong, but by so little that the robot need not care. Lossy.

Ids of FAST stand for DCT coefficients, so it is known what an id changes. A guessed id is accepted
in place of the target's own if both complete equally many coefficients and no action of any joint
changes by more than the tolerance, all such ids of the chunk together; the target goes on from
what was accepted. Coefficients of grippers are never changed. For bins of single actions this is
known from Spec-VLA (arXiv:2507.22424), whose bound is a distance of bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from scipy.fft import idct

from ros_pi0_fast.model.decode import Progress


@flax.struct.dataclass
class Relaxation:
    """What ids change, by the place in the chunk, and how much may be changed."""

    values: jax.Array
    """int32 [n, m]: the coefficients of an id of whole characters; 0 beyond the last."""
    count: jax.Array
    """int32 [n]: how many those are; 0 for an id that cuts a character apart."""
    effect: jax.Array
    """float32 [coefficients + m]: most that a step of a coefficient changes an action by; infinite
    for grippers."""
    joint: jax.Array
    """int32 [coefficients + m]: dimension of the action that a coefficient belongs to."""
    tolerance: jax.Array
    """float32 []: in units of the actions."""
    coefficients: int = flax.struct.field(pytree_node=False)
    """Of a chunk."""
    joints: int = flax.struct.field(pytree_node=False)
    """Dimensions of an action."""

    @classmethod
    def build(cls, id_bytes: Sequence[bytes], *, horizon: int, scale: float, slopes: np.ndarray,
              grippers: Sequence[int], tolerance: float) -> Relaxation:
        """Make the tables.

        Args:
            id_bytes: Of the FAST tokenizer.
            horizon: Actions of a chunk.
            scale: Of the FAST tokenizer.
            slopes: Float [dimensions]: units of an action for 1 of its normalized value.
            grippers: Dimensions that are grippers.
            tolerance: In units of the actions.
        """
        whole = [_characters(part) for part in id_bytes]
        longest = max(1, max(map(len, whole)))
        values = np.zeros((len(whole), longest), np.int32)
        for row, found in zip(values, whole, strict=True):
            row[:len(found)] = found
        joints = len(slopes)
        basis = np.abs(idct(np.eye(horizon), axis=0, norm='ortho')).max(axis=0)
        of_joint = np.abs(np.asarray(slopes, np.float64)) / scale
        of_joint[list(grippers)] = np.inf
        coefficients = horizon * joints
        effect = np.pad((basis[:, None] * of_joint).ravel(), (0, longest))
        return cls(
            values=jnp.asarray(values), effect=jnp.asarray(effect, jnp.float32),
            count=jnp.asarray([len(found) for found in whole], jnp.int32),
            joint=jnp.asarray(np.arange(coefficients + longest) % joints, jnp.int32),
            tolerance=jnp.asarray(tolerance, jnp.float32), coefficients=coefficients,
            joints=joints)

    def unused(self) -> jax.Array:
        """Return what is changed where nothing is: float32 [joints]."""
        return jnp.zeros((self.joints,))

    def change(self, proposed: jax.Array, own: jax.Array, progress: Progress) -> jax.Array:
        """Return the most that one id changes any action by, in place of another.

        Args:
            proposed: int32 []: the one.
            own: int32 []: the other.
            progress: Before them, one row without its axis.

        Returns:
            float32 [joints]; infinite where one cannot stand for the other.
        """
        start = self.coefficients - progress.remaining
        size = self.values.shape[1]
        effect = jax.lax.dynamic_slice(self.effect, (start,), (size,))
        joint = jax.lax.dynamic_slice(self.joint, (start,), (size,))
        steps = jnp.abs(self.values[proposed] - self.values[own]).astype(jnp.float32)
        changed = self.unused().at[joint].add(jnp.where(steps > 0, steps * effect, 0.0))
        fits = ((progress.state == 0) & (self.count[proposed] > 0)
                & (self.count[proposed] == self.count[own]))
        return jnp.where(fits, changed, jnp.inf)

    def accept(self, choice: jax.Array, proposed: jax.Array, there: jax.Array,
               progress: Progress, used: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Accept ids for as long as each is the target's own, or close enough to it.

        Args:
            choice: int32 [k]: the target's own.
            proposed: int32 [k]
            there: bool [k]: the id may be accepted; once false, false for all that come after.
            progress: Before each of them, k rows.
            used: float32 [joints]: what is changed already.

        Returns:
            int32 []: how many are accepted; and float32 [joints]: what is changed with them.
        """
        def step(carry: tuple[jax.Array, jax.Array], at: tuple) -> tuple:
            going_on, used = carry
            own, other, may, now = at
            same = own == other
            total = used + self.change(other, own, now)
            close = jnp.all(total <= self.tolerance)
            going_on = going_on & may & (same | close)
            return (going_on, jnp.where(going_on & ~same, total, used)), going_on

        (_, used), kept = jax.lax.scan(  # Unrolled: see Rules.along.
            step, (jnp.ones((), bool), used),
            (choice, jnp.maximum(proposed, 0), there, progress), unroll=True)
        return jnp.sum(kept, dtype=jnp.int32), used


def _characters(part: bytes) -> list[int]:
    """Return the characters that bytes are; none where they are not whole characters."""
    try:
        return [ord(character) for character in part.decode('utf-8')]
    except UnicodeDecodeError:
        return []
