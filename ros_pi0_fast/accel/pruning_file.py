"""A trained pruner on disk: a folder beside the parameters of the policy that it is for.

    pruner/pruner.json    sizes, and how it was made
    pruner/weights.npz    float16, which changes scores by less than 0.1 %
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ros_pi0_fast.accel.pruning import PruningError
from ros_pi0_fast.accel.pruning_scores import LearnedScorer

FOLDER = 'pruner'
DECODER = 'decoder.npz'
_SIZES = ('heads', 'head_dim', 'hidden')
_SWITCHES = ('semantics', 'space')


def save_pruner(folder: Path, scorer: LearnedScorer, weights: Mapping[str, np.ndarray],
                summary: Mapping[str, Any], decoder: Mapping[str, Any] | None = None) -> None:
    """Write a pruner.

    Args:
        folder: FOLDER of the policy's checkpoint.
        scorer: Whose weights they are.
        weights: See LearnedScorer.init.
        summary: How it was made.
        decoder: The policy's PaliGemma/llm as it learned along, stacked; None where it did not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fields = dataclasses.asdict(scorer)
    tokens, width = len(weights['place_bias']), len(weights['query'])
    record = {'tokens': tokens, 'width': width,
              'scorer': {name: fields[name] for name in _SIZES + _SWITCHES}, 'made': dict(summary)}
    _save(folder / 'weights.npz', weights)
    (folder / DECODER).unlink(missing_ok=True)
    if decoder is not None:
        _save(folder / DECODER, flatten_dict(decoder, sep='/'))
    (folder / 'pruner.json').write_text(json.dumps(record, indent=2) + '\n', 'utf-8')


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as float16; the file appears whole or not at all."""
    temporary = path.with_suffix('.tmp')
    with temporary.open('wb') as file:
        np.savez(file, **{name: np.asarray(value, np.float16) for name, value in arrays.items()})
    temporary.replace(path)


def load_decoder(folder: Path, decoder: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the decoder that learned along with a pruner.

    Args:
        folder: Of the pruner; it need not exist.
        decoder: The policy's own PaliGemma/llm, stacked.

    Returns:
        The like of it; None where there is none.

    Raises:
        PruningError: it cannot be read, or is of another policy.
    """
    path, own = folder / DECODER, flatten_dict(decoder, sep='/')
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise PruningError(f'{path}: is no decoder: {error}') from error
    for name in sorted(own.keys() | found.keys()):
        shapes = [tree[name].shape if name in tree else None for tree in (found, own)]
        if shapes[0] != shapes[1]:
            raise PruningError(f'{path}: {name}: shape {shapes[0]}, expected {shapes[1]} as of '
                               'the policy')
    return unflatten_dict({name: array.astype(own[name].dtype)
                           for name, array in found.items()}, sep='/')


def load_pruner(folder: Path, *, tokens: int, width: int,
                ) -> tuple[LearnedScorer, dict[str, np.ndarray]]:
    """Read a pruner.

    Args:
        folder: Of the pruner.
        tokens: Image tokens of the policy, of all cameras.
        width: Of its decoder.

    Returns:
        The scorer and its weights, float32.

    Raises:
        PruningError: the folder has no pruner, or it is one for another policy.
    """
    path = folder / 'pruner.json'
    try:
        record = json.loads(path.read_text('utf-8'))
        scorer = LearnedScorer(**record['scorer'])
        with np.load(folder / 'weights.npz', allow_pickle=False) as file:
            weights = {name: file[name].astype(np.float32) for name in file.files}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PruningError(f'{folder}: is no pruner: {error}') from error
    for name, expected in (('tokens', tokens), ('width', width)):
        if record.get(name) != expected:
            raise PruningError(f'{path}: {name} is {record.get(name)}, expected {expected} as of '
                               'the policy')
    expected = _shapes(scorer, tokens, width)
    found = {name: value.shape for name, value in weights.items()}
    if found != expected:
        raise PruningError(f'{folder / "weights.npz"}: shapes {found}, expected {expected}')
    return scorer, weights


def _shapes(scorer: LearnedScorer, tokens: int, width: int) -> dict[str, tuple[int, ...]]:
    import jax

    shapes = jax.eval_shape(lambda key: scorer.init(key, tokens, width), jax.random.key(0))
    return {name: value.shape for name, value in shapes.items()}
