"""Drafters on disk: a folder in the checkpoint of the policy that they are for.

    drafters/<name>.npz     arrays: weights in float16, tables in int32
    drafters/<name>.json    sizes, and how it was made

`name` is one of those of NAMES. Nothing but arrays and JSON is read.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.draft_model import DraftModel, init_draft, to_fast_form
from ros_pi0_fast.accel.drafter_head import HeadDrafter, HeadSize, init_head
from ros_pi0_fast.accel.drafter_ngram import NgramDrafter
from ros_pi0_fast.accel.drafters import Drafter
from ros_pi0_fast.model.config import GemmaConfig
from ros_pi0_fast.model.pi0_fast import Pi0Fast

FOLDER = 'drafters'


class DrafterError(ValueError):
    """A drafter cannot be used; the message names the file, what it found and what it expected."""


def small_model(model: Pi0Fast, gemma: GemmaConfig) -> Pi0Fast:
    """Return the target with another decoder."""
    return dataclasses.replace(model, config=dataclasses.replace(model.config, gemma=gemma))


def save_drafter(folder: Path, name: str, arrays: Mapping[str, np.ndarray],
                 sizes: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    """Write a drafter.

    Args:
        folder: FOLDER of the policy's checkpoint.
        name: One of NAMES.
        arrays: Its weights or tables, see `flatten`.
        sizes: What makes it fit: see the builder of the name.
        made: How it was made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f'{name}.tmp'
    with temporary.open('wb') as file:
        np.savez(file, **{key: _narrowed(np.asarray(value)) for key, value in arrays.items()})
    temporary.replace(folder / f'{name}.npz')
    (folder / f'{name}.json').write_text(
        json.dumps({'sizes': dict(sizes), 'made': dict(made)}, indent=2) + '\n', 'utf-8')


def _narrowed(array: np.ndarray) -> np.ndarray:
    """Return weights as they are kept: a guess need not be more precise."""
    return array.astype(np.float16) if array.dtype == np.float32 else array


def flatten(params: Any) -> dict[str, Any]:
    """Return a tree's leaves by path: 'PaliGemma/llm/final_norm/scale'."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {'/'.join(str(getattr(key, 'key', key)) for key in path): leaf
            for path, leaf in leaves}


def load_drafters(folder: Path, model: Pi0Fast, columns: int) -> dict[str, Drafter]:
    """Read the drafters of a checkpoint.

    Args:
        folder: FOLDER of the policy's checkpoint; it need not exist.
        model: The policy's network.
        columns: FAST ids.

    Returns:
        Drafters by name.

    Raises:
        DrafterError: a file is damaged, or is for another policy.
    """
    return {name: _load(folder, name, model, columns) for name in NAMES
            if (folder / f'{name}.json').exists()}


def _load(folder: Path, name: str, model: Pi0Fast, columns: int) -> Drafter:
    path = folder / f'{name}.json'
    try:
        sizes = json.loads(path.read_text('utf-8'))['sizes']
        with np.load(folder / f'{name}.npz', allow_pickle=False) as file:
            arrays = {key: _widened(file[key]) for key in file.files}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DrafterError(f'{path}: is no drafter: {error}') from error
    try:
        return NAMES[name](arrays, sizes, model, columns)
    except (KeyError, TypeError, ValueError) as error:
        raise DrafterError(f'{path}: is for another policy: {error}') from error


def _widened(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array, jnp.float32 if array.dtype == np.float16 else array.dtype)


def _checked(arrays: Mapping[str, jax.Array], expected: Any) -> Any:
    """Return the tree `expected`, of shapes, with arrays for leaves."""
    shapes = {key: leaf.shape for key, leaf in flatten(expected).items()}
    found = {key: array.shape for key, array in arrays.items()}
    wrong = sorted(key for key in shapes.keys() | found.keys()
                   if shapes.get(key) != found.get(key))
    if wrong:
        raise ValueError(f'{wrong[0]}: found {found.get(wrong[0])}, expected '
                         f'{shapes.get(wrong[0])}')
    return jax.tree.unflatten(jax.tree.structure(expected), [arrays[key] for key in shapes])


def _head(arrays: Mapping[str, jax.Array], sizes: Mapping[str, Any], model: Pi0Fast,
          columns: int) -> HeadDrafter:
    gemma, config = model.config.gemma, model.config
    size = HeadSize(columns=columns, coefficients=config.action_dim * config.action_horizon,
                    **sizes)
    expected = jax.eval_shape(functools.partial(init_head, gemma, size), jax.random.key(0))
    return HeadDrafter(weights=_checked(arrays, expected), gemma=gemma,
                       first_token_offset=model.config.first_token_offset)


def _model(arrays: Mapping[str, jax.Array], sizes: Mapping[str, Any], model: Pi0Fast,
           columns: int) -> DraftModel:
    del columns
    small = small_model(model, GemmaConfig(**sizes['gemma']))
    expected = jax.eval_shape(functools.partial(init_draft, small, model.config.gemma.width),
                              jax.random.key(0))
    if small.config.gemma.vocab_size != model.config.gemma.vocab_size:
        raise ValueError(f'vocab_size: found {small.config.gemma.vocab_size}, expected '
                         f'{model.config.gemma.vocab_size}')
    return DraftModel(params=to_fast_form(small, _checked(arrays, expected)), model=small)


def _ngram(arrays: Mapping[str, jax.Array], sizes: Mapping[str, Any], model: Pi0Fast,
           columns: int) -> NgramDrafter:
    del model
    if sizes['columns'] != columns:
        raise ValueError(f'columns: found {sizes["columns"]}, expected {columns}')
    levels = range(len(arrays) // 2)
    return NgramDrafter(keys=tuple(arrays[f'keys{level}'] for level in levels),
                        following=tuple(arrays[f'following{level}'] for level in levels),
                        base=columns + 1)


NAMES: Mapping[str, Callable[..., Drafter]] = {'head': _head, 'model': _model, 'ngram': _ngram}
"""Drafters that are files, and what makes them of their arrays."""
