"""Checkpoints, profiles and parameters are data: nothing in them runs, none leads elsewhere."""

import ast
import json
import shutil

import numpy as np
import pytest

from ros_pi0_fast.accel.draft_file import DrafterError
from ros_pi0_fast.accel.pruning_file import PruningError
from ros_pi0_fast.codec.contract import ContractError
from ros_pi0_fast.codec.robot_profile import ProfileError, RobotProfile
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.policy import load_policy

RUNS_CODE = {'pickle', 'cPickle', '_pickle', 'dill', 'cloudpickle', 'marshal', 'shelve', 'joblib'}
SAFE_LOADERS = {'SafeLoader', 'CSafeLoader'}


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (exec, (f'open({str(self.path)!r}, "w")',))


def offences(tree):
    """Name what lets data run as code: its line, and what it is."""
    safe = SAFE_LOADERS | {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
                           and any(ast.unparse(base).split('.')[-1] in SAFE_LOADERS
                                   for base in node.bases)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, 'module', '') or ''}
            if {name.split('.')[0] for name in names} & RUNS_CODE:
                yield node.lineno, ast.unparse(node)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        unsafe = (called in ('eval', 'exec', 'compile')
                  or called in ('os.system', 'os.popen', 'subprocess.getoutput')
                  or given.get('shell') == 'True'
                  or (called in ('np.load', 'numpy.load') and given.get('allow_pickle') != 'False')
                  or (called == 'yaml.load' and given.get('Loader') not in safe)
                  or called in ('yaml.full_load', 'yaml.unsafe_load', 'torch.load'))
        if unsafe:
            yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize('folder', ['ros_pi0_fast', 'embedded_ros'])
def test_nothing_reads_data_as_code(repository, folder):
    files = list((repository / folder).rglob('*.py'))
    found = [f'{path}:{line}: {what}' for path in files
             for line, what in offences(ast.parse(path.read_text('utf-8')))]
    assert not found and len(files) > 50


@pytest.mark.parametrize('line', [
    'import pickle', 'from cloudpickle import loads', 'np.load(path)', 'yaml.load(text, Loader)',
    'np.load(path, allow_pickle=True)', 'yaml.load(text, Loader=yaml.Loader)', 'eval(text)',
    'subprocess.run(text, shell=True)', 'os.system(text)'])
def test_and_this_test_would_see_it(line):
    assert list(offences(ast.parse(line)))


@pytest.fixture
def checkpoint(random_checkpoint, tmp_path):
    return shutil.copytree(random_checkpoint, tmp_path / 'checkpoint')


@pytest.mark.parametrize(('file', 'record', 'error'), [
    ('drafters/ngram', {'sizes': {}}, DrafterError),
    ('pruner/weights', {'scorer': {}}, PruningError)])
def test_pickles_in_a_checkpoint_are_not_opened(checkpoint, tabletop_profile, tmp_path, file,
                                                record, error):
    path = checkpoint / file
    path.parent.mkdir()
    made = tmp_path / 'made'
    np.savez(path, evil=np.array([Touch(made)], object))
    name = 'pruner' if 'pruner' in file else path.name
    (path.parent / f'{name}.json').write_text(json.dumps(record))
    with pytest.raises(error, match='allow_pickle=False'):
        Engine(*load_policy(checkpoint, tabletop_profile))
    assert not made.exists()
    with np.load(path.with_suffix('.npz'), allow_pickle=True) as arrays:
        arrays['evil']
    assert made.exists()  # It would have been made.


def test_code_beside_a_tokenizer_is_not_run(checkpoint, tabletop_profile, tmp_path):
    """openpi's own loader runs what the folder's configuration names."""
    folder, made = checkpoint / 'assets' / 'fast_tokenizer', tmp_path / 'made'
    (folder / 'processing_action_tokenizer.py').write_text(f'open({str(made)!r}, "w")')
    config = json.loads((folder / 'processor_config.json').read_text())
    config['auto_map'] = {'AutoProcessor': 'processing_action_tokenizer.UniversalActionProcessor'}
    (folder / 'processor_config.json').write_text(json.dumps(config))
    load_policy(checkpoint, tabletop_profile)
    assert not made.exists()


def test_a_profile_with_python_in_it_is_refused(repository, tmp_path):
    text = (repository / 'config' / 'robots' / 'tabletop.yaml').read_text('utf-8')
    made, path = tmp_path / 'made', tmp_path / 'robot.yaml'
    path.write_text(text.replace('name: tabletop', 'name: !!python/object/apply:os.system '
                                                   f'["touch {made}"]', 1))
    with pytest.raises(ProfileError, match='is not plain YAML'):
        RobotProfile.load(path)
    assert not made.exists()


@pytest.mark.parametrize('folder', ['../tabletop', '/etc', 'a/../../b', 'a/./b', '~root', 'a\0b'])
def test_names_in_a_profile_lead_nowhere_else(repository, tmp_path, folder):
    text = (repository / 'config' / 'robots' / 'tabletop.yaml').read_text('utf-8')
    path = tmp_path / 'robot.yaml'
    path.write_text(text.replace('asset_id: tabletop', f'asset_id: {json.dumps(folder)}', 1))
    with pytest.raises(ProfileError, match=r'asset_id|plain YAML'):
        RobotProfile.load(path)


def test_names_in_a_policy_lead_nowhere_else(checkpoint, tabletop_profile):
    path = checkpoint / 'policy.json'
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {'asset_id': '../../elsewhere'}))
    with pytest.raises(ContractError, match=r'asset_id: .*elsewhere'):
        load_policy(checkpoint, tabletop_profile)


@pytest.mark.parametrize('kind', ['folder', 'device'])
def test_what_is_no_file_is_not_read_as_a_profile(tmp_path, kind):
    with pytest.raises(ProfileError, match='expected a regular file'):
        RobotProfile.load(tmp_path if kind == 'folder' else '/dev/zero')
