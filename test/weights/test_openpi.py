"""Checkpoints of openpi are read in every form, written as it writes them; errors are named."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ros_pi0_fast.weights.openpi import (
    CheckpointError,
    flatten,
    load_params,
    progress_bar,
    save_params,
)

# Peak of resident memory over the size of the parameters (issue: at most 1.3).
MEMORY = 1.3
LINEAR = 'PaliGemma/llm/layers/mlp/linear'


def assert_same(actual, expected):
    actual, expected = flatten(actual), flatten(expected)
    assert set(actual) == set(expected)
    for name, leaf in expected.items():
        assert actual[name].dtype == leaf.dtype, name
        np.testing.assert_array_equal(actual[name], leaf, err_msg=name)


def leaf_of(params, name):
    *parents, last = name.split('/')
    for key in parents:
        params = params[key]
    return params, last


def write(folder, params):
    """Write any tree, right or wrong, with Orbax itself."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder / 'params', {'params': jax.tree.map(jax.numpy.asarray, params)})
    return folder


@pytest.fixture
def saved(tmp_path, params):
    save_params(tmp_path / 'checkpoint', params)
    return tmp_path / 'checkpoint'


@pytest.mark.parametrize('form', [
    'checkpoint', 'checkpoint_no_value_suffix', 'checkpoint_zarr3', 'checkpoint_no_ocdbt',
    'checkpoint_bf16'])
def test_every_form_of_the_golden_checkpoint_is_read(golden, form):
    plain = np.load(golden / 'tiny-a/params_f32.npz')
    params = flatten(load_params(golden / 'tiny-a' / form))
    assert set(params) == set(plain.files)
    for name, leaf in params.items():
        np.testing.assert_array_equal(leaf, plain[name].astype(leaf.dtype))
    assert {leaf.dtype.name for leaf in params.values()} == {
        'bfloat16' if form.endswith('bf16') else 'float32'}


@pytest.mark.parametrize('kv_heads', [1, 2, 4])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path, make_params, kv_heads, dtype):
    params = make_params(kv_heads, dtype)
    save_params(tmp_path, params)
    assert_same(load_params(tmp_path), params)
    assert_same(load_params(tmp_path / 'params'), params)


def test_the_tree_that_is_written_is_openpis(golden, tmp_path):
    save_params(tmp_path, load_params(golden / 'tiny-a/checkpoint_bf16', dtype='float32'))
    table = json.loads((golden / 'param_tables/tiny-a.json').read_text())['params']
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(tmp_path / 'params').item_metadata.tree['params']
    found = {name: (list(leaf.shape), str(np.dtype(leaf.dtype)))
             for name, leaf in flatten(tree).items()}
    assert found == {leaf['path']: (leaf['shape'], leaf['dtype']) for leaf in table}


def test_orbax_restores_what_is_written_as_openpi_asks_it_to(saved, params):
    """The recipe of openpi's models/model.py: restore_params."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        item = {'params': checkpointer.metadata(saved / 'params').item_metadata.tree['params']}
        restored = checkpointer.restore(saved / 'params', ocp.args.PyTreeRestore(
            item=item, restore_args=jax.tree.map(
                lambda _: ocp.ArrayRestoreArgs(restore_type=np.ndarray), item)))
    assert_same(restored['params'], params)


def test_leaves_are_cast_placed_and_counted(saved, params):
    seen, placed = [], []
    loaded = load_params(saved, dtype='bfloat16',
                         place=lambda name, leaf: placed.append(leaf) or leaf,
                         progress=lambda *step: seen.append(step))
    expected = jax.tree.map(lambda leaf: leaf.astype('bfloat16'), params)
    assert_same(loaded, expected)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(expected))
    assert [step[2] for step in seen] == [total] * 32
    assert seen[-1][1] == total
    sizes = [leaf.nbytes for leaf in placed]
    assert sizes == sorted(sizes, reverse=True)
    with pytest.raises(ValueError, match="dtype: 'float16', expected one of float32, bfloat16"):
        load_params(saved, dtype='float16')


def test_progress_is_shown(saved, capfd):
    load_params(saved, progress=progress_bar())
    assert 'loading weights: 100%' in capfd.readouterr().err


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(CheckpointError, match='nowhere: no such folder, expected an openpi'):
        load_params(tmp_path / 'nowhere')
    with pytest.raises(CheckpointError, match='no params/_METADATA, expected an Orbax checkpoint'):
        load_params(tmp_path)
    (tmp_path / 'model.safetensors').touch()
    with pytest.raises(CheckpointError, match=r'a PyTorch checkpoint \(model.safetensors\)'):
        load_params(tmp_path)


def test_truncated_checkpoints_are_named(saved, params, tmp_path):
    def copy(name):
        return shutil.copytree(saved, tmp_path / name)

    no_metadata = copy('a')
    (no_metadata / 'params/_METADATA').unlink()
    with pytest.raises(CheckpointError, match='a: truncated: arrays but no _METADATA'):
        load_params(no_metadata)
    broken = copy('b')
    (broken / 'params/_METADATA').write_text('{"tree_meta')
    with pytest.raises(CheckpointError, match='b/params/_METADATA: cannot be read'):
        load_params(broken)
    (broken / 'params/_METADATA').write_text('{}')
    with pytest.raises(CheckpointError, match='b/params/_METADATA: no tree_metadata'):
        load_params(broken)
    for name, damage in (('c', lambda file: file.unlink()),
                         ('d', lambda file: file.write_bytes(file.read_bytes()[:100]))):
        folder = copy(name)
        for file in (folder / 'params').glob('ocdbt.process_0/d/*'):
            damage(file)
        with pytest.raises(CheckpointError, match=f'{name}/params: PaliGemma/.*: (named in _META'
                           r'DATA, but its array cannot be opened|cannot be read, the checkpoint '
                           'is truncated or damaged)'):
            load_params(folder)


def test_a_missing_file_of_a_folder_per_array_is_named(golden, tmp_path):
    folder = shutil.copytree(golden / 'tiny-a/checkpoint_no_ocdbt', tmp_path / 'copy')
    arrays = folder / 'params'
    arrays.chmod(0o755)
    chunk = arrays / 'params.PaliGemma.img.head.bias'
    chunk.chmod(0o755)
    (chunk / '0').unlink()
    with pytest.raises(CheckpointError, match='PaliGemma/img/head/bias: cannot be read, the '
                       'checkpoint is truncated'):
        load_params(folder)
    (chunk / '.zarray').unlink()
    with pytest.raises(CheckpointError, match='PaliGemma/img/head/bias: named in _METADATA, but '
                       'its array cannot be opened'):
        load_params(folder)


def remove(params, name):
    node, last = leaf_of(params, name)
    del node[last]


def put(params, name, value):
    node, last = leaf_of(params, name)
    node[last] = value


@pytest.mark.parametrize('change,message', [
    (lambda p: remove(p, LINEAR), f'{LINEAR}: missing'),
    (lambda p: put(p, 'PaliGemma/extra', np.zeros(3, np.float32)),
     'PaliGemma/extra: not a parameter of Pi0-FAST'),
    (lambda p: put(p, LINEAR, np.zeros((3, 48, 31), np.float32)),
     f'{LINEAR}: shape (3, 48, 31), expected (3, 48, 32)'),
    (lambda p: put(p, 'PaliGemma/llm/layers/attn/attn_vec_einsum/w',
                   np.zeros((3, 4, 10, 33), np.float32)),
     'PaliGemma/llm/layers/attn/attn_vec_einsum/w: shape (3, 4, 10, 33), expected (3, 4, 10, 32)'),
    (lambda p: put(p, LINEAR, np.zeros((3, 48), np.float32)),
     f'{LINEAR}: shape (3, 48), expected (3, 48, 32)'),
    (lambda p: put(p, LINEAR, np.zeros((3, 48, 32), np.int32)),
     f'{LINEAR}: dtype int32, expected float32 or bfloat16'),
])
def test_a_wrong_leaf_is_named_exactly(tmp_path, params, change, message):
    change(params)
    with pytest.raises(CheckpointError) as caught:
        load_params(write(tmp_path, params))
    assert str(caught.value) == f'{tmp_path}/params: {message}'
    with pytest.raises(CheckpointError) as caught:
        save_params(tmp_path / 'other', params)
    assert str(caught.value) == f'params: {message}'
    assert not (tmp_path / 'other').exists()


def test_extra_leaves_are_left_out_on_request(tmp_path, params):
    with_extra = {**params, 'extra': {'w': np.zeros(3, np.float32)}}
    assert_same(load_params(write(tmp_path, with_extra), allow_extra=True), params)


def test_a_value_suffix_on_some_leaves_only_is_refused(tmp_path, params):
    mixed = {'PaliGemma': params['PaliGemma'], 'x': {'value': np.zeros(3, np.float32)}}
    with pytest.raises(CheckpointError, match='params/x/value ends in value and params/PaliGemma/'
                       r'\S+ does not, expected all to or none'):
        load_params(write(tmp_path, mixed))


def test_parameters_are_not_overwritten(saved, params):
    with pytest.raises(CheckpointError, match='params: exists already, expected a new folder'):
        save_params(saved, params)


_MEASURE = """
import re, sys
from pathlib import Path
from ros_pi0_fast.weights.openpi import flatten, load_params

def resident(which):
    # Not getrusage, whose maximum a process inherits from the one that started it.
    status = Path('/proc/self/status').read_text()
    return 1024 * int(re.search(which + r':\\s*(\\d+) kB', status).group(1))

before = resident('VmRSS')
params = load_params(sys.argv[1])
size = sum(leaf.nbytes for leaf in flatten(params).values())
print((resident('VmHWM') - before) / size)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc/self/status')
def test_loading_takes_little_more_memory_than_the_parameters(tmp_path, params):
    # 203 MB, of which one leaf is 128 MB: more uneven than the full model.
    layers = params['PaliGemma']['llm']
    rng = np.random.default_rng(0)
    layers['embedder']['input_embedding'] = rng.standard_normal((1_000_000, 32), np.float32)
    layers['layers']['mlp'] = {
        'gating_einsum': rng.standard_normal((3, 2, 32, 1 << 16), np.float32),
        'linear': rng.standard_normal((3, 1 << 16, 32), np.float32)}
    save_params(tmp_path, params)
    measured = subprocess.run([sys.executable, '-c', _MEASURE, str(tmp_path)], check=True,
                              capture_output=True, text=True)
    assert 1.0 <= float(measured.stdout) <= MEMORY
