"""Parameters in openpi's checkpoint layout, in and out.

Reading streams leaf by leaf (reader.py); writing goes through Orbax, as openpi does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ros_pi0_fast.weights import lora
from ros_pi0_fast.weights.errors import CheckpointError
from ros_pi0_fast.weights.layout import check_layout, expected_dims
from ros_pi0_fast.weights.reader import find_params, open_leaves, read_leaf

__all__ = ['CheckpointError', 'load_params', 'open_shapes', 'progress_bar', 'save_params']

Progress = Callable[[str, int, int], None]
"""(leaf just read, bytes read so far, bytes in all)."""
Place = Callable[[str, np.ndarray], Any]
"""(name of a leaf, the leaf) -> what takes its place."""

DTYPES = {'float32': np.dtype(np.float32), 'bfloat16': np.dtype(ml_dtypes.bfloat16)}
# Large leaves are written in pieces, so that reading one needs little more memory than itself.
CHUNK_BYTES = 64 << 20


def load_params(folder: str | Path, *, dtype: str | None = None, progress: Progress | None = None,
                place: Place = lambda name, leaf: leaf, allow_extra: bool = False,
                lora_scaling: float = 1.0) -> dict[str, Any]:
    """Read the parameters of an openpi checkpoint; low-rank updates are merged.

    Leaves are read one after another, the largest first, when least else is in memory.

    Args:
        folder: The checkpoint, or its params folder.
        dtype: 'float32', 'bfloat16', or None for as it is stored.
        progress: Called after each leaf.
        place: Called on each leaf as soon as it is read; what it returns takes the leaf's place.
            So leaves can go to the device, or be quantized, one by one.
        allow_extra: Leave out leaves that Pi0-FAST does not have, as openpi does, instead of
            refusing them.
        lora_scaling: alpha / rank of low-rank updates, 1 in all of openpi's configs; a checkpoint
            does not tell.

    Returns:
        Nested dict with openpi's names, layers stacked.

    Raises:
        CheckpointError: no such folder, no Orbax checkpoint, truncated; a leaf is missing, extra
            or unreadable, or has a wrong shape or dtype.
        ValueError: no such dtype.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f'dtype: {dtype!r}, expected one of {", ".join(DTYPES)} or None')
    folder = find_params(folder)
    leaves = open_leaves(folder)
    _check(str(folder), leaves, allow_extra)
    wanted = None if dtype is None else DTYPES[dtype]
    factors = {name for name in lora.factor_names() if name in leaves}
    named = [leaf for name, leaf in leaves.items() if name not in factors]
    if allow_extra:
        named = [leaf for leaf in named if leaf.name in expected_dims(leaves)]
    total, done, tree = sum(leaf.nbytes(wanted) for leaf in named), 0, {}
    for leaf in sorted(named, key=lambda leaf: -leaf.nbytes(wanted)):
        value = read_leaf(folder, leaf, wanted)
        if leaf.name in lora.LORA and lora.factors(leaf.name)[0] in factors:
            a, b = (read_leaf(folder, leaves[name], None) for name in lora.factors(leaf.name))
            value = lora.merge(leaf.name, value, a, b, lora_scaling)
        _insert(tree, leaf.name, place(leaf.name, value))
        done += leaf.nbytes(wanted)
        if progress is not None:
            progress(leaf.name, done, total)
    return tree


def open_shapes(folder: str | Path) -> dict[str, Any]:
    """Return the shapes and dtypes of a checkpoint's parameters; none is read.

    Returns:
        Nested dict of jax.ShapeDtypeStruct with openpi's names, layers stacked; low-rank updates
        are left out, as `load_params` merges them.

    Raises:
        CheckpointError: see load_params.
    """
    import jax

    folder = find_params(folder)
    leaves = open_leaves(folder)
    _check(str(folder), leaves)
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        if name not in lora.factor_names():
            _insert(tree, name, jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype))
    return tree


def save_params(folder: str | Path, params: Mapping[str, Any]) -> Path:
    """Write parameters as openpi does: an Orbax PyTree in folder/params.

    Args:
        folder: The checkpoint; it must not have parameters yet.
        params: Nested dict of float32 or bfloat16 arrays, layers stacked.

    Returns:
        The params folder.

    Raises:
        CheckpointError: the folder has parameters already; or a leaf is missing or extra, or has
            a wrong shape or dtype.
    """
    import jax
    import orbax.checkpoint as ocp  # Seconds of import, which reading need not wait for.

    target = Path(folder).resolve() / 'params'
    if target.exists():
        raise CheckpointError(f'{target}: exists already, expected a new folder')
    _check('params', flatten(params))
    arguments = ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES)
    # Orbax notes the type of each leaf; openpi's are all jax.Array.
    host = jax.local_devices(backend='cpu')[0]
    tree = {'params': jax.tree.map(lambda leaf: jax.device_put(leaf, host), dict(params))}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(target, tree, save_args=_map(tree, arguments))
    return target


def progress_bar() -> Progress:
    """Return a progress callback that shows a bar on standard error."""
    from tqdm import tqdm

    bar = tqdm(unit='B', unit_scale=True, desc='loading weights')

    def advance(name: str, done: int, total: int) -> None:
        bar.total = total
        bar.set_postfix_str(name.rpartition('/')[0][-40:], refresh=False)
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return advance


def flatten(params: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Return 'PaliGemma/…' -> leaf of a nested dict."""
    leaves = {}
    for key, value in params.items():
        name = f'{prefix}{key}'
        leaves |= flatten(value, f'{name}/') if isinstance(value, Mapping) else {name: value}
    return leaves


def _check(source: str, leaves: Mapping[str, Any], allow_extra: bool = False) -> None:
    """Check names, shapes and dtypes of leaves, which are arrays or opened arrays."""
    check_layout({name: tuple(leaf.shape) for name, leaf in leaves.items()}, source=source,
                 allow_extra=allow_extra)
    for name, leaf in leaves.items():
        if leaf.dtype not in DTYPES.values():
            raise CheckpointError(f'{source}: {name}: dtype {leaf.dtype}, expected '
                                  f'{" or ".join(DTYPES)}')


def _map(tree: Any, value: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _map(child, value) for key, child in tree.items()}
    return value


def _insert(tree: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split('/')
    functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[last] = value
