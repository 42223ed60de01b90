"""How much each image token matters: what the pruner's scores are made of.

A scorer is a frozen value; what it has learned is passed in. Scores of one frame are compared with
one another and mean nothing by themselves, but for the learned ones, which have a threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import flax.struct
import jax
import jax.numpy as jnp

Weights = Mapping[str, jax.Array]
EPSILON = 1e-6


@flax.struct.dataclass
class Scene:
    """What there is to judge image tokens by."""

    tokens: jax.Array
    """[n, d]: image tokens of all cameras."""
    prompt: jax.Array
    """[l, d]: embeddings of the prompt's ids."""
    prompt_length: jax.Array
    """int32 []: how many of those count."""
    attention: jax.Array
    """float32 [n]: what earlier action tokens paid to each image token, smoothed over chunks."""
    frame: jax.Array
    """int32 []: frames that the state has seen."""


class Scorer(Protocol):
    """What a way of scoring is."""

    @property
    def by_history(self) -> bool:
        """Tell whether it knows nothing before the first chunk, so that all must be kept then."""
        ...

    def __call__(self, weights: Weights, scene: Scene) -> jax.Array:
        """Return float32 [n]: higher is to be kept first."""
        ...

    def needed(self, weights: Weights, scores: jax.Array) -> jax.Array:
        """Return int32 []: of how many tokens scores [n] say that they matter."""
        ...


def normed(x: jax.Array) -> jax.Array:
    """Return x [..., d] in float32 with a root mean square of 1."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + EPSILON)


def standardized(x: jax.Array) -> jax.Array:
    """Return x [n] with mean 0 and deviation 1; zeros where all are equal."""
    x = x - jnp.mean(x)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x)) + EPSILON)


def covering(scores: jax.Array, mass: float) -> jax.Array:
    """Return int32 []: how many of the largest of softmax(scores [n]) sum up to `mass`."""
    falling = -jnp.sort(-jax.nn.softmax(scores))
    return 1 + jnp.sum(jnp.cumsum(falling) < mass, dtype=jnp.int32)


@dataclass(frozen=True, kw_only=True)
class LearnedScorer:
    """Semantics and space, learned; see training.pruner.

    Semantics: each image token attends to the prompt's embeddings, by learned projections, and is
    compared with what it found there. Space: an MLP reads the token alone, plus a bias for each
    place in the pictures. Their sum is trained to be the logarithm of the attention that action
    tokens pay, which is what SparseVLM (arXiv:2410.04417) and FastV (arXiv:2403.06764) find the
    relevance of image tokens by, after having run layers on all of them; here it is foretold.
    """

    heads: int = 4
    head_dim: int = 32
    hidden: int = 64
    """Width of the MLP."""
    semantics: bool = True
    """Off for the ablation only, and so the next."""
    space: bool = True
    by_history: bool = False

    def init(self, rng: jax.Array, tokens: int, width: int) -> dict[str, jax.Array]:
        """Return float32 weights for so many image tokens of a width."""
        keys = jax.random.split(rng, 6)
        features = self.heads * self.head_dim

        def matrix(key: jax.Array, columns: int) -> jax.Array:
            return jax.random.normal(key, (width, columns)) * width ** -0.5

        return {
            'query': matrix(keys[0], features), 'key': matrix(keys[1], features),
            'value': matrix(keys[2], features), 'read': matrix(keys[3], features),
            'mlp_in': matrix(keys[4], self.hidden), 'mlp_bias': jnp.zeros((self.hidden,)),
            'mlp_out': jax.random.normal(keys[5], (self.hidden,)) * self.hidden ** -0.5,
            'place_bias': jnp.zeros((tokens,)), 'threshold_bias': jnp.zeros(())}

    def __call__(self, weights: Weights, scene: Scene) -> jax.Array:
        """Score: see Scorer."""
        scores = jnp.zeros(scene.tokens.shape[:1], jnp.float32)
        if self.semantics:
            scores += self.relevance_to_prompt(weights, scene)
        if self.space:
            scores += self.relevance_to_action(weights, scene)
        return scores

    def relevance_to_prompt(self, weights: Weights, scene: Scene) -> jax.Array:
        """Return the semantic score, float32 [n]."""
        x, y = normed(scene.tokens), normed(scene.prompt)

        def project(z: jax.Array, name: str) -> jax.Array:
            return (z @ weights[name].astype(jnp.float32)).reshape(-1, self.heads, self.head_dim)

        scores = jnp.einsum('nhr,lhr->hnl', project(x, 'query'), project(y, 'key'))
        exists = jnp.arange(len(y)) < scene.prompt_length
        scores = jnp.where(exists, scores * self.head_dim ** -0.5, -jnp.inf)
        found = jnp.einsum('hnl,lhr->nhr', jax.nn.softmax(scores, axis=-1), project(y, 'value'))
        scale = (self.heads * self.head_dim) ** -0.5
        return scale * jnp.sum(found * project(x, 'read'), axis=(1, 2))

    def relevance_to_action(self, weights: Weights, scene: Scene) -> jax.Array:
        """Return the spatial score, float32 [n]."""
        hidden = jax.nn.gelu(normed(scene.tokens) @ weights['mlp_in'] + weights['mlp_bias'])
        return hidden @ weights['mlp_out'] + weights['place_bias']

    def needed(self, weights: Weights, scores: jax.Array) -> jax.Array:
        """Count the scores above the learned threshold."""
        return jnp.sum(scores > weights['threshold_bias'], dtype=jnp.int32)


@dataclass(frozen=True, kw_only=True)
class TrainingFreeScorer:
    """For a checkpoint that has no trained pruner.

    Attention that the previous chunks' action tokens paid, and the likeness of image tokens and
    the instruction's embeddings, which share a space in PaliGemma. Neither was made for this: the
    attention is behind by a chunk, and so the first frame keeps everything.
    """

    text: float = 0.3
    """Weight of the likeness to the prompt; the attention's is 1."""
    mass: float = 0.9
    """Tokens that share so much of the softmax of scores are needed."""
    by_history: bool = True

    def __call__(self, weights: Weights, scene: Scene) -> jax.Array:
        """Score: see Scorer. There are no weights."""
        paid = standardized(jnp.log(scene.attention + EPSILON))
        return paid + self.text * standardized(self.likeness(scene))

    def likeness(self, scene: Scene) -> jax.Array:
        """Return the largest cosine of each image token with an id's embedding, float32 [n].

        Both are centred first, since their means, which say nothing, are most of their length.
        """
        exists = (jnp.arange(len(scene.prompt)) < scene.prompt_length)[:, None]
        tokens, prompt = (x.astype(jnp.float32) for x in (scene.tokens, scene.prompt))
        mean = jnp.sum(jnp.where(exists, prompt, 0.0), axis=0) / scene.prompt_length
        cosines = normed(tokens - jnp.mean(tokens, axis=0)) @ normed(prompt - mean).T
        return jnp.max(jnp.where(exists[:, 0], cosines, -jnp.inf), axis=1) / tokens.shape[-1]

    def needed(self, weights: Weights, scores: jax.Array) -> jax.Array:
        """Count the tokens that share most of the scores' softmax."""
        return covering(scores, self.mass)
