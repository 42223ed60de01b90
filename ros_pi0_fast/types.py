"""What crosses the rooms: observations in, action chunks out. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What the robot saw and felt at one instant, in robot units."""

    images: Mapping[str, np.ndarray]
    """Model image key -> uint8 RGB [h, w, 3]. Cameras that the robot lacks are not in it."""
    state: np.ndarray
    """float32 [state_dim], in the order and units of the robot profile."""
    instruction: str
    """What to do, in plain words."""
    stamp_ns: int = 0
    """Time of the oldest image in it, nanoseconds of the node's clock."""


@dataclass(frozen=True, kw_only=True)
class InferenceStats:
    """How one chunk came about. Times are milliseconds of wall clock, after the device is done."""

    variant: str = ''
    preprocess_ms: float = 0.0
    vision_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    postprocess_ms: float = 0.0
    total_ms: float = 0.0
    prompt_tokens: int = 0
    """Tokens of the text prompt."""
    prefix_tokens: int = 0
    """Tokens that the decoder prefills: image tokens and prompt."""
    generated_tokens: int = 0
    """Ids chosen for this chunk, the constant ones included."""
    target_passes: int = 0
    """Times the weights of the decoder were read after the prefill."""
    draft_length: int = 0
    """Ids that were guessed for each of these passes; 0: without speculation."""
    drafted_tokens: int = 0
    """Ids guessed in all, for places that there were."""
    accepted_tokens: int = 0
    """Guessed ids that were accepted."""
    acceptance: float = 0.0
    """Running probability that a guessed id is accepted, after those before it."""
    kept: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Camera of the robot -> bool [rows, columns]: the decoder saw this token of its picture; all
    where nothing is pruned."""

    @property
    def kept_tokens(self) -> dict[str, int]:
        """How many tokens of each camera the decoder saw."""
        return {key: int(mask.sum()) for key, mask in self.kept.items()}


@dataclass(frozen=True, kw_only=True)
class ActionChunk:
    """What the policy answers to one observation, in robot units."""

    actions: np.ndarray
    """float32 [horizon, action_dim]; [0, action_dim] when not valid. Never made up."""
    valid: bool
    reason: str = ''
    """Why the chunk is not valid; empty when it is."""
    stamp_ns: int = 0
    """Stamp of the observation that it answers."""
    token_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """int32 [n]: the model ids that it was decoded from."""
    stats: InferenceStats = field(default_factory=InferenceStats)
