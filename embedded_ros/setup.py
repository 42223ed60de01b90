"""Install the stand-in for ROS 2, unless a real ROS 2 is there."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import find_packages, setup

MARK = 'embedded_ros'  # the docstring of our own rclpy says this
FIND = """
from importlib.util import find_spec
spec = find_spec('rclpy')
print(spec.origin if spec and spec.origin else '')
"""


def python_folders() -> list[str]:
    """List the folders in which a ROS 2 of this shell has its Python packages."""
    prefixes = os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
    patterns = ('lib/python3*/site-packages', 'lib/python3*/dist-packages',
                'local/lib/python3*/dist-packages', 'Lib/site-packages')
    return [str(folder) for prefix in prefixes if prefix for pattern in patterns
            for folder in Path(prefix).glob(pattern)]


def real_rclpy() -> str:
    """Return the file of a real rclpy that this interpreter can import; empty without one.

    A new interpreter looks for it, since pip hides the environment from builds in isolation.
    """
    path = os.pathsep.join([*python_folders(), os.environ.get('PYTHONPATH', '')])
    environment = {**os.environ, 'PYTHONPATH': path}
    environment.pop('PYTHONNOUSERSITE', None)
    found = subprocess.run([sys.executable, '-c', FIND], env=environment, cwd='/',
                           capture_output=True, text=True, check=False).stdout.strip()
    if not found or not Path(found).is_file():
        return ''
    return '' if MARK in Path(found).read_text(encoding='utf-8', errors='replace') else found


found = real_rclpy()
if found:
    sys.exit(f'embedded-ros is not installed: a real rclpy is importable at {found}. '
             'The stand-in would hide it. Use ROS 2 itself, or a shell where it is not sourced.')

setup(
    name='embedded-ros',
    version='0.1.0',
    description='The part of ROS 2 that ros_pi0_fast uses, over real DDS, without ROS 2',
    license='Apache-2.0',
    packages=find_packages(include=['*']),
    package_dir={'': '.'},  # said aloud, an editable install is a plain folder on the path
    package_data={'embedded_ros': ['definitions/*/srv/*.srv']},
    python_requires='>=3.10',
    install_requires=[
        'cyclonedds>=11,<12',
        'rosbags>=0.11,<0.12',
        'numpy>=1.26,<3',
        'PyYAML>=6,<7',
    ],
    entry_points={'console_scripts': ['ros2 = ros2cli.main:main']},
)
