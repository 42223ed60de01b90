"""Parity of parameter paths, shapes and dtypes, by abstract evaluation: nothing is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from ros_pi0_fast.evaluation.parity_report import FolderError, Row, entry, read_json
from ros_pi0_fast.model.config import config_from_params
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.weights.layout import LORA
from ros_pi0_fast.weights.openpi import flatten


def is_table(path: Path) -> bool:
    """Tell whether a file is a parameter table like those of golden/param_tables."""
    try:
        return isinstance(read_json(path).get('params'), list)
    except FolderError:
        return False


def table_rows(path: Path) -> Iterator[Row]:
    """Compare our parameter tree with a table's.

    Raises:
        FolderError: the table cannot be read, or lacks the parameters that tell the sizes.
    """
    table = {leaf['path']: jax.ShapeDtypeStruct(leaf['shape'], leaf['dtype'])
             for leaf in entry(read_json(path), 'params', path)}
    tree: dict[str, Any] = {}
    for name, leaf in table.items():
        node = tree
        *parents, last = name.split('/')
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    try:
        config = config_from_params(tree, action_dim=1, action_horizon=1, max_token_len=1)
    except (KeyError, ValueError) as error:
        raise FolderError(f'{path}: no sizes can be derived from it: {error}') from error
    ours = flatten(jax.eval_shape(Pi0Fast(config).init, jax.random.key(0)))
    ours |= _lora_factors(ours, table)
    title = f'{path.stem}: '
    odd = sorted(set(ours) ^ set(table))
    yield Row(name=f'{title}paths of {len(table)} parameters', error=len(odd), tolerance=0.0,
              note=', '.join(odd))
    for what in ('shape', 'dtype'):
        wrong = [name for name in sorted(set(ours) & set(table))
                 if getattr(ours[name], what) != getattr(table[name], what)]
        yield Row(name=f'{title}{what}s', error=len(wrong), tolerance=0.0, note=', '.join(wrong))
    count = sum(math.prod(leaf.shape) for leaf in ours.values())
    told = int(entry(read_json(path), 'num_params', path))
    yield Row(name=f'{title}number of weights', error=abs(count - told), tolerance=0.0,
              note=f'{count:,}')


def _lora_factors(ours: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """Return the low-rank factors that go with our weights, for the rank that the table has."""
    factors = {}
    for name, (first, second) in LORA.items():
        if name in ours and first in table:
            *batch, rows, columns = ours[name].shape
            rank = table[first].shape[-1]
            factors[first] = jax.ShapeDtypeStruct((*batch, rows, rank), ours[name].dtype)
            factors[second] = jax.ShapeDtypeStruct((*batch, rank, columns), ours[name].dtype)
    return factors
