"""The rows of folders like golden/tiny-a and golden/tiny-a-lora."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.evaluation import parity_model as reference
from ros_pi0_fast.evaluation.parity_engine import engine_rows
from ros_pi0_fast.evaluation.parity_model import Inputs, Prefix, model_for, tokens_row
from ros_pi0_fast.evaluation.parity_report import (
    FolderError,
    Row,
    entry,
    equal,
    read_arrays,
    read_json,
    root_mean_square,
    within,
)
from ros_pi0_fast.model.decode import DecodeOptions
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.weights.openpi import flatten, load_params

Arrays = dict[str, np.ndarray]

# A loss of 4 to 8 has steps of 2 ** -5 in bfloat16, in which openpi takes its logarithm.
BFLOAT16_LOSS = 2 ** -5


def model_rows(folder: Path) -> Iterator[Row]:
    """Compare all that a folder like golden/tiny-a records.

    Raises:
        FolderError: a file that description.json names is missing or damaged.
        CheckpointError: a checkpoint cannot be read.
    """
    path = folder / 'description.json'
    description = read_json(path)
    variants = {name: read_arrays(folder / f'{name}.npz')
                for name in entry(description, 'variants', path)}
    plain = {name: arrays for name, arrays in variants.items() if 'out/compute_loss' in arrays}
    if not plain:
        raise FolderError(f'{path}: no variant has out/compute_loss')
    params = _nest(read_arrays(folder / 'params_f32.npz'))
    yield from _checkpoint_rows(folder, params)
    for name, arrays in plain.items():
        inputs = Inputs.of(arrays, folder / f'{name}.npz')
        model = model_for(params, inputs, 'float32')
        if arrays is next(iter(plain.values())):
            yield _architecture_row(model, description)
        yield from _variant_rows(name, model, params, inputs, arrays)
    for name, arrays in variants.items():
        if name in plain:
            continue
        twin = name.partition('_')[2]
        if twin not in plain:
            raise FolderError(f'{folder / name}.npz: no variant {twin} with the same inputs')
        yield from _bfloat16_rows(name, params, arrays, plain[twin],
                                  Inputs.of(plain[twin], folder / f'{twin}.npz'))
    for file in sorted(folder.glob('*_grads.npz')):
        name = file.stem.removesuffix('_grads')
        if name not in plain:
            raise FolderError(f'{file}: no variant {name} with its inputs')
        yield from _gradient_rows(name, params, read_arrays(file),
                                  Inputs.of(plain[name], folder / f'{name}.npz'))


def lora_rows(folder: Path) -> Iterator[Row]:
    """Compare what a folder like golden/tiny-a-lora records.

    Raises:
        FolderError: a file is missing or damaged.
        CheckpointError: the checkpoint cannot be read.
    """
    path = folder / 'description.json'
    description = read_json(path)
    scaling = entry(description, 'alpha', path) / entry(description, 'rank', path)
    params = jax.tree.map(jnp.asarray, load_params(folder / 'checkpoint', lora_scaling=scaling))
    for file in sorted(folder.glob('*.npz')):
        arrays = read_arrays(file)
        inputs = _lora_inputs(folder, file, arrays, description)
        yield from _variant_rows(f'lora {file.stem}', model_for(params, inputs, 'float32'), params,
                                 inputs, arrays)


def _lora_inputs(folder: Path, file: Path, arrays: Arrays, description: dict[str, Any]) -> Inputs:
    """Return the inputs of a variant, which may be in another folder's file."""
    if any(name.startswith('in/') for name in arrays):
        return Inputs.of(arrays, file)
    told = str(entry(description, 'inputs', folder / 'description.json'))
    found = re.search(r'(\S+\.npz)', told)
    if found is None:
        raise FolderError(f'{folder / "description.json"}: inputs: {told!r}, expected the path of '
                          'an .npz file')
    other = (folder / found.group(1)).resolve()
    return Inputs.of(read_arrays(other), other)


def _nest(arrays: Arrays) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in arrays.items():
        node = tree
        *parents, last = name.split('/')
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = jnp.asarray(value)
    return tree


def _architecture_row(model: Pi0Fast, description: dict[str, Any]) -> Row:
    config, wrong = model.config, []
    for part, sizes in (('gemma', config.gemma), ('siglip', config.siglip)):
        for key, value in description.get(part, {}).items():
            derived = getattr(sizes, key)
            if derived != (tuple(value) if isinstance(value, list) else value):
                wrong.append(f'{part}.{key} {derived}, expected {value}')
    if tuple(description.get('camera_order', config.camera_keys)) != config.camera_keys:
        wrong.append(f'cameras {config.camera_keys}, expected {description["camera_order"]}')
    return Row(name='architecture derived from parameter shapes', error=len(wrong), tolerance=0.0,
               note='; '.join(wrong))


def _checkpoint_rows(folder: Path, params: Params) -> Iterator[Row]:
    """Read every form of the checkpoint, and compare bit for bit with the plain copy."""
    expected = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
    for checkpoint in sorted(folder.glob('checkpoint*')):
        leaves = flatten(load_params(checkpoint))
        wrong = sum(int(np.sum(leaf != expected[name].astype(leaf.dtype)))
                    for name, leaf in leaves.items())
        stored = ', '.join(sorted({leaf.dtype.name for leaf in leaves.values()}))
        yield Row(name=f'{checkpoint.name}: {len(leaves)} parameters', error=wrong, tolerance=0.0,
                  note=f'stored as {stored}')


def _variant_rows(name: str, model: Pi0Fast, params: Params, inputs: Inputs, out: Arrays,
                  ) -> Iterator[Row]:
    embeddings, cameras = reference.embed(model, params, inputs)
    for key, tokens in cameras.items():
        if f'out/siglip/{key}' in out:
            yield within(f'{name}: SigLIP {key}', tokens, out[f'out/siglip/{key}'],
                         reference.SIGLIP)
    if 'out/prefix_embeddings' in out:
        yield within(f'{name}: prefix embeddings', embeddings, out['out/prefix_embeddings'],
                     reference.EMBEDDINGS)
    steps = out['out/step_logits'].shape[1]
    prefix = reference.run_prefix(model, params, inputs, embeddings, embeddings.shape[1] + steps)
    yield from _prefill_rows(name, inputs, prefix, out)
    if inputs.all_cameras:
        yield from _decoding_rows(name, model, params, prefix, out)
        if inputs.bidirectional:
            yield from engine_rows(name, model, params, inputs, out, _token_rows)
    else:
        yield Row.skip(f'{name}: decoding', 'differs on purpose: openpi attends to the slots of '
                       'the masked camera, and drops real ones')
    yield within(f'{name}: loss', reference.loss(model, params, inputs.batch),
                 out['out/compute_loss'], reference.LOSS)


def _prefill_rows(name: str, inputs: Inputs, prefix: Prefix, out: Arrays) -> Iterator[Row]:
    yield within(f'{name}: prefill logits', prefix.logits, out['out/prefill_last_logits'],
                 reference.LOGITS)
    if not inputs.all_cameras:
        return
    if 'out/aligned_embeddings' in out:
        yield within(f'{name}: aligned embeddings', prefix.embeddings,
                     out['out/aligned_embeddings'], reference.EMBEDDINGS)
        yield equal(f'{name}: aligned mask', prefix.aligned_mask, out['out/aligned_mask'])
    if 'out/prefill_pre_logits' in out:
        yield within(f'{name}: prefill output', prefix.hidden, out['out/prefill_pre_logits'],
                     reference.LOGITS, where=prefix.aligned_mask)
    yield from _cache_rows(name, 'prefill', prefix, prefix.cache.layers, out)


def _cache_rows(name: str, when: str, prefix: Prefix, layers: Any, out: Arrays) -> Iterator[Row]:
    """Compare the cache's tokens that exist; slots of padding mean nothing, there or here."""
    size = prefix.aligned_mask.shape[1]
    for which, array in (('k', layers.k), ('v', layers.v)):
        for layer, index in (('layer0', 0), ('last', -1)):
            expected = out.get(f'out/{when}_cache_{which}_{layer}')
            if expected is not None:
                exists = np.ones(expected.shape[:2], bool)
                exists[:, :size] = prefix.aligned_mask
                yield within(f'{name}: {when} cache {which} {layer}', array[index], expected,
                             reference.CACHE, where=exists)


def _decoding_rows(name: str, model: Pi0Fast, params: Params, prefix: Prefix, out: Arrays,
                   ) -> Iterator[Row]:
    expected = out['out/step_logits']
    chosen = jnp.argmax(jnp.asarray(expected), axis=-1).astype(jnp.int32)
    logits, cache = reference.teacher_forced(model, params, chosen, prefix.cache)
    every = np.concatenate([prefix.logits[:, None], logits], axis=1)
    yield within(f'{name}: step logits', every[:, :-1], expected, reference.LOGITS)
    if 'out/after_last_step_logits' in out:
        yield within(f'{name}: logits after the last step', every[:, -1],
                     out['out/after_last_step_logits'], reference.LOGITS)
    yield from _cache_rows(name, 'final', prefix, cache.layers, out)
    yield from _token_rows(name, model, params, prefix.hidden[:, -1:], prefix.cache, out)


def _token_rows(name: str, model: Pi0Fast, params: Params, hidden: jax.Array, cache: Any,
                out: Arrays) -> Iterator[Row]:
    logits, steps = out['out/step_logits'], out['out/step_logits'].shape[1]
    for title, key, eos_id in (('tokens', 'sample_actions', reference.EOS_ID),
                               ('tokens past EOS', 'recorded_tokens_no_stop', None)):
        if f'out/{key}' in out:
            state = reference.decode(model, params, hidden, cache,
                                     options=DecodeOptions(max_ids=steps, eos_id=eos_id))
            yield tokens_row(f'{name}: {title}', state.tokens, out[f'out/{key}'], logits,
                             eos_id=eos_id)


def _gradient_rows(name: str, params: Params, expected: Arrays, inputs: Inputs) -> Iterator[Row]:
    """Compare each parameter's gradient, relative to its own largest value."""
    actual = flatten(reference.gradients(model_for(params, inputs, 'float32'), params,
                                         inputs.batch))
    if odd := set(actual) ^ set(expected):
        yield Row(name=f'{name}: gradients', error=len(odd), tolerance=0.0,
                  note=f'not in both: {", ".join(sorted(odd))}')
    largest = max(np.abs(value).max() for value in expected.values())
    for key in sorted(set(actual) & set(expected)):
        scale, note = float(np.abs(expected[key]).max()), ''
        if scale < reference.VANISHING * largest:
            scale, note = float(largest), 'zero but for rounding; relative to the largest of all'
        row = within(f'{name}: gradient {_short(key)}',
                     np.asarray(actual[key]) / scale, expected[key] / scale, reference.GRADIENT)
        yield replace(row, note=note)


def _short(key: str) -> str:
    return key.removeprefix('PaliGemma/').replace('Transformer/encoderblock', '…')


def _bfloat16_rows(name: str, params: Params, out: Arrays, exact: Arrays, inputs: Inputs,
                   ) -> Iterator[Row]:
    """Compare with openpi in bfloat16, with parameters in float32 and in bfloat16.

    A reordered sum can round to the next number, which moves all that follows. So what is asked is
    to be no further from openpi's bfloat16 than that is from its float32, by root mean square.
    """
    for group in sorted({key.partition('/')[0] for key in out}):
        theirs = {key.partition('/')[2]: value for key, value in out.items()
                  if key.startswith(f'{group}/')}
        stored = params if group != 'params_bf16' else jax.tree.map(
            lambda leaf: leaf.astype(jnp.bfloat16), params)
        ours, exists = _bfloat16_outputs(stored, inputs, exact)
        for key in ours:
            if key not in theirs:
                continue
            twin = exact['out/' + key.removeprefix('teacher_forced_')]
            where = exists if 'cache' in key else np.ones(twin.shape[:2], bool)
            yield Row(name=f'{name} {group}: {key.replace("_", " ")} (rms)',
                      error=root_mean_square(ours[key][where], theirs[key][where]),
                      tolerance=root_mean_square(theirs[key][where], twin[where]))
        yield within(f'{name} {group}: loss',
                     reference.loss(model_for(params, inputs, 'bfloat16'), stored, inputs.batch),
                     theirs['compute_loss'], BFLOAT16_LOSS)


def _bfloat16_outputs(params: Params, inputs: Inputs, exact: Arrays) -> tuple[Arrays, np.ndarray]:
    """Return what the bfloat16 files record, and which slots of the cache exist."""
    model = model_for(params, inputs, 'bfloat16')
    tokens = jnp.argmax(jnp.asarray(exact['out/step_logits']), axis=-1).astype(jnp.int32)
    embeddings, _ = reference.embed(model, params, inputs)
    size, steps = embeddings.shape[1], tokens.shape[1]
    prefix = reference.run_prefix(model, params, inputs, embeddings, size + steps)
    logits, _ = reference.teacher_forced(model, params, tokens[:, :-1], prefix.cache)
    layers = prefix.cache.layers
    outputs = {
        'prefix_embeddings': embeddings,
        **{f'prefill_cache_{which}_{layer}': array[index]
           for which, array in (('k', layers.k), ('v', layers.v))
           for layer, index in (('layer0', 0), ('last', -1))},
        'teacher_forced_step_logits': jnp.concatenate([prefix.logits[:, None], logits], axis=1),
    }
    exists = np.pad(np.asarray(prefix.aligned_mask), ((0, 0), (0, steps)))
    return {key: np.asarray(value.astype(jnp.float32)) for key, value in outputs.items()}, exists
