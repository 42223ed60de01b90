"""A whole model in few bits: its bytes, its checkpoint, what is refused, and training for it."""

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ros_pi0_fast.accel.calibration import Calibrated, gptq_int4, record_moments, weight_errors
from ros_pi0_fast.accel.matrices import to_matrices
from ros_pi0_fast.accel.quantization import (
    EMBEDDING,
    QuantizationError,
    Scheme,
    fake_quantized,
    main,
    quantize_params,
)
from ros_pi0_fast.accel.quantized import QuantizedTable, quantize_int4
from ros_pi0_fast.accel.quantized_checkpoint import load_quantized, quantize_checkpoint, tree_bytes
from ros_pi0_fast.evaluation.random_policy import random_policy
from ros_pi0_fast.model.config import GemmaConfig, Pi0FastConfig, SiglipConfig, get_config
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.weights.checkpoint import load_checkpoint
from ros_pi0_fast.weights.errors import CheckpointError
from ros_pi0_fast.weights.openpi import save_params

INT8, INT4 = Scheme(weights='int8'), Scheme(weights='int4')


@pytest.fixture(scope='module')
def model():
    return Pi0Fast(Pi0FastConfig(
        siglip=SiglipConfig(width=64, depth=1, mlp_dim=96, num_heads=2, patch_size=(8, 8),
                            image_size=(16, 16)),
        gemma=GemmaConfig(width=64, depth=2, mlp_dim=128, num_heads=2, num_kv_heads=1,
                          head_dim=32, vocab_size=256),
        action_dim=5, action_horizon=10, max_token_len=40, camera_keys=('a', 'b')))


@pytest.fixture(scope='module')
def params(model):
    return jax.jit(model.init)(jax.random.key(0))


@pytest.fixture(scope='module')
def batch(model):
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, model.config.gemma.vocab_size, (2, 20)), jnp.int32)
    shape = (2, *model.config.siglip.image_size, 3)
    return {'images': {key: jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)
                       for key in model.config.camera_keys},
            'tokens': ids, 'token_mask': jnp.ones((2, 20), bool),
            'ar_mask': jnp.ones((2, 20), bool), 'loss_mask': jnp.ones((2, 20), bool)}


@pytest.mark.parametrize(('scheme', 'most'), [(INT8, 0.52), (INT4, 0.30)])
def test_bytes_of_the_full_model(scheme, most):
    """PaliGemma 3B, by shapes alone, scales and all that stays wide included."""
    model = Pi0Fast(get_config('full'))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16),
                          jax.eval_shape(model.init, jax.random.key(0)))
    quantized = jax.eval_shape(lambda params: quantize_params(model, params, scheme), shapes)
    assert 0.25 < tree_bytes(quantized) / tree_bytes(shapes) <= most


def test_what_is_quantized_and_what_is_not(model, params):
    found = quantize_params(model, params, Scheme(
        weights='int4', keep_int8=('PaliGemma/llm/layers/1/mlp/linear',)))
    llm, image = found['PaliGemma']['llm'], found['PaliGemma']['img']
    assert [llm['layers'][i]['mlp']['linear'].parts[0].bits for i in (0, 1)] == [4, 8]
    assert isinstance(llm['embedder']['input_embedding'], QuantizedTable)
    assert image['head']['kernel'].parts[0].bits == 4
    for plain in (llm['final_norm']['scale'], image['embedding']['kernel'],
                  image['pos_embedding'], image['head']['bias']):
        assert plain.dtype == jnp.float32


def test_the_loss_is_close_to_that_of_the_exact_weights(model, params, batch):
    loss = jax.jit(model.loss)
    exact = loss(params, batch)
    changes = [float(jnp.max(jnp.abs(loss(quantize_params(model, params, scheme), batch) - exact)))
               for scheme in (INT8, INT4)]
    assert 0 < changes[0] < 0.02 and changes[0] < changes[1] < 0.5


def test_training_sees_the_rounded_weights_and_moves_the_exact_ones(model, params, batch):
    rounded = jax.jit(model.loss)(quantize_params(model, params, INT4), batch)

    @jax.jit
    def step(params):
        return jax.value_and_grad(
            lambda p: jnp.mean(model.loss(fake_quantized(model, p, INT4), batch)))(params)

    better = model.unroll(params)
    losses = []
    for _ in range(6):
        loss, gradient = step(better)
        losses.append(float(loss))
        better = jax.tree.map(lambda w, g: w - 0.05 * g, better, gradient)
    np.testing.assert_allclose(losses[0], jnp.mean(rounded), rtol=1e-4)
    assert losses[-1] < losses[0]
    layer = gradient['PaliGemma']['llm']['layers'][0]
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(layer))


def test_calibration_changes_the_outputs_less_than_rounding():
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(128, 32)), jnp.float32)
    few = rng.normal(size=(2000, 16)) @ rng.normal(size=(16, 128))
    x = few + 0.1 * rng.normal(size=(2000, 128))
    errors = [np.linalg.norm(x @ np.asarray(quantized.wide() - w)) for quantized in (
        quantize_int4(w, 64), gptq_int4(w, x.T @ x, 64))]
    assert errors[1] < 0.5 * errors[0]
    # Where nothing is known it is as good as rounding.
    nearest, unseen = quantize_int4(w, 64), gptq_int4(w, np.zeros((128, 128)), 64)
    assert np.linalg.norm(unseen.wide() - w) < 1.2 * np.linalg.norm(nearest.wide() - w)


def test_calibration_of_a_whole_model(model, params, batch):
    unrolled = model.unroll(params)
    moments = record_moments(model, unrolled, [batch])
    linear = ('PaliGemma', 'llm', 'layers', 0, 'mlp', 'linear')
    assert moments[linear].shape == (model.config.gemma.mlp_dim,) * 2
    assert EMBEDDING not in moments
    matrices = to_matrices(model, unrolled)
    nearest, calibrated = (weight_errors(matrices, quantize_params(model, params, INT4, *how),
                                         moments) for how in ((), (Calibrated(moments=moments),)))
    assert len(nearest) == len(moments)
    for before, after in zip(nearest, calibrated, strict=True):
        assert before.name == after.name and after.output < before.output


def test_the_command_writes_what_loads_as_it_is(random_checkpoint, tmp_path, capsys):
    main([str(random_checkpoint), str(tmp_path / 'int4'), '--weights', 'int4'])
    assert 'MiB of weights' in capsys.readouterr().out
    loaded, scheme = load_quantized(tmp_path / 'int4')
    plain = load_checkpoint(random_checkpoint)
    assert scheme == INT4 and loaded.params is None and loaded.config == plain.config
    expected = quantize_params(Pi0Fast(plain.config), plain.params, INT4)
    assert jax.tree.structure(loaded.quantized['int4']) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, loaded.quantized['int4'], expected)


def test_what_is_not_such_a_checkpoint_is_named(random_checkpoint, tmp_path):
    out = tmp_path / 'int8'
    quantize_checkpoint(random_checkpoint, out, INT8)
    with pytest.raises(CheckpointError, match='exists already'):
        quantize_checkpoint(random_checkpoint, out, INT8)
    with pytest.raises(CheckpointError, match=r'params/_METADATA'):
        load_checkpoint(out)

    def broken(change):
        shutil.rmtree(tmp_path / 'broken', ignore_errors=True)
        shutil.copytree(out, tmp_path / 'broken')
        file = tmp_path / 'broken' / 'quantized.json'
        data = json.loads(file.read_text('utf-8'))
        change(data)
        file.write_text(json.dumps(data), 'utf-8')
        return tmp_path / 'broken'

    with pytest.raises(QuantizationError, match='scheme: format 2, expected 1'):
        load_quantized(broken(lambda data: data['scheme'].update(format=2)))
    with pytest.raises(QuantizationError, match="weights 'int3', expected one of int8, int4"):
        load_quantized(broken(lambda data: data['scheme'].update(weights='int3')))
    with pytest.raises(QuantizationError, match='scheme has rotation, expected'):
        load_quantized(broken(lambda data: data['scheme'].update(rotation=1)))
    with pytest.raises(CheckpointError, match=r'quantized: PaliGemma.*\.groups: missing'):
        load_quantized(broken(lambda data: data['scheme'].update(weights='int4')))
    with pytest.raises(CheckpointError, match=r'quantized\.json: is no description'):
        load_quantized(broken(lambda data: data.pop('scheme')))
    shutil.rmtree(broken(lambda data: None) / 'quantized')
    with pytest.raises(CheckpointError, match='quantized: cannot be read'):
        load_quantized(tmp_path / 'broken')


def test_the_command_names_what_cannot_be_done(random_checkpoint, tmp_path):
    for arguments, text in (([str(tmp_path / 'none')], 'no such folder'),
                            ([str(random_checkpoint), '--group-size', '48'], 'group_size 48'),
                            ([str(random_checkpoint), '--group-size', '128'], 'groups of 128')):
        with pytest.raises(SystemExit, match=f'error: .*{text}'):
            main([arguments[0], str(tmp_path / 'out'), *arguments[1:]])


RESIDENT = """
import ctypes, gc, sys
import jax, jax.numpy as jnp
from ros_pi0_fast.accel.quantized_checkpoint import is_quantized, load_quantized
from ros_pi0_fast.weights.openpi import load_params

def resident():
    gc.collect()
    ctypes.CDLL('libc.so.6').malloc_trim(0)
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * 4096

folder = sys.argv[1]
if is_quantized(folder):
    params = load_quantized(folder)[0].quantized
else:
    params = load_params(folder, place=lambda name, leaf: jnp.array(leaf))
jax.block_until_ready(params)
held = resident()
del params
print(held - resident())
"""
"""Prints by how much memory shrinks when the weights are given up."""


@pytest.mark.slow
def test_resident_memory_at_mid(tmp_path):
    """Of a process of its own that has loaded the weights, which are 90 MiB in bfloat16."""
    checkpoint, _ = random_policy('mid')
    save_params(tmp_path / 'plain', jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16), checkpoint.params))
    checkpoint.contract.save(tmp_path / 'plain')
    for scheme in (INT8, INT4):
        quantize_checkpoint(tmp_path / 'plain', tmp_path / scheme.weights, scheme)
    plain, int8, int4 = (int(subprocess.run(
        [sys.executable, '-c', RESIDENT, str(tmp_path / name)], check=True, capture_output=True,
        text=True, timeout=300).stdout) for name in ('plain', 'int8', 'int4'))
    print(f'MiB: {plain / 2**20:.0f}, {int8 / 2**20:.0f}, {int4 / 2**20:.0f}')
    assert int8 < 0.55 * plain and int4 < 0.35 * plain
