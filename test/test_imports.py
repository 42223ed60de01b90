"""Imports point one way, and what is light stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOMS = ('codec', 'model', 'weights', 'accel', 'engine', 'node', 'evaluation', 'training', 'sim')
MAY_IMPORT = {
    'codec': {'types', 'share'},
    'model': {'types'},
    'weights': {'model', 'codec', 'types'},
    'accel': {'weights', 'model', 'codec', 'types'},
    'engine': {'accel', 'weights', 'model', 'codec', 'types'},
    'node': {'engine', 'accel', 'weights', 'model', 'codec', 'types', 'share', 'msg'},
    'sim': {'types', 'codec', 'share', 'msg'},
    'evaluation': {'node', 'sim', 'engine', 'accel', 'weights', 'model', 'codec', 'types',
                   'share', 'msg'},
    'training': {'evaluation', 'sim', 'engine', 'accel', 'weights', 'model', 'codec', 'types',
                 'share'}}
NODES = {*(f'node/{name}.py' for name in (
    'policy_node', 'serving', 'parameters', 'messages', 'health', 'outputs', 'process',
    'trajectory', 'transitions')), 'sim/robot_node.py', 'evaluation/bag_live.py'}
ROS = {'rclpy', 'rcl_interfaces', 'sensor_msgs', 'std_msgs', 'std_srvs', 'builtin_interfaces',
       'diagnostic_msgs', 'trajectory_msgs'}


def imports(path: Path) -> set[str]:
    """Return the absolute names that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text('utf-8'))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f'{node.module}.{alias.name}' for alias in node.names}
    return found


@pytest.mark.parametrize('room', ROOMS)
def test_rooms_import_only_what_they_may(repository, room):
    allowed = MAY_IMPORT[room] | {room}
    for path in (repository / 'ros_pi0_fast' / room).rglob('*.py'):
        used = {name.split('.')[1] for name in imports(path)
                if name.startswith('ros_pi0_fast.')}
        assert used <= allowed, f'{path}: imports {sorted(used - allowed)}'


def test_only_the_nodes_import_ros(repository):
    package = repository / 'ros_pi0_fast'
    users = {str(path.relative_to(package)) for path in package.rglob('*.py')
             if {name.split('.')[0] for name in imports(path)} & ROS}
    assert users == NODES


@pytest.mark.parametrize('module', ['ros_pi0_fast', 'ros_pi0_fast.types', *(
    f'ros_pi0_fast.{room}' for room in ROOMS)])
def test_importing_a_room_is_cheap(repository, module):
    program = f'import sys, {module}; print(*sorted({{m.split(".")[0] for m in sys.modules}}))'
    loaded = subprocess.run([sys.executable, '-c', program], cwd=repository, check=True,
                            capture_output=True, text=True, timeout=60).stdout.split()
    assert not set(loaded) & {'jax', 'flax', 'rclpy', 'mujoco', 'cv2', 'tokenizers'}
