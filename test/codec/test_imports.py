import subprocess
import sys

import pytest

PROGRAM = """
import importlib, pkgutil, sys
import ros_pi0_fast.types, ros_pi0_fast.codec as codec
names = [m.name for m in pkgutil.iter_modules(codec.__path__)]
assert len(names) > 8, names
for name in names:
    importlib.import_module(f'ros_pi0_fast.codec.{name}')
print(*sorted(m.split('.')[0] for m in sys.modules))
print(*sorted(m for m in sys.modules if m.startswith('ros_pi0_fast.')))
"""


@pytest.fixture(scope='module')
def loaded(repository):
    result = subprocess.run([sys.executable, '-c', PROGRAM], cwd=repository, check=True,
                            capture_output=True, text=True, timeout=120)
    packages, rooms = result.stdout.splitlines()
    return set(packages.split()), rooms.split()


def test_codec_imports_no_jax_and_no_ros(loaded):
    assert not loaded[0] & {'jax', 'jaxlib', 'flax', 'orbax', 'optax', 'rclpy', 'torch',
                            'transformers', 'mujoco'}
    assert {'numpy', 'tokenizers', 'sentencepiece'} <= loaded[0]


def test_codec_imports_no_other_room(loaded):
    rooms = {name.split('.')[1] for name in loaded[1]}
    assert rooms <= {'types', 'codec', 'share'}
