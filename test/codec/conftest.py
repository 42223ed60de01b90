"""A tabletop codec made from nothing: real tokenizers, fitted on smooth random chunks."""

import numpy as np
import pytest

from ros_pi0_fast.codec.build_tokenizers import build_text_model
from ros_pi0_fast.codec.contract import PolicyContract
from ros_pi0_fast.codec.fast import FastTokenizer
from ros_pi0_fast.codec.normalize import NormStats
from ros_pi0_fast.codec.prompt import TextTokenizer
from ros_pi0_fast.codec.robot_profile import RobotProfile


def smooth_chunks(number, seed=0):
    """Return normalized chunks [number, 10, 5] of joints that move and a gripper that switches."""
    rng = np.random.default_rng(seed)
    chunks = np.cumsum(rng.normal(scale=0.15, size=(number, 10, 5)), axis=1).clip(-1.2, 1.2)
    chunks[..., 4] = np.where(rng.random((number, 1)) < 0.5, -1.0, 1.0)
    return chunks


@pytest.fixture(scope='session')
def chunks():
    return smooth_chunks(1000)


@pytest.fixture(scope='session')
def fast(chunks):
    return FastTokenizer.fit(chunks, scale=10, vocab_size=256)


@pytest.fixture(scope='session')
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp('text') / 'paligemma_tokenizer.model'
    path.write_bytes(build_text_model())
    return TextTokenizer(path)


@pytest.fixture(scope='session')
def profile(repository):
    return RobotProfile.load(repository / 'config/robots/tabletop.yaml')


@pytest.fixture(scope='session')
def norm_stats():
    rng = np.random.default_rng(1)
    return NormStats.compute(state=rng.uniform(-1.5, 1.5, (500, 5)),
                             actions=rng.uniform(-0.4, 0.6, (500, 10, 5)))


@pytest.fixture(scope='session')
def contract(profile, text):
    return PolicyContract.from_profile(
        profile, text_vocab_size=text.vocab_size, first_token_offset=0)
