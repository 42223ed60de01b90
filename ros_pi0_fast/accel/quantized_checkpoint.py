"""Checkpoints of quantized weights: written leaf by leaf, read as they are stored.

    quantized.json      the scheme, and the shapes of the weights before
    quantized/          an Orbax PyTree of what the weights became
    assets/, policy.json   as in other checkpoints

There is no params folder: who does not know of quantization finds none, and refuses.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.equations import path_of
from ros_pi0_fast.accel.quantization import Quantizer, Scheme, quantize_params, split_layers
from ros_pi0_fast.accel.quantized import QuantizationError
from ros_pi0_fast.codec.contract import CONTRACT_FILE, PolicyContract
from ros_pi0_fast.model.config import Pi0FastConfig, config_from_params
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.weights.checkpoint import Checkpoint
from ros_pi0_fast.weights.errors import CheckpointError
from ros_pi0_fast.weights.openpi import Progress, load_params, open_shapes

SCHEME_FILE = 'quantized.json'
ARRAYS = 'quantized'


def is_quantized(folder: str | Path) -> bool:
    """Tell whether a folder is a checkpoint of quantized weights."""
    return (Path(folder) / SCHEME_FILE).is_file()


def tree_bytes(tree: Any) -> int:
    """Return the bytes of a tree's arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
               for leaf in jax.tree.leaves(tree))


def quantize_checkpoint(folder: str | Path, out: str | Path, scheme: Scheme, *,
                        progress: Progress | None = None) -> tuple[int, int]:
    """Quantize a checkpoint by rounding, one weight after another.

    Args:
        folder: Of this package or of openpi.
        out: New folder; it may be below `folder`.
        scheme: How.
        progress: See weights.openpi.load_params.

    Returns:
        Bytes of the weights before and after.

    Raises:
        CheckpointError: the checkpoint cannot be read, or `out` has weights already.
        QuantizationError: a weight cannot be quantized so.
    """
    folder, out = Path(folder).resolve(), Path(out).resolve()
    _check_new(out)
    shapes = open_shapes(folder)
    model = Pi0Fast(_config(folder, shapes, _contract(folder)))
    quantizer = Quantizer(model, shapes, scheme)
    params = split_layers(load_params(
        folder, progress=progress,
        place=lambda name, leaf: quantizer.stacked(tuple(name.split('/')), leaf)))
    save_quantized(out, params, scheme, shapes)
    for name in ('assets', CONTRACT_FILE):
        source = folder / name
        if source.is_dir():
            shutil.copytree(source, out / name)
        elif source.is_file():
            shutil.copyfile(source, out / name)
    return tree_bytes(shapes), tree_bytes(params)


def save_quantized(out: Path, params: Params, scheme: Scheme, shapes: Params) -> None:
    """Write quantized parameters; assets and contract are for the caller to add.

    Args:
        out: Folder that has no weights yet.
        params: See quantize_params.
        scheme: With which they were made.
        shapes: Arrays or shapes of the parameters before, stacked.

    Raises:
        CheckpointError: the folder has weights already.
    """
    import orbax.checkpoint as ocp

    _check_new(out)
    out.mkdir(parents=True, exist_ok=True)
    arrays = {_key(keys): np.asarray(leaf) for keys, leaf in _leaves(params)}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(out / ARRAYS, arrays)
    before = {_key(keys): [list(leaf.shape), jnp.dtype(leaf.dtype).name]
              for keys, leaf in _leaves(shapes)}
    (out / SCHEME_FILE).write_text(json.dumps(
        {'scheme': dataclasses.asdict(scheme), 'before': before}, indent=1) + '\n', 'utf-8')


def load_quantized(folder: str | Path) -> tuple[Checkpoint, Scheme]:
    """Read a checkpoint of quantized weights, which are never widened.

    Raises:
        CheckpointError: files are missing or broken, or a leaf has a wrong shape or dtype.
        QuantizationError: the scheme is one that this version does not know.
    """
    folder = Path(folder).resolve()
    scheme, shapes = _read_scheme(folder / SCHEME_FILE)
    contract = _contract(folder)
    config = _config(folder, shapes, contract)
    skeleton = jax.eval_shape(
        lambda params: quantize_params(Pi0Fast(config), params, scheme), shapes)
    params = _read_arrays(folder / ARRAYS, skeleton)
    return Checkpoint(params=None, quantized={scheme.weights: params}, config=config,
                      contract=contract, folder=folder), scheme


def _check_new(out: Path) -> None:
    for name in (SCHEME_FILE, ARRAYS, 'params'):
        if (out / name).exists():
            raise CheckpointError(f'{out / name}: exists already, expected a new folder')


def _contract(folder: Path) -> PolicyContract:
    if not (folder / CONTRACT_FILE).is_file():
        raise CheckpointError(f'{folder}: no {CONTRACT_FILE}, which says what the policy was '
                              'trained for; load the checkpoint once with a robot profile and '
                              'save it with this package')
    return PolicyContract.load(folder)


def _config(folder: Path, shapes: Params, contract: PolicyContract) -> Pi0FastConfig:
    table = shapes['PaliGemma']['llm']['embedder']['input_embedding']
    try:
        return config_from_params(
            shapes, action_dim=contract.action_dim, action_horizon=contract.action_horizon,
            max_token_len=contract.max_token_len, camera_keys=contract.camera_keys,
            image_size=contract.image_size, dtype=jnp.dtype(table.dtype).name,
            first_token_offset=contract.first_token_offset)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f'{folder}: {error}') from error


def _read_scheme(file: Path) -> tuple[Scheme, Params]:
    try:
        data = json.loads(file.read_text('utf-8'))
        told = {**data['scheme'], 'keep_int8': tuple(data['scheme']['keep_int8'])}
        known = {each.name for each in dataclasses.fields(Scheme)}
        shapes = {name: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
                  for name, (shape, dtype) in data['before'].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f'{file}: is no description of a quantized checkpoint: '
                              f'{type(error).__name__}: {error}') from error
    if set(told) - known:
        raise QuantizationError(f'{file}: scheme has {", ".join(sorted(set(told) - known))}, '
                                f'expected {", ".join(sorted(known))}; it was written by another '
                                'version of this package')
    try:
        return Scheme(**told), _nested(shapes)
    except QuantizationError as error:
        raise QuantizationError(f'{file}: {error}') from error


def _read_arrays(folder: Path, skeleton: Params) -> Params:
    import orbax.checkpoint as ocp

    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            arrays = checkpointer.restore(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f'{folder}: cannot be read, missing, truncated or damaged: '
                              f'{str(error).splitlines()[0]}') from error
    expected = {_key(keys): leaf for keys, leaf in _leaves(skeleton)}
    for name in sorted(set(expected) ^ set(arrays)):
        raise CheckpointError(f'{folder}: {name}: '
                              f'{"missing" if name in expected else "not part of the model"}')
    for name, leaf in expected.items():
        found = arrays[name]
        if found.shape != leaf.shape or found.dtype != leaf.dtype:
            raise CheckpointError(f'{folder}: {name}: {found.dtype} {found.shape}, expected '
                                  f'{leaf.dtype} {leaf.shape}')
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: jnp.asarray(arrays[_key(path_of(keys))]), skeleton)


def _leaves(tree: Any) -> list[tuple[tuple, Any]]:
    return [(path_of(keys), leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _key(keys: tuple) -> str:
    """Return the key under which Orbax keeps a leaf; a slash would be a folder to it."""
    return '.'.join(map(str, keys))


def _nested(flat: Mapping[str, Any]) -> Params:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split('.')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree
