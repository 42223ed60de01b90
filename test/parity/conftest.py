"""Writes a folder in the layout of golden/tiny-a for a network of any sizes.

The numbers are this package's own, so such a folder says nothing about openpi; it proves that the
comparison takes its sizes from the folder.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ros_pi0_fast.evaluation import parity_model as reference
from ros_pi0_fast.evaluation.parity_model import Inputs
from ros_pi0_fast.model.config import Pi0FastConfig
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.weights.openpi import flatten, save_params

STEPS = 5


def _write_folder(folder: Path, config: Pi0FastConfig, *, batch: int, masked: bool = False):
    """Write params_f32.npz, a checkpoint, a variant or two, gradients and description.json."""
    model = Pi0Fast(config)
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape) / 5, jnp.float32),
        jax.eval_shape(model.init, jax.random.key(0)))
    folder.mkdir()
    np.savez(folder / 'params_f32.npz', **flatten(params))
    save_params(folder / 'checkpoint', params)
    variants = {'base': False, **({'masked': True} if masked else {})}
    with jax.default_matmul_precision('highest'):  # As the comparison does: compiled once only.
        for name, hide in variants.items():
            given = _inputs(config, batch, hide)
            inputs = Inputs.of(given, folder)
            np.savez(folder / f'{name}.npz', **given, **_outputs(model, params, inputs))
        gradients = reference.gradients(model, params, inputs.batch)
    np.savez(folder / f'{name}_grads.npz', **flatten(gradients))
    sizes = {key: getattr(config.gemma, key) for key in ('width', 'num_heads', 'num_kv_heads')}
    (folder / 'description.json').write_text(json.dumps({
        'gemma': sizes, 'siglip': {'patch_size': list(config.siglip.patch_size)},
        'camera_order': list(config.camera_keys),
        'variants': {key: {'batch': batch} for key in variants}}))


def _inputs(config: Pi0FastConfig, batch: int, masked: bool) -> dict[str, np.ndarray]:
    rng, length = np.random.default_rng(0), config.max_token_len
    lengths = rng.integers(3, length, (batch, 1))
    exists = np.arange(length) < lengths
    shape = (batch, length)
    given = {'in/tokenized_prompt': rng.integers(0, config.gemma.vocab_size, shape),
             'in/tokenized_prompt_mask': exists, 'in/token_ar_mask': np.zeros(shape, int),
             'in/token_loss_mask': exists & (np.arange(length) >= lengths - 2)}
    for key in config.camera_keys:
        shape = (batch, *config.siglip.image_size, 3)
        given[f'in/image/{key}'] = rng.uniform(-1, 1, shape).astype(np.float32)
        given[f'in/image_mask/{key}'] = np.ones(batch, bool)
    if masked:
        given[f'in/image_mask/{config.camera_keys[0]}'][0] = False
    return given


def _outputs(model: Pi0Fast, params, inputs: Inputs) -> dict[str, np.ndarray]:
    embeddings, cameras = reference.embed(model, params, inputs)
    prefix = reference.run_prefix(model, params, inputs, embeddings, embeddings.shape[1] + STEPS)
    cache, logits, tokens = prefix.cache, [prefix.logits], []
    for _ in range(STEPS):
        tokens.append(jnp.argmax(logits[-1], axis=-1).astype(jnp.int32))
        step, cache = reference.teacher_forced(model, params, tokens[-1][:, None], cache)
        logits.append(step[:, 0])
    out = {'prefix_embeddings': embeddings, 'prefill_last_logits': logits[0],
           'step_logits': jnp.stack(logits[:-1], axis=1),
           'after_last_step_logits': logits[-1],
           'recorded_tokens_no_stop': jnp.stack(tokens, axis=1),
           'sample_actions': jnp.stack(tokens, axis=1).astype(jnp.float32),
           'prefill_cache_k_last': prefix.cache.layers.k[-1],
           'compute_loss': reference.loss(model, params, inputs.batch)}
    return {f'out/{key}': np.asarray(value) for key, value in out.items()} | {
        f'out/siglip/{key}': np.asarray(value) for key, value in cameras.items()}


@pytest.fixture(scope='session')
def write_folder():
    """Return a function that writes such a folder."""
    def write(folder: Path, config: Pi0FastConfig, **how) -> Path:
        # Networks this small take longer to optimize than to run.
        jax.config.update('jax_disable_most_optimizations', True)
        try:
            _write_folder(folder, config, **how)
        finally:
            jax.config.update('jax_disable_most_optimizations', False)
        return folder
    return write
