"""Simple ways to choose image tokens, to compare with and for nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.pruning_scores import EPSILON, Scene, Weights, covering


def _all(scores: jax.Array) -> jax.Array:
    return jnp.asarray(scores.shape[0], jnp.int32)


def dispersed(rows: int, columns: int) -> np.ndarray:
    """Return in which order to take the places of a grid to cover it evenly at any time.

    The order of ordered dithering (Bayer, 1973): a matrix of a power of two, cut to the grid.

    Returns:
        int [rows, columns]: ranks, each once.
    """
    matrix = np.zeros((1, 1), np.int64)
    while len(matrix) < max(rows, columns):
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    return np.argsort(np.argsort(matrix[:rows, :columns].ravel())).reshape(rows, columns)


@dataclass(frozen=True, kw_only=True)
class UniformScorer:
    """Keeps tokens evenly spread over each picture, whatever they show."""

    grid: tuple[int, int]
    """Tokens down and across a picture."""
    by_history: bool = False

    def __call__(self, weights: Weights, scene: Scene) -> jax.Array:
        """Score: see Scorer."""
        order = dispersed(*self.grid).ravel()
        cameras = scene.tokens.shape[0] // order.size
        return jnp.asarray(-np.tile(order, cameras), jnp.float32)

    def needed(self, weights: Weights, scores: jax.Array) -> jax.Array:
        """Return as many as there are."""
        return _all(scores)


@dataclass(frozen=True, kw_only=True)
class RandomScorer:
    """Keeps other tokens in every frame, by chance."""

    seed: int = 0
    by_history: bool = False

    def __call__(self, weights: Weights, scene: Scene) -> jax.Array:
        """Score: see Scorer."""
        rng = jax.random.fold_in(jax.random.key(self.seed), scene.frame)
        return jax.random.uniform(rng, scene.tokens.shape[:1])

    def needed(self, weights: Weights, scores: jax.Array) -> jax.Array:
        """Return as many as there are."""
        return _all(scores)


@dataclass(frozen=True, kw_only=True)
class AttentionScorer:
    """Keeps what the action tokens of the chunks before paid the most attention to."""

    mass: float = 0.9
    """Tokens that share so much of the attention are needed."""
    by_history: bool = True

    def __call__(self, weights: Weights, scene: Scene) -> jax.Array:
        """Score: see Scorer."""
        return jnp.log(scene.attention + EPSILON)

    def needed(self, weights: Weights, scores: jax.Array) -> jax.Array:
        """Count the tokens that share most of the attention."""
        return covering(scores, self.mass)
