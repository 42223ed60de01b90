"""Simulation and expert run in worker processes: they must not bring JAX or ROS along."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize('module', ['episodes', 'expert', 'record', 'tabletop', 'chunk_player'])
def test_no_jax_and_no_ros(module):
    code = (f'import sys, ros_pi0_fast.sim.{module}; '
            "print(sorted({'jax', 'flax', 'rclpy'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          check=True)
    assert done.stdout.strip() == '[]'
