"""Every row of the golden data passes, and what is wrong, missing or unknown is told."""

import json
import shutil

import numpy as np
import pytest

from ros_pi0_fast.evaluation.parity import main
from ros_pi0_fast.model.config import GemmaConfig, Pi0FastConfig, SiglipConfig


def config_of(**changes) -> Pi0FastConfig:
    siglip = {'width': 24, 'depth': 1, 'mlp_dim': 40, 'num_heads': 3, 'patch_size': (4, 8),
              'image_size': (9, 16)}
    gemma = {'width': 20, 'depth': 2, 'mlp_dim': 36, 'num_heads': 4, 'num_kv_heads': 2,
             'head_dim': 6, 'vocab_size': 70}
    return Pi0FastConfig(
        siglip=SiglipConfig(**{key: changes.get(key, value) for key, value in siglip.items()}),
        gemma=GemmaConfig(**{**gemma, 'num_kv_heads': changes.get('num_kv_heads', 2)}),
        action_dim=1, action_horizon=1, max_token_len=11,
        camera_keys=changes.get('camera_keys', ('only_rgb',)))


def copied(source, target):
    """Copy a folder so that it can be changed."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for path in (target, *target.rglob('*')):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target


def change(path, name, edit):
    with np.load(path) as arrays:
        content = dict(arrays)
    content[name] = edit(content[name])
    np.savez(path, **content)


@pytest.mark.parametrize('folder,rows', [
    ('tiny-a', 100), ('tiny-a-lora', 5), ('fast', 5), ('policy_libero', 13), ('param_tables', 16)])
def test_golden_data_pass(golden, capsys, folder, rows):
    assert main([str(golden / folder)]) == 0
    output = capsys.readouterr().out
    assert output.count('  pass') >= rows
    assert 'MISS' not in output
    assert output.endswith('all pass\n')


@pytest.fixture(scope='module')
def sound(tmp_path_factory, write_folder):
    return write_folder(tmp_path_factory.mktemp('sound') / 'model', config_of(), batch=3)


def test_other_sizes_are_taken_from_the_folder(sound, capsys):
    assert main([str(sound)]) == 0
    output = capsys.readouterr().out
    assert 'architecture derived from parameter shapes' in output
    assert output.count('  pass') > 40


def test_masked_cameras_and_fused_projections(tmp_path, write_folder, capsys):
    config = config_of(num_kv_heads=4, camera_keys=('a_rgb', 'b_rgb'), image_size=(12, 24))
    folder = write_folder(tmp_path / 'model', config, batch=1, masked=True)
    assert main([str(folder)]) == 0
    output = capsys.readouterr().out
    assert 'skip    differs on purpose: openpi attends to the slots of the masked' in output
    assert 'base: step logits' in output
    assert 'masked: step logits' not in output
    assert 'masked: gradient llm/layers/attn/qkv_einsum/w' in output


@pytest.mark.parametrize('file,array,edit,row', [
    ('base.npz', 'out/siglip/only_rgb', lambda x: x + 3e-5, 'base: SigLIP only_rgb'),
    ('base.npz', 'out/prefix_embeddings', lambda x: x + 2e-4, 'base: prefix embeddings'),
    ('base.npz', 'out/prefill_last_logits', lambda x: x + 2e-4, 'base: prefill logits'),
    ('base.npz', 'out/step_logits', lambda x: x * np.nan, 'base: step logits'),
    ('base.npz', 'out/prefill_cache_k_last', lambda x: x + 2e-4, 'base: prefill cache k last'),
    ('base.npz', 'out/sample_actions', lambda x: (x + 1) % 70, 'base: tokens'),
    ('base.npz', 'out/compute_loss', lambda x: x + 1e-4, 'base: loss'),
    ('base.npz', 'out/compute_loss', lambda x: x[None], 'base: loss'),
    ('base_grads.npz', 'PaliGemma/img/head/bias', lambda x: x * 1.01,
     'base: gradient img/head/bias'),
    ('params_f32.npz', 'PaliGemma/img/head/bias', lambda x: x + 1, 'checkpoint: 32 parameters'),
])
def test_a_wrong_number_is_a_miss(sound, tmp_path, capsys, file, array, edit, row):
    folder = copied(sound, tmp_path / 'model')
    change(folder / file, array, edit)
    assert main([str(folder)]) == 1
    missed = [line for line in capsys.readouterr().out.splitlines() if 'MISS' in line]
    assert any(line.startswith(row) for line in missed)


def test_a_wrong_size_is_a_miss(sound, tmp_path, capsys):
    folder = copied(sound, tmp_path / 'model')
    description = json.loads((folder / 'description.json').read_text())
    description['gemma']['width'] = 21
    (folder / 'description.json').write_text(json.dumps(description))
    assert main([str(folder)]) == 1
    assert 'gemma.width 20, expected 21' in capsys.readouterr().out


@pytest.mark.parametrize('missing,message', [
    ('base.npz', 'base.npz: cannot be read'),
    ('params_f32.npz', 'params_f32.npz: cannot be read'),
    ('description.json', 'found no description.json, no vectors.npz and no table of parameters'),
    ('checkpoint/params/_METADATA', 'checkpoint: truncated: arrays but no _METADATA'),
])
def test_a_missing_file_is_named(sound, tmp_path, capsys, missing, message):
    folder = copied(sound, tmp_path / 'model')
    (folder / missing).unlink()
    assert main([str(folder)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize('damage,message', [
    (lambda f: (f / 'tokenizer/tokenizer.json').unlink(), 'tokenizer.json: cannot be read'),
    (lambda f: (f / 'vectors.npz').unlink(), 'vectors.npz: cannot be read'),
    (lambda f: (f / 'vectors.npz').write_bytes(b'none'), 'vectors.npz: cannot be read'),
])
def test_a_broken_fast_folder_is_named(golden, tmp_path, capsys, damage, message):
    folder = copied(golden / 'fast', tmp_path / 'fast')
    damage(folder)
    assert main([str(folder)]) == 2
    assert message in capsys.readouterr().err


def test_fast_misses(golden, tmp_path, capsys):
    folder = copied(golden / 'fast', tmp_path / 'fast')
    change(folder / 'vectors.npz', 'token_ids', lambda ids: np.where(ids == ids[3, 0], 7, ids))
    change(folder / 'edge/vectors.npz', 'decoded', lambda x: x + 1e-5)
    malformed = json.loads((folder / 'malformed.json').read_text())
    with np.load(folder / 'vectors.npz') as arrays:
        malformed['extra']['ids'] = arrays['token_ids'][5, :arrays['n_ids'][5]].tolist()
    (folder / 'malformed.json').write_text(json.dumps(malformed))
    assert main([str(folder)]) == 1
    output = capsys.readouterr().out
    assert [line[:line.index('  ')] for line in output.splitlines() if 'MISS' in line] == [
        'FAST: ids of 25 chunks', 'FAST: decoded actions', 'FAST edge: decoded actions',
        'FAST malformed: refused where openpi returns zeros']


def test_a_policy_of_an_unknown_robot_is_refused(golden, tmp_path, capsys):
    folder = copied(golden / 'policy_libero', tmp_path / 'policy')
    text = (folder / 'description.json').read_text()
    (folder / 'description.json').write_text(text.replace('pi0_fast_libero', 'pi0_fast_arm'))
    assert main([str(folder)]) == 2
    assert "openpi_config: 'pi0_fast_arm', expected one for libero or droid" in (
        capsys.readouterr().err)


@pytest.mark.parametrize('edit,row', [
    (lambda t: t['params'][0].update(path='PaliGemma/other'), 'paths of 32 parameters'),
    (lambda t: t['params'][0]['shape'].append(2), 'shapes'),
    (lambda t: t['params'][0].update(dtype='bfloat16'), 'dtypes'),
    (lambda t: t.update(num_params=1), 'number of weights'),
])
def test_a_wrong_table_is_a_miss(golden, tmp_path, capsys, edit, row):
    table = json.loads((golden / 'param_tables/pi0_fast_full.json').read_text())
    edit(table)
    (tmp_path / 'table.json').write_text(json.dumps(table))
    assert main([str(tmp_path / 'table.json')]) == 1
    assert [line for line in capsys.readouterr().out.splitlines()
            if line.startswith(f'table: {row}') and 'MISS' in line]


def test_what_cannot_be_recognised_is_named(tmp_path, capsys):
    (tmp_path / 'description.json').write_text('{"a": 1}')
    (tmp_path / 'text.json').write_text('[]')
    for path, message in ((tmp_path / 'none', 'none: no such file or folder'),
                          (tmp_path, 'has neither openpi_config nor variants nor rank'),
                          (tmp_path / 'text.json', 'text.json: no parameter table')):
        assert main([str(path)]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
