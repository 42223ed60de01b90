"""Fixtures that every room's tests share."""

import fcntl
import os
import tempfile
from pathlib import Path

import pytest

DDS = ('embedded_ros', 'ros', 'sim/test_robot_node.py')
"""Tests below here start nodes: in turn, since they may be on the same domain."""
LONG = ('training', 'evaluation', 'engine', 'accel', 'parity', 'sim')
"""Rooms whose files take longest: begun before the others, so that no process ends long after."""
REPOSITORY = Path(__file__).resolve().parent.parent
NICENESS = 10
"""Of tests without nodes, where other processes run some with nodes."""


def pytest_configure(config):
    """Have all processes of a run share what is compiled: other engines, workers, and nodes.

    Compilations are counted nevertheless, and an executable from the folder says the same about
    its memory. Tests of compiling itself give their nodes a folder of their own.
    """
    if 'PYTEST_XDIST_WORKER' in os.environ:
        return  # Those of the process that started this one hold here, too.
    folder = tempfile.TemporaryDirectory(prefix='compiled_', ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    os.environ.update(JAX_COMPILATION_CACHE_DIR=folder.name,
                      JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
                      JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES='-1')


def group_of(path: str) -> str:
    """Return what one process is to run whole: a file (below test/), or all those with nodes."""
    return 'dds' if path.startswith(DDS) else path


def pytest_collection_modifyitems(items):
    """Have tests with nodes come first: they wait for much, while another process computes."""
    def begun(item) -> int:
        path = item.path.relative_to(REPOSITORY / 'test').as_posix()
        if group_of(path) == 'dds':
            return 0
        room = path.partition('/')[0]
        return 1 + (LONG.index(room) if room in LONG else len(LONG))

    items.sort(key=begun)


def pytest_runtest_setup(item):
    """Let nodes compute first: what runs beside them has no deadlines."""
    path = item.path.relative_to(REPOSITORY / 'test').as_posix()
    if 'PYTEST_XDIST_WORKER' in os.environ and group_of(path) != 'dds' and os.nice(0) == 0:
        os.nice(NICENESS)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    """Have tests marked `timed` run while no other process of the run does any test."""
    if 'PYTEST_XDIST_WORKER' not in os.environ:
        yield
        return
    folder = Path(os.environ['JAX_COMPILATION_CACHE_DIR'])
    timed = item.get_closest_marker('timed') is not None
    with (folder / 'gate').open('w') as gate, (folder / 'room').open('w') as room:
        # Who waits for the room to be empty keeps the gate meanwhile, so that no one else enters.
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if timed else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Deal out groups. Not by xdist's marks, which pytest 9.2 makes void without a word."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid.partition('::')[0].removeprefix('test/'))

    return Groups(config, log)


@pytest.fixture(scope='session')
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope='session')
def golden() -> Path:
    """Return the folder of reference data made with openpi; skip where it does not exist."""
    folder = Path(os.environ.get('PI0_GOLDEN', REPOSITORY / '..' / 'shared' / 'golden')).resolve()
    if not (folder / 'README.md').is_file():
        pytest.skip(f'no golden data at {folder} (set PI0_GOLDEN)')
    return folder


@pytest.fixture(scope='session')
def tabletop_profile(repository):
    from ros_pi0_fast.codec.robot_profile import RobotProfile
    return RobotProfile.load(repository / 'config' / 'robots' / 'tabletop.yaml')


@pytest.fixture(scope='module')
def quick_compilation():
    """Optimize little: networks this small take longer to optimize than to run."""
    import jax
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='session')
def shared_folder(tmp_path_factory) -> Path:
    """Return a folder that all processes of one run of pytest share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if 'PYTEST_XDIST_WORKER' in os.environ else own


@pytest.fixture(scope='session')
def random_checkpoint(tabletop_profile, shared_folder) -> Path:
    """A whole checkpoint of a very small policy for the tabletop, with random weights.

    The first process that asks for it makes it.
    """
    root = shared_folder / 'policy'
    with (shared_folder / 'policy.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            root.mkdir()
            _save_random_checkpoint(tabletop_profile, root)
    return root / 'checkpoint'


def _save_random_checkpoint(tabletop_profile, root: Path) -> None:
    import jax
    import numpy as np

    from ros_pi0_fast.codec.build_tokenizers import build_text_model
    from ros_pi0_fast.codec.contract import PolicyContract
    from ros_pi0_fast.codec.fast import FastTokenizer
    from ros_pi0_fast.codec.normalize import NormStats
    from ros_pi0_fast.codec.policy_codec import PolicyCodec
    from ros_pi0_fast.codec.prompt import TextTokenizer
    from ros_pi0_fast.model.config import GemmaConfig, Pi0FastConfig, SiglipConfig
    from ros_pi0_fast.model.pi0_fast import Pi0Fast
    from ros_pi0_fast.weights.checkpoint import save_checkpoint

    rng = np.random.default_rng(0)
    chunks = np.cumsum(rng.normal(scale=0.15, size=(500, 10, 5)), axis=1).clip(-1.2, 1.2)
    text = root / 'text.model'
    text.write_bytes(build_text_model())
    codec = PolicyCodec(
        profile=tabletop_profile, text=TextTokenizer(text),
        norm_stats=NormStats.compute(state=rng.normal(size=(500, 5)), actions=chunks),
        contract=PolicyContract.from_profile(tabletop_profile, text_vocab_size=1024,
                                             first_token_offset=0),
        fast=FastTokenizer.fit(chunks, scale=10, vocab_size=256))
    config = Pi0FastConfig(
        siglip=SiglipConfig(width=32, depth=1, mlp_dim=48, num_heads=2, patch_size=(16, 16),
                            image_size=(64, 64)),
        gemma=GemmaConfig(width=48, depth=2, mlp_dim=64, num_heads=4, num_kv_heads=1, head_dim=16,
                          vocab_size=1024),
        action_dim=5, action_horizon=10, max_token_len=80, first_token_offset=0,
        camera_keys=('base_0_rgb', 'wrist_0_rgb'))
    params = jax.jit(Pi0Fast(config).init)(jax.random.key(0))
    save_checkpoint(root / 'checkpoint', params, codec)
