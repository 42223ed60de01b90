"""The arrays of an Orbax PyTree folder, opened one by one with the tensorstore below Orbax.

Orbax writes each leaf as a zarr array named in `_METADATA`, either in a database (OCDBT) or in a
folder of its own. Reading them without Orbax keeps a leaf from being in memory twice, and lets an
error name it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from ros_pi0_fast.weights.errors import CheckpointError

METADATA_FILE = '_METADATA'
OCDBT_FILE = 'manifest.ocdbt'


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One array of a checkpoint, opened."""

    name: str
    """'PaliGemma/…'"""
    store: ts.TensorStore

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return tuple(self.store.shape)

    @property
    def dtype(self) -> np.dtype:
        """As it is stored."""
        return self.store.dtype.numpy_dtype

    def nbytes(self, dtype: np.dtype | None) -> int:
        """Bytes in memory, as dtype or as stored."""
        return int(np.prod(self.shape)) * (dtype or self.dtype).itemsize


def find_params(folder: str | Path) -> Path:
    """Return the folder in which the parameters of a checkpoint are.

    Raises:
        CheckpointError: there is none; the message says what is there instead.
    """
    folder = Path(folder).resolve()
    for candidate in (folder / 'params', folder):
        if (candidate / METADATA_FILE).is_file():
            return candidate
    if not folder.is_dir():
        raise CheckpointError(f'{folder}: no such folder, expected an openpi checkpoint')
    if (folder / 'model.safetensors').is_file():
        raise CheckpointError(f'{folder}: a PyTorch checkpoint (model.safetensors), expected '
                              "openpi's JAX layout with a params folder")
    if any((candidate / OCDBT_FILE).is_file() for candidate in (folder / 'params', folder)):
        raise CheckpointError(f'{folder}: truncated: arrays but no {METADATA_FILE}')
    raise CheckpointError(f'{folder}: no params/{METADATA_FILE}, expected an Orbax checkpoint')


def open_leaves(folder: Path) -> dict[str, Leaf]:
    """Open all arrays below a params folder without reading them.

    Raises:
        CheckpointError: the metadata are broken, or an array is missing.
    """
    metadata = _metadata(folder)
    zarr3 = bool(metadata.get('use_zarr3', False))
    # Orbax used to leave out chunks of zeros; since it stores them, a missing chunk is damage.
    fill = not metadata.get('store_array_data_equal_to_fill_value', False)
    in_database = (folder / OCDBT_FILE).is_file()
    context, futures = ts.Context(), {}
    for path in _leaf_paths(folder, metadata):
        key = '.'.join(path)
        base = {'driver': 'file', 'path': f'{folder}/'}
        spec = {'driver': 'zarr3' if zarr3 else 'zarr', 'fill_missing_data_reads': fill,
                'kvstore': {'driver': 'ocdbt', 'base': base, 'path': f'{key}/'} if in_database
                else {**base, 'path': f'{folder / key}/'}}
        name = '/'.join(path[1:-1] if path[-1] == 'value' else path[1:])
        futures[name] = ts.open(spec, open=True, read=True, context=context)
    leaves = {}
    for name, future in futures.items():
        try:
            leaves[name] = Leaf(name=name, store=future.result())
        except ValueError as error:
            raise CheckpointError(f'{folder}: {name}: named in {METADATA_FILE}, but its array '
                                  f'cannot be opened: {_first_line(error)}') from error
    return leaves


def _metadata(folder: Path) -> dict[str, Any]:
    file = folder / METADATA_FILE
    try:
        metadata = json.loads(file.read_text('utf-8'))
    except (OSError, ValueError) as error:
        raise CheckpointError(f'{file}: cannot be read: {error}') from error
    if not isinstance(metadata, dict) or not isinstance(metadata.get('tree_metadata'), dict):
        raise CheckpointError(f'{file}: no tree_metadata, expected the metadata of an Orbax '
                              'PyTree')
    return metadata


def _leaf_paths(folder: Path, metadata: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the key path of each leaf: ('params', 'PaliGemma', …), with 'value' last or not."""
    file = folder / METADATA_FILE
    try:
        paths = [tuple(str(part['key']) for part in entry['key_metadata'])
                 for entry in metadata['tree_metadata'].values()]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f'{file}: an entry without key_metadata, expected the metadata of '
                              'an Orbax PyTree') from error
    paths = [path for path in paths if len(path) > 1 and path[0] == 'params']
    if not paths:
        raise CheckpointError(f"{file}: nothing below the key 'params', expected the parameters "
                              'of a model')
    suffixed = [path for path in paths if path[-1] == 'value']
    if suffixed and len(suffixed) != len(paths):
        plain = next(path for path in paths if path[-1] != 'value')
        raise CheckpointError(f'{file}: {"/".join(suffixed[0])} ends in value and '
                              f'{"/".join(plain)} does not, expected all to or none')
    return paths


def read_leaf(folder: Path, leaf: Leaf, dtype: np.dtype | None) -> np.ndarray:
    """Read an array, as dtype or as it is stored.

    Raises:
        CheckpointError: a part of it is missing or damaged.
    """
    store = leaf.store if dtype in (None, leaf.dtype) else ts.cast(leaf.store, ts.dtype(dtype))
    try:
        return store.read().result()
    except ValueError as error:
        raise CheckpointError(f'{folder}: {leaf.name}: cannot be read, the checkpoint is '
                              f'truncated or damaged: {_first_line(error)}') from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
