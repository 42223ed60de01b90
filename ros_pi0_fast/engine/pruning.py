"""Pruning in the engine: a checkpoint's pruner, its stages, and what it remembers of one robot."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.pruning import AdaptiveVisualPruner, PruningState, Ranking
from ros_pi0_fast.accel.pruning_attention import attention_of_actions
from ros_pi0_fast.accel.pruning_file import FOLDER, load_pruner
from ros_pi0_fast.accel.pruning_prefill import PrunedPrefix, prefill_pruned
from ros_pi0_fast.accel.pruning_scores import (
    LearnedScorer,
    Scorer,
    TrainingFreeScorer,
    Weights,
)
from ros_pi0_fast.engine.stages import Decoded
from ros_pi0_fast.engine.towers import LANGUAGE
from ros_pi0_fast.engine.variant import Variant
from ros_pi0_fast.model.cache import KVCache
from ros_pi0_fast.model.config import Pi0FastConfig
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast


@dataclass(frozen=True)
class PolicyPruner:
    """How image tokens of a policy are scored, and which of its cameras the robot has.

    The tokens of a camera that the robot lacks are those of a black picture: they are not scored,
    and left out as soon as anything is.
    """

    scorer: Scorer
    weights: Weights
    """Of the scorer, for the tokens of the cameras that are there."""
    cameras: tuple[bool, ...]
    """For each camera of the policy, whether the robot has it."""

    @classmethod
    def load(cls, folder: Path, config: Pi0FastConfig, cameras: Collection[str]) -> PolicyPruner:
        """Read the pruner of a checkpoint; where it has none, pruning goes without training.

        Args:
            folder: Of the checkpoint.
            config: Of the checkpoint.
            cameras: Keys of those that the robot has.

        Raises:
            PruningError: there is one, and it is for another policy or cannot be read.
        """
        there = _there(config, cameras)
        if not (folder / FOLDER).is_dir():
            return cls(TrainingFreeScorer(), {}, there)
        scorer, weights = load_pruner(folder / FOLDER, tokens=config.num_image_tokens,
                                      width=config.gemma.width)
        seen = np.repeat(there, config.siglip.num_tokens)
        weights = weights | {'place_bias': weights['place_bias'][seen]}
        return cls(scorer, jax.tree.map(jnp.asarray, weights), there)

    @classmethod
    def random(cls, config: Pi0FastConfig, cameras: Collection[str]) -> PolicyPruner:
        """Make one of random weights, to measure how long pruning takes: see load."""
        scorer, there = LearnedScorer(), _there(config, cameras)
        weights = scorer.init(jax.random.key(0), sum(there) * config.siglip.num_tokens,
                              config.gemma.width)
        return cls(scorer, weights, there)

    def of(self, variant: Variant) -> AdaptiveVisualPruner | None:
        """Return what prunes in a variant; None where nothing does."""
        if not variant.prunes:
            return None
        return AdaptiveVisualPruner(scorer=self.scorer, keep_ratio=variant.keep_ratio,
                                    adaptive=variant.adaptive, cameras=self.cameras)


def _there(config: Pi0FastConfig, cameras: Collection[str]) -> tuple[bool, ...]:
    """Tell which of a policy's cameras are among those of the robot."""
    return tuple(key in cameras for key in config.camera_keys)


class PruningMemory:
    """What pruning remembers from chunk to chunk; on the device. It belongs to one robot."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start anew: frames went by that were not seen."""
        self.state: PruningState | None = None
        """After the last frame; None before the first, and while a frame is looked at."""
        self._instruction: str | None = None

    def take(self, pruner: AdaptiveVisualPruner, tokens: jax.ShapeDtypeStruct,
             instruction: str) -> tuple[PruningState, np.bool_]:
        """Return what is remembered, and whether a new instruction makes it void.

        It is taken over: until `state` is set again nothing is remembered, as is right if that
        never comes.
        """
        new, self._instruction = instruction != self._instruction, instruction
        state, self.state = self.state, None
        if state is None:
            state = pruner.init_state(*tokens.shape, tokens.dtype)
        return state, np.bool_(new)


@dataclass(frozen=True, kw_only=True)
class PrunedPrefill:
    """Prunes image tokens and runs what is left of the prefix through the decoder."""

    tower: ClassVar[str] = LANGUAGE
    model: Pi0Fast
    pruner: AdaptiveVisualPruner
    rows: tuple[int, ...]
    """Of the cameras that are there, in the model's order, among the encoded pictures."""
    capacity: int
    """Slots of the key-value cache."""
    stacked_cache: bool

    @property
    def tokens(self) -> jax.ShapeDtypeStruct:
        """Shape [n, d] and dtype of what is pruned."""
        config = self.model.config
        return jax.ShapeDtypeStruct((len(self.rows) * config.siglip.num_tokens,
                                     config.gemma.width), self.model.dtype)

    def __call__(self, params: Params, weights: Weights, seen: jax.Array, prompt: jax.Array,
                 prompt_length: jax.Array, state: PruningState, reset: jax.Array) -> PrunedPrefix:
        """Prune and prefill: see accel.pruning_prefill.prefill_pruned.

        Args:
            params: Parameters.
            weights: The pruner's.
            seen: [cameras, n, d]: tokens of the pictures that were encoded.
            prompt: int32 [bucket].
            prompt_length: int32 []: ids of it that count.
            state: What the pruner remembers.
            reset: bool []: the instruction is a new one.
        """
        cache = self.model.init_cache(params, 1, self.capacity, stacked=self.stacked_cache)
        images = jnp.concatenate([seen[row] for row in self.rows])
        return prefill_pruned(self.model, self.pruner, params, weights, images, prompt,
                              prompt_length, state, reset, cache)


@dataclass(frozen=True, kw_only=True)
class Listen:
    """Lets a pruner that scores by history know what a chunk's actions paid attention to."""

    tower: ClassVar[str] = LANGUAGE
    model: Pi0Fast
    pruner: AdaptiveVisualPruner

    def __call__(self, params: Params, decoded: Decoded, cache: KVCache, length: jax.Array,
                 ranking: Ranking, state: PruningState) -> PruningState:
        """Return what is remembered after the chunk.

        Args:
            params: Parameters.
            decoded: The chunk's ids.
            cache: After decoding.
            length: int32 []: tokens of the cache between those of images and the ids.
            ranking: Of the chunk's image tokens; without its state.
            state: Of the ranking.
        """
        paid = attention_of_actions(
            self.model, params, decoded.ids[None], decoded.count[None], cache,
            (ranking.count + length)[None], ranking.rank.shape[0])
        return self.pruner.attend(state, ranking, paid[0])


def kept_by_camera(kept: tuple[np.ndarray, np.ndarray] | None, cameras: Iterable[str],
                   grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return what InferenceStats.kept is.

    Args:
        kept: Rank and count of a Ranking of the tokens of the cameras that are there; None where
            nothing was pruned.
        cameras: Their keys.
        grid: Tokens down and across a picture.
    """
    keys = sorted(cameras)
    if kept is None:
        return dict.fromkeys(keys, np.ones(grid, bool))
    rank, count = kept
    return dict(zip(keys, (rank < count).reshape(-1, *grid), strict=True))
