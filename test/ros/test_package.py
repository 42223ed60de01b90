"""CMakeLists.txt, package.xml and setup.py say the same: one of them is used at a time."""

import ast
import os
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

# ROS packages whose Python modules are not named as they are.
PROVIDED_BY = {'cv2': 'python3-opencv', 'numpy': 'python3-numpy', 'yaml': 'python3-yaml',
               'PIL': 'python3-pil'}
ROS_MODULES = {'rclpy', 'cv_bridge', 'rcl_interfaces', 'sensor_msgs', 'std_msgs', 'std_srvs',
               'builtin_interfaces', 'diagnostic_msgs', 'trajectory_msgs', *PROVIDED_BY}


@pytest.fixture(scope='module')
def cmake(repository):
    return (repository / 'CMakeLists.txt').read_text('utf-8')


@pytest.fixture(scope='module')
def manifest(repository):
    return ElementTree.parse(repository / 'package.xml').getroot()


def setup_py(repository, *words):
    return subprocess.run([sys.executable, 'setup.py', '--quiet', *words], cwd=repository,
                          check=True, capture_output=True, text=True).stdout.splitlines()


def test_cmake_generates_every_message_and_its_dependencies(repository, cmake, manifest):
    listed = set(re.findall(r'"(msg/\w+\.msg)"', cmake))
    assert listed == {f'msg/{path.name}' for path in (repository / 'msg').glob('*.msg')}
    text = ''.join(path.read_text('utf-8') for path in (repository / 'msg').glob('*.msg'))
    used = set(re.findall(r'^(\w+)/\w+', text, re.M))
    assert set(re.search(r'DEPENDENCIES ([\w ]+)', cmake).group(1).split()) == used
    assert used == {tag.text for tag in manifest.findall('depend')}
    assert all(f'find_package({name} REQUIRED)' in cmake for name in used)


def test_cmake_installs_every_executable_that_pip_installs(repository, cmake):
    scripts = repository / 'scripts' / 'ros'
    installed = set(re.findall(r'^  scripts/ros/(\w+)$', cmake, re.M))
    entry_points = dict(re.findall(r"'(\w+) = (ros_pi0_fast[\w.]*):main'",
                                   (repository / 'setup.py').read_text('utf-8')))
    assert installed == {path.name for path in scripts.iterdir()} == set(entry_points)
    for name, module in entry_points.items():
        text = (scripts / name).read_text('utf-8')
        assert text.startswith('#!/usr/bin/env python3\n')
        assert f'from {module} import main' in text
        assert os.access(scripts / name, os.X_OK)


def test_the_manifest_says_what_setup_says(repository, manifest):
    name, version, licence, maintainer, mail = setup_py(
        repository, '--name', '--version', '--license', '--maintainer', '--maintainer-email')
    assert (manifest.findtext('name'), manifest.findtext('version')) == (name, version)
    assert manifest.findtext('license') == licence
    assert manifest.findtext('maintainer') == maintainer
    assert manifest.find('maintainer').get('email') == mail
    assert manifest.get('format') == '3'
    assert manifest.findtext('export/build_type') == 'ament_cmake'


def test_the_manifest_names_what_is_imported(repository, manifest):
    named = {tag.text for tag in manifest if tag.tag in ('depend', 'exec_depend')}
    for path in (repository / 'ros_pi0_fast').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text('utf-8'))):
            modules = ([alias.name for alias in node.names] if isinstance(node, ast.Import)
                       else [node.module or ''] if isinstance(node, ast.ImportFrom) else [])
            for module in {name.split('.')[0] for name in modules} & ROS_MODULES:
                assert PROVIDED_BY.get(module, module) in named, f'{path}: {module}'


@pytest.mark.parametrize('folder', ['launch', 'config', 'checkpoints'])
def test_both_install_the_data(repository, cmake, folder):
    assert re.search(rf'install\(DIRECTORY [\w ]*\b{folder}\b[\w ]*\n', cmake)
    assert re.search(rf"data_files=share\([^)]*'{folder}'", (
        repository / 'setup.py').read_text('utf-8'))


@pytest.mark.parametrize('name', ['demo', 'pi0_fast', 'replay'])
def test_launch_files_have_only_attributes_of_ros_2(repository, name):
    """As launch_xml and launch_ros of Humble to Jazzy read them."""
    known = {'launch': set(), 'arg': {'name', 'default', 'description', 'value'},
             'param': {'name', 'value', 'from'}, 'include': {'file'}, 'group': {'if'},
             'set_parameter': {'name', 'value'},
             'node': {'pkg', 'exec', 'name', 'namespace', 'output', 'on_exit'}}
    root = ElementTree.parse(repository / 'launch' / f'{name}.launch.xml').getroot()
    declared = {tag.get('name') for tag in root.findall('arg')}
    for tag in root.iter():
        assert set(tag.attrib) <= known[tag.tag], tag.attrib
        used = {name for value in tag.attrib.values()
                for name in re.findall(r'\$\(var (\w+)\)', value)}
        assert used <= declared
