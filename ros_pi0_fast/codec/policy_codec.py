"""Between observations and model ids, and between model ids and actions: the whole way.

Order of the steps as in openpi's policies: delta actions, normalize, prompt and tokens going in;
tokens, unnormalize state and actions, absolute actions coming out. Where this differs from
openpi, on purpose:

- Actions are decoded from ids; openpi writes all ids as text, cuts it at "Action: " and "|", and
  encodes it again. The result is equal wherever the sequence is well formed. As there, what
  precedes "Action: ", what follows "|" or EOS, and blanks around the ids do not count.
- What is malformed raises MalformedChunkError; openpi returns zeros, skips ids that it does not
  know or that are padding, and turns a character cut apart into a coefficient above 65,000.
- A prompt or example longer than max_token_len raises; openpi cuts its end off.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ros_pi0_fast.codec.contract import (
    CONTRACT_FILE,
    OPENPI_FIRST_TOKEN_OFFSET,
    ContractError,
    PolicyContract,
    check_contract,
)
from ros_pi0_fast.codec.fast import FastTokenizer, MalformedChunkError, UnencodableChunkError
from ros_pi0_fast.codec.grammar import FastGrammar
from ros_pi0_fast.codec.normalize import NormStats
from ros_pi0_fast.codec.prompt import ACTION_PREFIX, END_MARK, TextTokenizer, format_prompt
from ros_pi0_fast.codec.resize import resize_with_pad
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.codec.transforms import pad_to, to_absolute, to_delta
from ros_pi0_fast.types import Observation

TEXT_TOKENIZER_FILE = 'paligemma_tokenizer.model'
FAST_TOKENIZER_FOLDER = 'fast_tokenizer'


class ObservationError(ValueError):
    """An observation that does not fit the robot profile; the message says in what."""


@dataclass(frozen=True, kw_only=True)
class EncodedObservation:
    """An observation as the model takes it."""

    images: Mapping[str, np.ndarray]
    """Model image key -> uint8 [h, w, 3] as the camera gave it, for cameras that exist."""
    prompt_ids: np.ndarray
    """int32 [t], bos first, not padded."""
    normalized_state: np.ndarray
    """float32 [state_dim]."""


@dataclass(frozen=True, kw_only=True)
class TrainingExample:
    """An observation with the actions to learn; token arrays are [max_token_len]."""

    images: Mapping[str, np.ndarray]
    """Model image key -> uint8 [h, w, 3] of the profile's image_size, for cameras that exist."""
    tokens: np.ndarray
    """int32: prompt, 'Action: ', FAST ids, '|', EOS, padding."""
    token_mask: np.ndarray
    """bool: not padding."""
    ar_mask: np.ndarray
    """int32: 1 where attention is causal, from 'Action: ' on."""
    loss_mask: np.ndarray
    """bool: the ids to learn, from 'Action: ' on."""


class PolicyCodec:
    """Encodes observations for one robot and one checkpoint, and decodes the model's answers."""

    def __init__(self, *, profile: RobotProfile, contract: PolicyContract | None,
                 norm_stats: NormStats, text: TextTokenizer, fast: FastTokenizer):
        """Check that all fit together; a contract of None stands for an openpi checkpoint.

        Raises:
            ContractError: they do not.
        """
        check_contract(contract, profile, norm_stats, text, fast)
        self.profile = profile
        self.norm_stats = norm_stats
        self.text = text
        self.fast = fast
        self.contract = contract or PolicyContract.from_profile(
            profile, text_vocab_size=text.vocab_size,
            first_token_offset=OPENPI_FIRST_TOKEN_OFFSET)
        self.action_prefix_ids = text.encode(ACTION_PREFIX)
        """int32: ids of 'Action: '."""
        self.end_ids = text.encode(END_MARK, eos=True)
        """int32: ids of '|', then EOS."""
        self._highest = text.vocab_size - 1 - self.contract.fast_skip_tokens
        try:
            self.grammar = FastGrammar.build(fast.id_bytes, profile.horizon * profile.action_dim)
        except ValueError as error:
            raise ContractError(f'FAST tokenizer {fast.source or ""}: {error} '
                                f'(profile {profile.source})') from error

    @classmethod
    def from_checkpoint(cls, folder: str | Path, profile: RobotProfile, *,
                        text_tokenizer: str | Path | TextTokenizer | None = None,
                        fast_tokenizer: str | Path | FastTokenizer | None = None) -> PolicyCodec:
        """Read everything but the weights from a checkpoint folder.

        Args:
            folder: Checkpoint of this package or of openpi.
            profile: The robot.
            text_tokenizer: Instead of assets/paligemma_tokenizer.model.
            fast_tokenizer: Instead of assets/fast_tokenizer.

        Raises:
            ContractError, NormStatsError, TextTokenizerError, FastTokenizerError: naming the file.
        """
        assets = Path(folder) / 'assets'
        contract_file = Path(folder) / CONTRACT_FILE
        contract = PolicyContract.load(contract_file) if contract_file.exists() else None
        stats_file = assets / profile.asset_id / 'norm_stats.json'
        if not stats_file.is_file():
            found = sorted(str(p.parent.relative_to(assets))
                           for p in assets.glob('**/norm_stats.json'))
            raise ContractError(f'asset_id: profile {profile.source} says {profile.asset_id}, '
                                f'checkpoint {assets} has {", ".join(found) or "no statistics"}')
        text = assets / TEXT_TOKENIZER_FILE if text_tokenizer is None else text_tokenizer
        fast = assets / FAST_TOKENIZER_FOLDER if fast_tokenizer is None else fast_tokenizer
        return cls(
            profile=profile, contract=contract, norm_stats=NormStats.load(stats_file),
            text=text if isinstance(text, TextTokenizer) else TextTokenizer(text),
            fast=fast if isinstance(fast, FastTokenizer) else FastTokenizer.from_folder(fast))

    def encode(self, observation: Observation) -> EncodedObservation:
        """Check and encode an observation.

        Raises:
            ObservationError: a camera is missing, unknown or no uint8 [h, w, 3]; the state has
                another length or is not finite; the prompt is too long.
        """
        self._check_images(observation.images)
        state = np.asarray(observation.state)
        if state.shape != (self.profile.state_dim,):
            raise ObservationError(f'state: found shape {list(state.shape)}, '
                                   f'expected [{self.profile.state_dim}]')
        if not np.isfinite(state).all():
            joint = self.profile.state.joints[int(np.flatnonzero(~np.isfinite(state))[0])]
            raise ObservationError(f'state: found NaN or infinity for {joint}, expected a number')
        normalized = self.norm_stats.state.normalize(state, self.profile.normalization)
        ids = self.text.encode(format_prompt(observation.instruction, normalized), bos=True)
        if len(ids) > self.profile.max_token_len:
            raise ObservationError(f'instruction: the prompt has {len(ids)} tokens, expected at '
                                   f'most {self.profile.max_token_len} (max_token_len)')
        return EncodedObservation(
            images={key: observation.images[key] for key in sorted(self.profile.cameras)},
            prompt_ids=ids, normalized_state=normalized.astype(np.float32))

    def encode_example(self, observation: Observation, actions: np.ndarray) -> TrainingExample:
        """Encode what is to be learned from an observation.

        Args:
            observation: What the robot saw.
            actions: Float [horizon, action_dim] in robot units, absolute.

        Raises:
            ObservationError: as in `encode`.
            UnencodableChunkError: the FAST tokenizer loses coefficients of these actions, or the
                ids do not fit in max_token_len. Nothing is to be learned from such an example.
        """
        encoded = self.encode(observation)
        actions = np.asarray(actions)
        shape = (self.profile.horizon, self.profile.action_dim)
        if actions.shape != shape:
            raise ValueError(f'actions: found shape {actions.shape}, expected {shape}')
        targets = self.fast_to_model(self.fast.encode(
            self.normalize_actions(actions, observation.state), strict=True))
        learned = np.concatenate([self.action_prefix_ids, targets, self.end_ids])
        tokens = np.concatenate([encoded.prompt_ids, learned])
        length = self.profile.max_token_len
        if len(tokens) > length:
            raise UnencodableChunkError(
                f'example: found {len(encoded.prompt_ids)} prompt tokens and {len(learned)} to '
                f'learn, expected {length} (max_token_len) in all')
        is_learned = np.arange(length) >= len(encoded.prompt_ids)
        is_learned &= np.arange(length) < len(tokens)
        height, width = self.profile.image_size
        return TrainingExample(
            images={k: resize_with_pad(v, height, width) for k, v in encoded.images.items()},
            tokens=pad_to(tokens, length), token_mask=np.arange(length) < len(tokens),
            ar_mask=is_learned.astype(np.int32), loss_mask=is_learned)

    def normalize_actions(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Map absolute actions [T, D] in robot units to what the model predicts."""
        deltas = to_delta(actions, np.asarray(state), self.profile.actions.delta_mask)
        return self.norm_stats.actions.normalize(deltas, self.profile.normalization)

    def decode(self, model_ids: np.ndarray, encoded: EncodedObservation) -> np.ndarray:
        """Decode all ids that the model generated to actions in robot units.

        Args:
            model_ids: Int [n], with or without 'Action: ', '|', EOS and what follows them.
            encoded: The observation that they answer.

        Returns:
            float32 [horizon, action_dim]; absolute where the profile's mode is delta.

        Raises:
            MalformedChunkError: with the reason.
        """
        fast_ids = self.model_to_fast(self.chunk_ids(model_ids))
        normalized = self.fast.decode(fast_ids, self.profile.horizon, self.profile.action_dim)
        mode = self.profile.normalization
        # As in openpi, the state is the one that the model was given: rounded to float32.
        state = self.norm_stats.state.unnormalize(encoded.normalized_state, mode)
        actions = self.norm_stats.actions.unnormalize(normalized, mode)
        return to_absolute(actions, state, self.profile.actions.delta_mask).astype(np.float32)

    def chunk_ids(self, model_ids: np.ndarray) -> np.ndarray:
        """Cut the run of model ids that stand for FAST ids out of what the model generated.

        Raises:
            MalformedChunkError: there is something else before or after it.
        """
        ids = np.asarray(model_ids)
        ids = ids[:_first(ids == self.text.eos_id)]
        ids = ids[:len(ids) - _first(ids[::-1] != self.text.pad_id)]
        start = _first(self.is_fast(ids))
        before, rest = ids[:start], ids[start:]
        stop = _first(~self.is_fast(rest))
        chunk, after = rest[:stop], rest[stop:]
        _, mark, between = self._text(before).partition(ACTION_PREFIX)
        if len(before) and (not mark or between.strip()):
            raise MalformedChunkError(f'found {reprlib.repr(self._text(before))} before the FAST '
                                      f'ids, expected {ACTION_PREFIX!r}')
        tail = self._text(after).strip()
        if tail and not tail.startswith(END_MARK):
            raise MalformedChunkError(
                f'id {int(after[0])} ({self._text(after[:1])!r}) at {start + stop} is no FAST id '
                f'({self._highest - self.fast.vocab_size + 1} to {self._highest}), '
                f'after {len(chunk)} of them')
        return chunk

    def is_fast(self, model_ids: np.ndarray) -> np.ndarray:
        """Tell which model ids stand for FAST ids, bool."""
        fast_ids = self._highest - np.asarray(model_ids)
        return (fast_ids >= 0) & (fast_ids < self.fast.vocab_size)

    def fast_to_model(self, ids: np.ndarray) -> np.ndarray:
        """Map FAST ids to model ids, int32."""
        return (self._highest - np.asarray(ids)).astype(np.int32)

    def model_to_fast(self, ids: np.ndarray) -> np.ndarray:
        """Map model ids to FAST ids, int32; see `is_fast` for those that have one."""
        return (self._highest - np.asarray(ids)).astype(np.int32)

    def _text(self, ids: np.ndarray) -> str:
        """Write ids as text; those that are none at all, as their numbers."""
        if ((ids < 0) | (ids >= self.text.vocab_size)).any():
            return str(ids.tolist())
        return self.text.decode(ids)

    def _check_images(self, images: Mapping[str, np.ndarray]) -> None:
        cameras = self.profile.cameras
        for key in sorted(cameras.keys() | images.keys()):
            if key not in images:
                raise ObservationError(f'images: found no {key}, expected {", ".join(cameras)}')
            if key not in cameras:
                raise ObservationError(f'images: found {key}, expected {", ".join(cameras)}')
            image = np.asarray(images[key])
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise ObservationError(f'images: {key}: found {image.dtype} {list(image.shape)}, '
                                       'expected uint8 [h, w, 3]')


def _first(found: np.ndarray) -> int:
    """Return the index of the first True, or the length where there is none."""
    return int(np.argmax(found)) if found.any() else len(found)
