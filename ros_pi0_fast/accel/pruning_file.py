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

from ros_pi0_fast.accel.pruning import PruningError
from ros_pi0_fast.accel.pruning_scores import LearnedScorer

FOLDER = 'pruner'
_SIZES = ('heads', 'head_dim', 'hidden')
_SWITCHES = ('semantics', 'space')


def save_pruner(folder: Path, scorer: LearnedScorer, weights: Mapping[str, np.ndarray],
                summary: Mapping[str, Any]) -> None:
    """Write a pruner.

    Args:
        folder: FOLDER of the policy's checkpoint.
        scorer: Whose weights they are.
        weights: See LearnedScorer.init.
        summary: How it was made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fields = dataclasses.asdict(scorer)
    tokens, width = len(weights['place_bias']), len(weights['query'])
    record = {'tokens': tokens, 'width': width,
              'scorer': {name: fields[name] for name in _SIZES + _SWITCHES}, 'made': dict(summary)}
    temporary = folder / 'weights.tmp'
    with temporary.open('wb') as file:
        np.savez(file, **{name: np.asarray(value, np.float16) for name, value in weights.items()})
    temporary.replace(folder / 'weights.npz')
    (folder / 'pruner.json').write_text(json.dumps(record, indent=2) + '\n', 'utf-8')


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
