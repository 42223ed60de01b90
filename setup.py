"""Serves pip, and colcon's plain-Python build on a machine without ROS 2.

With ROS 2, CMakeLists.txt builds the same package (package.xml says ament_cmake).
"""

from pathlib import Path

from setuptools import find_packages, setup

NAME = 'ros_pi0_fast'
ROOT = Path(__file__).resolve().parent


def share(*folders: str) -> list[tuple[str, list[str]]]:
    """List the data files below folders for <prefix>/share/ros_pi0_fast."""
    found = [('share/ament_index/resource_index/packages', ['config/ament_index/ros_pi0_fast']),
             (f'share/{NAME}', ['package.xml'])]
    for folder in folders:
        for path in sorted((ROOT / folder).rglob('*')):
            if path.is_file() and '__pycache__' not in path.parts:
                relative = path.relative_to(ROOT)
                found.append((f'share/{NAME}/{relative.parent}', [str(relative)]))
    return found


setup(
    name=NAME,
    version='0.1.0',
    description='Pi0-FAST vision-language-action policy as a ROS 2 node, in JAX',
    license='Apache-2.0',
    maintainer='ros_pi0_fast maintainers',
    maintainer_email='maintainers@ros-pi0-fast.example.org',
    packages=find_packages(include=[NAME, f'{NAME}.*']),
    package_data={f'{NAME}.accel.kernels': ['decoder_pass_cuda/*']},
    data_files=share('launch', 'config', 'msg', 'checkpoints'),
    python_requires='>=3.10',
    install_requires=[
        'jax>=0.6.1,<0.12',  # 0.6.0: see engine.compiler.READS_BACK.
        'flax>=0.10.4,<0.14',
        'orbax-checkpoint>=0.11.13,<0.13',
        'optax>=0.2.4,<0.3',
        'numpy>=1.26,<3',
        'scipy>=1.11,<2',
        'opencv-python>=4.8,<6',
        'pillow>=10,<14',
        'PyYAML>=6,<7',
        'sentencepiece>=0.2.3,<0.3',  # before, training a model may abort the process
        'tokenizers>=0.20,<0.24',
        'rosbags>=0.11,<0.12',
        'tqdm>=4.66,<5',
        'matplotlib>=3.8,<4',
    ],
    extras_require={
        # Beside jax[cuda12] or jax[cuda13], which bring NVRTC, of the same CUDA.
        'gpu': ['cuda-bindings>=12.6,<14'],
        'sim': ['mujoco>=3.2,<5', 'imageio>=2.34,<3'],
        # qwix, the oracle of one test, needs a flax that there is from Python 3.11 on only.
        'test': ['pytest>=8,<10', 'pytest-timeout>=2.3,<3', 'pytest-xdist>=3.7,<4',
                 'qwix>=0.1.8,<0.2; python_version >= "3.11"'],
    },
    entry_points={
        'console_scripts': [
            'policy_node = ros_pi0_fast.node.policy_node:main',
            'tabletop_robot = ros_pi0_fast.sim.robot_node:main',
            'evaluate_bag = ros_pi0_fast.evaluation.bag:main',
            'replay_scorer = ros_pi0_fast.evaluation.bag_live:main',
            'parity = ros_pi0_fast.evaluation.parity:main',
        ],
    },
)
