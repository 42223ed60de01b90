"""What a checkpoint was trained for, and whether a robot profile agrees with it.

A checkpoint of this package says it in policy.json. openpi's do not; of them is checked what
their files tell: lengths of the statistics, vocabulary, image size, and what all pi0-FAST
checkpoints of openpi have in common (quantile normalization, first token offset 1).
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ros_pi0_fast.codec.fast import FastTokenizer
from ros_pi0_fast.codec.normalize import NormStats, Stats
from ros_pi0_fast.codec.prompt import ACTION_PREFIX, END_MARK, FAST_SKIP_TOKENS, TextTokenizer
from ros_pi0_fast.codec.robot_profile import RobotProfile

CONTRACT_FILE = 'policy.json'
OPENPI_FIRST_TOKEN_OFFSET = 1
_PADDING = 1e-6
"""Quantiles of padding: openpi's histograms widen a constant zero by 1e-10."""


class ContractError(ValueError):
    """Profile and checkpoint do not fit; `mismatches` has a line for each, naming both sides."""

    def __init__(self, *mismatches: str):
        super().__init__(*mismatches)
        self.mismatches = mismatches

    def __str__(self) -> str:
        return '\n'.join(self.mismatches)


class ModelFacts(Protocol):
    """What is read of a model's configuration (model.config.Pi0FastConfig has it)."""

    action_dim: int
    action_horizon: int
    camera_keys: tuple[str, ...]
    first_token_offset: int
    gemma: Any
    """Has vocab_size, the rows of the embedding."""
    siglip: Any
    """Has patch_size and grid, both (height, width)."""


@dataclass(frozen=True, kw_only=True)
class PolicyContract:
    """What a checkpoint expects of whoever runs it; stored as policy.json in its folder."""

    robot: str
    """Name of the profile that it was trained with."""
    asset_id: str
    normalization: str
    """'quantile' or 'z-score'."""
    state_dim: int
    action_dim: int
    action_horizon: int
    delta_mask: tuple[bool, ...]
    """Per action dimension: predicted relative to the state at the chunk's start."""
    camera_keys: tuple[str, ...]
    """In the order given to the model, sorted."""
    absent_cameras: tuple[str, ...]
    """Those of them that were black in training."""
    max_token_len: int
    image_size: tuple[int, int]
    """(height, width)."""
    fast_skip_tokens: int = FAST_SKIP_TOKENS
    """FAST id t is model id text_vocab_size - 1 - fast_skip_tokens - t."""
    first_token_offset: int
    """Position of the first generated token minus the prompt's length: 1 is openpi's inference,
    0 its training."""
    text_vocab_size: int
    source: Path | None = field(default=None, compare=False)
    """File that it was read from; not stored."""

    @classmethod
    def from_profile(cls, profile: RobotProfile, *, text_vocab_size: int, first_token_offset: int,
                     fast_skip_tokens: int = FAST_SKIP_TOKENS) -> PolicyContract:
        """Write down what a policy trained with this profile expects."""
        return cls(
            robot=profile.name, asset_id=profile.asset_id, normalization=profile.normalization,
            state_dim=profile.state_dim, action_dim=profile.action_dim,
            action_horizon=profile.horizon, delta_mask=profile.actions.delta_mask,
            camera_keys=profile.camera_keys, absent_cameras=tuple(sorted(profile.absent_cameras)),
            max_token_len=profile.max_token_len, image_size=profile.image_size,
            fast_skip_tokens=fast_skip_tokens, first_token_offset=first_token_offset,
            text_vocab_size=text_vocab_size)

    @classmethod
    def load(cls, path: str | Path) -> PolicyContract:
        """Read a policy.json, or the one in a folder.

        Raises:
            ContractError: not readable, or a key is unknown, missing or of the wrong type.
        """
        path = Path(path)
        path = path / CONTRACT_FILE if path.is_dir() else path
        try:
            data = json.loads(path.read_text('utf-8'))
        except OSError as error:
            raise ContractError(f'{path}: cannot be read: {error.strerror}') from error
        except ValueError as error:
            raise ContractError(f'{path}: is not JSON: {error}') from error
        if not isinstance(data, dict):
            raise ContractError(f'{path}: found {reprlib.repr(data)}, expected a mapping')
        return cls(**_parse(path, data), source=path)

    def save(self, path: str | Path) -> None:
        """Write policy.json to a file, or into a folder."""
        path = Path(path)
        path = path if path.suffix == '.json' else path / CONTRACT_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {key: value for key, value in asdict(self).items() if key != 'source'}
        path.write_text(json.dumps(content, indent=2) + '\n', 'utf-8')


def check_contract(contract: PolicyContract | None, profile: RobotProfile, norm_stats: NormStats,
                   text: TextTokenizer, fast: FastTokenizer,
                   model_config: ModelFacts | None = None) -> None:
    """Check that a robot profile and everything in a checkpoint fit together.

    Args:
        contract: The checkpoint's policy.json; None for an openpi checkpoint, which has none.
        profile: The robot.
        norm_stats: The checkpoint's statistics for the profile's asset_id.
        text: Text tokenizer.
        fast: FAST tokenizer.
        model_config: Configuration derived from the parameters; None to leave them out.

    Raises:
        ContractError: with one line for each mismatch, naming both sides.
    """
    mismatches = [*_against_contract(contract, profile, text),
                  *_against_stats(profile, norm_stats), *_among_tokenizers(contract, text, fast)]
    if model_config is not None:
        mismatches += _against_model(contract, profile, text, model_config)
    if mismatches:
        raise ContractError(*mismatches)


def _against_contract(contract: PolicyContract | None, profile: RobotProfile,
                      text: TextTokenizer) -> Iterator[str]:
    where = _name(contract)
    if contract is None:
        # What is true of every openpi pi0-FAST checkpoint, for it has no file to say so.
        pairs = [('normalization', profile.normalization, 'quantile')]
        offset = OPENPI_FIRST_TOKEN_OFFSET
    else:
        wanted = PolicyContract.from_profile(
            profile, text_vocab_size=text.vocab_size, first_token_offset=0)
        pairs = [(key, getattr(wanted, key), getattr(contract, key)) for key in (
            'asset_id', 'normalization', 'state_dim', 'action_dim', 'action_horizon',
            'delta_mask', 'camera_keys', 'max_token_len', 'image_size')]
        offset = contract.first_token_offset
    if profile.first_token_offset is not None:
        pairs.append(('first_token_offset', profile.first_token_offset, offset))
    for key, ours, theirs in pairs:
        if ours != theirs:
            yield (f'{key}: profile {profile.source} says {_show(ours)}, '
                   f'{where} says {_show(theirs)}')
    if contract is None:
        return
    for key in sorted(set(contract.absent_cameras) & set(profile.cameras)):
        yield (f'absent_cameras: profile {profile.source} has camera {key}, '
               f'{where} says it was absent in training')
    if text.vocab_size != contract.text_vocab_size:
        yield (f'text_vocab_size: tokenizer {text.source} has {text.vocab_size}, '
               f'{where} says {contract.text_vocab_size}')


def _against_stats(profile: RobotProfile, norm_stats: NormStats) -> Iterator[str]:
    where = f'checkpoint {norm_stats.source or "norm_stats.json"}'
    for key, stats, dim in (('state', norm_stats.state, profile.state_dim),
                            ('actions', norm_stats.actions, profile.action_dim)):
        name = 'state_dim' if key == 'state' else 'action_dim'
        if stats.dim < dim or not _is_padding(stats, dim):
            yield (f'{name}: profile {profile.source} says {dim}, '
                   f'{where} has {stats.dim} numbers in norm_stats.{key}')
        if profile.normalization == 'quantile' and (stats.q01 is None or stats.q99 is None):
            yield (f'normalization: profile {profile.source} says quantile, '
                   f'{where} has no q01 and q99 in norm_stats.{key}')


def _is_padding(stats: Stats, dim: int) -> bool:
    """Tell whether all past dim is the constant zero with which openpi pads data."""
    vectors = (stats.mean, stats.std, stats.q01, stats.q99)
    return all(v is None or bool((np.abs(v[dim:]) <= _PADDING).all()) for v in vectors)


def _among_tokenizers(contract: PolicyContract | None, text: TextTokenizer,
                      fast: FastTokenizer) -> Iterator[str]:
    skip = FAST_SKIP_TOKENS if contract is None else contract.fast_skip_tokens
    highest = text.vocab_size - 1 - skip
    lowest = highest - fast.vocab_size + 1
    where = f'FAST tokenizer {fast.source or ""} has {fast.vocab_size} ids'
    if lowest < 0:
        yield (f'vocabulary: {where}, text tokenizer {text.source} has room for {highest + 1} '
               f'({text.vocab_size} pieces less {skip} at the end)')
        return
    taken = [*text.encode(ACTION_PREFIX).tolist(), *text.encode(END_MARK).tolist(), text.eos_id]
    clashing = [text.piece(i) for i in taken if lowest <= i <= highest]
    if clashing:
        yield (f'vocabulary: {where}, which are model ids {lowest} to {highest}, '
               f'text tokenizer {text.source} needs {_show(clashing)} among them')


def _against_model(contract: PolicyContract | None, profile: RobotProfile, text: TextTokenizer,
                   model: ModelFacts) -> Iterator[str]:
    if text.vocab_size != model.gemma.vocab_size:
        yield (f'vocabulary: tokenizer {text.source} has {text.vocab_size} pieces, '
               f'the checkpoint has {model.gemma.vocab_size} embedding rows')
    for key, ours, theirs in (
            ('action_dim', profile.action_dim, model.action_dim),
            ('action_horizon', profile.horizon, model.action_horizon),
            ('camera_keys', profile.camera_keys, tuple(model.camera_keys))):
        if ours != theirs:
            yield (f'{key}: profile {profile.source} says {_show(ours)}, '
                   f'the model configuration says {_show(theirs)}')
    grid = tuple(np.floor_divide(profile.image_size, model.siglip.patch_size).tolist())
    if grid != tuple(model.siglip.grid):
        yield (f'image_size: profile {profile.source} says {_show(profile.image_size)}, '
               f'{_show(grid)} patches of {_show(model.siglip.patch_size)}, '
               f'the checkpoint has position embeddings for {_show(model.siglip.grid)}')
    offset = OPENPI_FIRST_TOKEN_OFFSET if contract is None else contract.first_token_offset
    if model.first_token_offset != offset:
        yield (f'first_token_offset: {_name(contract)} says {offset}, '
               f'the model configuration says {model.first_token_offset}')


def _name(contract: PolicyContract | None) -> str:
    if contract is None:
        return f'an openpi checkpoint (no {CONTRACT_FILE})'
    return f'checkpoint {contract.source or CONTRACT_FILE}'


def _show(value: object) -> str:
    return json.dumps(value) if isinstance(value, tuple | list) else str(value)


_TYPES: Mapping[str, tuple[type, type | None]] = {
    'robot': (str, None), 'asset_id': (str, None), 'normalization': (str, None),
    'delta_mask': (list, bool), 'camera_keys': (list, str), 'absent_cameras': (list, str),
    'image_size': (list, int)}
"""Type of each value that is no integer, and of its items."""


def _parse(path: Path, data: dict[str, Any]) -> dict[str, Any]:
    names = [f.name for f in fields(PolicyContract) if f.name != 'source']
    if unknown := sorted(set(data) - set(names)):
        raise ContractError(
            f'{path}: unknown key {unknown[0]!r}, expected one of {", ".join(names)}')
    result = {}
    for name in names:
        kind, item = _TYPES.get(name, (int, None))
        expected = kind.__name__ if item is None else f'list of {item.__name__}'
        if name not in data:
            raise ContractError(f'{path}: key {name!r}: found nothing, expected {expected}')
        value = data[name]
        if type(value) is not kind or (item and any(type(x) is not item for x in value)):
            raise ContractError(
                f'{path}: key {name!r}: found {reprlib.repr(value)}, expected {expected}')
        result[name] = tuple(value) if kind is list else value
    if result['first_token_offset'] not in (0, 1):
        raise ContractError(f"{path}: key 'first_token_offset': "
                            f'found {result["first_token_offset"]}, expected 0 or 1')
    if result['fast_skip_tokens'] < 0:
        raise ContractError(f"{path}: key 'fast_skip_tokens': "
                            f'found {result["fast_skip_tokens"]}, expected 0 or more')
    return result
