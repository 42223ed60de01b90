"""Installation: refused beside a real rclpy; messages of packages; where packages are."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ament_index_python.packages import (
    PackageNotFoundError,
    get_package_prefix,
    get_package_share_directory,
    get_packages_with_prefixes,
)
from ament_index_python.resources import get_resource, has_resource
from embedded_ros.interfaces import InterfaceError, install, keep_importable
from rosidl_runtime_py.utilities import get_message, get_service

SETUP = ['setup.py', '--version']


def run_setup(repository: Path, **environment: str) -> subprocess.CompletedProcess:
    pytest.importorskip('setuptools')
    clean = {k: v for k, v in os.environ.items() if k not in ('AMENT_PREFIX_PATH', 'PYTHONPATH')}
    return subprocess.run([sys.executable, *SETUP], cwd=repository / 'embedded_ros',
                          env={**clean, **environment}, capture_output=True, text=True,
                          check=False)


def real_rclpy(folder: Path) -> Path:
    """Write a package `rclpy` that is not ours, as a sourced ROS 2 has one."""
    (folder / 'rclpy').mkdir(parents=True)
    (folder / 'rclpy' / '__init__.py').write_text('"""ROS 2 client library."""\n')
    return folder


def test_installs_where_only_its_own_rclpy_is(repository):
    result = run_setup(repository, PYTHONPATH=str(repository / 'embedded_ros'))
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == '0.1.0'


@pytest.mark.parametrize('layout', ['lib/python3.12/site-packages',
                                    'local/lib/python3.10/dist-packages'])
def test_refuses_beside_a_sourced_ros(repository, tmp_path, layout):
    """pip hides PYTHONPATH from isolated builds; AMENT_PREFIX_PATH it leaves alone."""
    folder = real_rclpy(tmp_path / 'ros' / layout)
    result = run_setup(repository, AMENT_PREFIX_PATH=str(tmp_path / 'ros'))
    assert result.returncode != 0
    assert str(folder / 'rclpy') in result.stderr and 'real rclpy' in result.stderr


def test_refuses_beside_an_importable_rclpy(repository, tmp_path):
    folder = real_rclpy(tmp_path / 'anywhere')
    result = run_setup(repository, PYTHONPATH=str(folder))
    assert result.returncode != 0
    assert str(folder / 'rclpy') in result.stderr


def test_interfaces_of_a_package(tmp_path):
    source = tmp_path / 'source'
    source.mkdir()
    (source / 'Grasp.msg').write_text(
        '# A grasp\nuint8 OPEN=1\nstd_msgs/Header header\nfloat32[] width 	# metres\n'
        'string<=5 label "none"\nint32[3] counts\nPart part\nfloat64 effort 2.5\n')
    (source / 'Part.msg').write_text('string name\n')
    (source / 'Pick.srv').write_text('Grasp grasp\n---\nbool done\n')
    target = tmp_path / 'target'
    names = install('test_arm_msgs', source, target)
    assert names == [f'test_arm_msgs/{n}' for n in ('msg/Grasp', 'msg/Part', 'srv/Pick')]
    code = ('from test_arm_msgs.msg import Grasp, Part; from test_arm_msgs.srv import Pick\n'
            'from embedded_ros.typestore import serialize, deserialize\n'
            "g = Grasp(width=[0.5], part=Part(name='p'))\n"
            "assert (g.label, g.effort, g.OPEN, len(g.counts)) == ('none', 2.5, 1, 3)\n"
            'assert deserialize(serialize(g), Grasp) == g\n'
            'assert Pick.Request(grasp=g).grasp is g and Pick.Response().done is False\n'
            'try: g.label = "longer"\nexcept AssertionError: print("fine")\n')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': os.pathsep.join(
                              [str(target), *sys.path])}, check=False)
    assert (done.stdout, done.stderr) == ('fine\n', '')


def test_definitions_that_are_gone_go(tmp_path):
    source, target = tmp_path / 'source', tmp_path / 'target'
    source.mkdir()
    for name in ('A.msg', 'B.msg', 'C.srv'):
        (source / name).write_text('---\n' if name == 'C.srv' else 'bool x\n')
    install('test_gone_msgs', source, target)
    (source / 'B.msg').unlink()
    (source / 'C.srv').unlink()
    install('test_gone_msgs', source, target)
    left = {str(path.relative_to(target)) for path in target.rglob('*.*')}
    assert left == {'test_gone_msgs/msg/A.msg', 'test_gone_msgs/msg/__init__.py'}


def test_an_editable_package_is_not_hidden_by_its_messages(tmp_path, monkeypatch):
    repository, site = tmp_path / 'repository', tmp_path / 'site'
    (repository / 'test_soft' / 'sub').mkdir(parents=True)
    (repository / 'test_soft' / '__init__.py').write_text(
        "__path__ = __import__('pkgutil').extend_path(__path__, __name__)\nREAL = True\n")
    (repository / 'Note.msg').write_text('string text\n')
    info = site / 'test_soft-1.0.dist-info'
    info.mkdir(parents=True)
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: test_soft\nVersion: 1.0\n')
    (info / 'direct_url.json').write_text(json.dumps(
        {'url': repository.as_uri(), 'dir_info': {'editable': True}}))
    monkeypatch.syspath_prepend(str(site))
    install('test_soft', repository, site)
    keep_importable('test_soft', site)
    code = (f'import site; site.addsitedir({str(site)!r}); import test_soft\n'
            'from test_soft.msg import Note; print(test_soft.REAL, Note(text="x").text)')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          check=False)
    assert (done.stdout, done.stderr) == ('True x\n', '')


@pytest.mark.parametrize(('package', 'files', 'words'), [
    ('test_none_msgs', {}, ['no .msg']),
    ('Test', {'A.msg': ''}, ["'Test'"]),
    ('../up', {'A.msg': ''}, ["'../up'"]),
    ('test_bad1_msgs', {'A.msg': 'not a definition !\n'}, ['A.msg']),
    ('test_bad2_msgs', {'A.msg': 'Missing field\n'}, ['A.msg', 'Missing']),
    ('test_bad3_msgs', {'A.srv': 'bool x\n'}, ['A.srv', '---'])])
def test_broken_interfaces_are_named(tmp_path, package, files, words):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InterfaceError) as caught:
        install(package, tmp_path, tmp_path / 'target')
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_messages_of_this_repository(repository, tmp_path):
    names = install('ros_pi0_fast', repository / 'msg', tmp_path)
    assert {'ros_pi0_fast/msg/ActionChunk', 'ros_pi0_fast/msg/InferenceStats'} <= set(names)


def test_interfaces_by_name():
    assert get_message('std_msgs/msg/String')(data='x').data == 'x'
    assert get_service('std_srvs/srv/Trigger').Response().success is False
    for wrong in ('std_msgs/String', 'String', 'std_msgs/srv/String', 'os/msg/../x'):
        with pytest.raises(ValueError, match='full name'):
            get_message(wrong)
    with pytest.raises(AttributeError, match='Strong'):
        get_message('std_msgs/msg/Strong')
    with pytest.raises(ModuleNotFoundError):
        get_message('absent_msgs/msg/X')


def test_packages_by_the_index(tmp_path, monkeypatch):
    index = tmp_path / 'share' / 'ament_index' / 'resource_index' / 'packages'
    index.mkdir(parents=True)
    (index / 'test_arm').write_text('content')
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'{tmp_path}:/absent')
    assert get_package_prefix('test_arm') == str(tmp_path)
    assert get_package_share_directory('test_arm') == str(tmp_path / 'share' / 'test_arm')
    assert get_packages_with_prefixes()['test_arm'] == str(tmp_path)
    assert get_resource('packages', 'test_arm') == ('content', str(tmp_path))
    assert has_resource('packages', 'absent') is None
    with pytest.raises(PackageNotFoundError, match='test_absent'):
        get_package_share_directory('test_absent')
    for wrong in ('../up', 'a/b', ''):
        with pytest.raises(ValueError, match='not a valid package name'):
            get_package_share_directory(wrong)


def test_packages_by_their_distribution(tmp_path, monkeypatch):
    """As colcon installs one (a prefix of its own), and as `pip install -e` does."""
    site = tmp_path / 'prefix' / 'lib' / 'python3' / 'site-packages'
    info = site / 'test_arm-1.0.dist-info'
    info.mkdir(parents=True)
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: test_arm\nVersion: 1.0\n')
    index = tmp_path / 'prefix' / 'share' / 'ament_index' / 'resource_index' / 'packages'
    index.mkdir(parents=True)
    (index / 'test_arm').write_text('')
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delenv('AMENT_PREFIX_PATH', raising=False)
    share = tmp_path / 'prefix' / 'share' / 'test_arm'
    assert get_package_share_directory('test_arm') == str(share)
    shutil.rmtree(index)
    with pytest.raises(PackageNotFoundError):
        get_package_share_directory('test_arm')
    repository = tmp_path / 'a repository'
    repository.mkdir()
    (info / 'direct_url.json').write_text(json.dumps(
        {'url': repository.as_uri(), 'dir_info': {'editable': True}}))
    assert get_package_share_directory('test_arm') == str(repository)
    assert get_package_prefix('test_arm') == str(tmp_path / 'prefix')
