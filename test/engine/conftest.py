"""The policy with random weights, loaded, and observations for it."""

import numpy as np
import pytest

from ros_pi0_fast.engine import program
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.types import Observation


@pytest.fixture(scope='session')
def profile(tabletop_profile):
    return tabletop_profile


@pytest.fixture(scope='session')
def folder(random_checkpoint):
    return random_checkpoint


@pytest.fixture(scope='session')
def policy(folder, profile):
    return load_policy(folder, profile)


@pytest.fixture(scope='session')
def observations():
    """Return a function that makes so many random observations."""
    def make(count, seed=0, size=(64, 64)):
        rng = np.random.default_rng(seed)
        words = ('touch', 'push', 'the', 'red', 'blue', 'cube', 'onto', 'green', 'mat', 'now')
        return [Observation(
            images={key: rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                    for key in ('base_0_rgb', 'wrist_0_rgb')},
            state=rng.normal(size=5).astype(np.float32), stamp_ns=i,
            instruction=' '.join(rng.choice(words, rng.integers(1, 30)))) for i in range(count)]
    return make


@pytest.fixture
def one_bucket(monkeypatch):
    """Pad every prompt to the longest there is, so that a variant has one prefill to compile."""
    monkeypatch.setattr(program, 'BUCKET', 1 << 10)
