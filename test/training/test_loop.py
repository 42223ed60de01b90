"""The loop on a loss of its own: a linear map, so that the right answer is known."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ros_pi0_fast.training.loop import LoopConfig, TrainLoop, learning_rate_at
from ros_pi0_fast.training.metrics import MetricsFile, plot_curve

CONFIG = LoopConfig(steps=60, batch_size=16, learning_rate=0.05, warmup_steps=5,
                    weight_decay=0.0, ema_decay=0.9, steps_per_dispatch=7, checkpoint_every=20)

# Runs in a process of its own: argv = folder, seconds of sleep after each dispatch.
SCRIPT = """
import sys, time, pathlib
sys.path.insert(0, {here!r})
import test_loop
test_loop.train(pathlib.Path(sys.argv[1]), pause=float(sys.argv[2]))
print('done', flush=True)
"""


def make_data() -> tuple[dict, np.ndarray]:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 3)).astype(np.float32)
    x = rng.normal(size=(64, 4)).astype(np.float32)
    return {'x': x, 'y': x @ weight}, weight


def loss(params: dict, batch: dict, rng: jax.Array) -> tuple[jax.Array, dict]:
    error = batch['x'] @ params['kernel'] + params['bias'] - batch['y']
    return jnp.mean(error ** 2), {'worst': jnp.max(jnp.abs(error))}


def start() -> dict:
    return {'kernel': np.zeros((4, 3), np.float32), 'bias': np.zeros(3, np.float32)}


def train(folder: Path, *, pause: float = 0.0, mesh=None):
    data, _ = make_data()
    loop = TrainLoop(CONFIG, loss, folder, mesh=mesh)

    def report(record: dict) -> None:
        time.sleep(pause)

    state = loop.fit(loop.restore(start()), loop.put(data), report=report)
    loop.close()
    return state


def check_refused(folder: Path, mesh: jax.sharding.Mesh) -> None:
    with pytest.raises(ValueError, match='batch_size 18 does not split over 4 devices'):
        TrainLoop(dataclasses.replace(CONFIG, batch_size=18), loss, folder, mesh=mesh)


def run_script(folder: Path, pause: float, **environment: str) -> subprocess.Popen:
    code = SCRIPT.format(here=str(Path(__file__).parent))
    return subprocess.Popen([sys.executable, '-c', code, str(folder), str(pause)],
                            env={**os.environ, 'JAX_PLATFORMS': 'cpu', **environment},
                            stdout=subprocess.PIPE, text=True)


def test_finds_the_known_weights(tmp_path: Path) -> None:
    _, weight = make_data()
    state = train(tmp_path)
    records = MetricsFile(tmp_path / 'metrics.jsonl').read()
    assert [r['step'] for r in records] == [7, 14, 21, 28, 35, 42, 49, 56, 60]
    assert records[-1]['loss'] < 0.02 * records[0]['loss']
    assert np.abs(np.asarray(state.params['kernel']) - weight).max() < 0.2
    # The average trails the weights, so it is neither them nor the start.
    assert 0 < np.abs(np.asarray(state.ema['kernel'] - state.params['kernel'])).max() < 0.5


def test_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole = train(tmp_path / 'whole')
    folder = tmp_path / 'killed'
    process = run_script(folder, 0.4)
    deadline = time.monotonic() + 60
    while not (folder / 'state' / '21').exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(timeout=10) == -signal.SIGKILL
    assert max(int(p.name) for p in (folder / 'state').iterdir() if p.name.isdigit()) < 60
    resumed = train(folder)
    assert int(resumed.step) == 60
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    steps = [r['step'] for r in MetricsFile(folder / 'metrics.jsonl').read()]
    assert steps == sorted(set(steps)) and steps[-1] == 60


def test_four_devices_give_the_losses_of_one(tmp_path: Path) -> None:
    code = ('import sys, pathlib, jax; sys.path.insert(0, sys.argv[2]); import test_loop; '
            'from ros_pi0_fast.training.loop import data_mesh; '
            'assert len(jax.devices()) == 4, jax.devices(); '
            'test_loop.train(pathlib.Path(sys.argv[1]), mesh=data_mesh()); '
            'test_loop.check_refused(pathlib.Path(sys.argv[1]), data_mesh())')
    subprocess.run([sys.executable, '-c', code, str(tmp_path / 'four'),
                    str(Path(__file__).parent)], check=True, timeout=120,
                   env={**os.environ, 'JAX_PLATFORMS': 'cpu',
                        'XLA_FLAGS': '--xla_force_host_platform_device_count=4'})
    train(tmp_path / 'one')
    one, four = (MetricsFile(tmp_path / name / 'metrics.jsonl').read()
                 for name in ('one', 'four'))
    assert len(one) == len(four) == 9
    for a, b in zip(one, four, strict=True):
        assert a['loss'] == pytest.approx(b['loss'], rel=1e-5)
        assert a['worst'] == pytest.approx(b['worst'], rel=1e-5)


def test_deadline_stops_cleanly_and_the_next_call_goes_on(tmp_path: Path) -> None:
    data, _ = make_data()
    loop = TrainLoop(CONFIG, loss, tmp_path)
    arrays = loop.put(data)
    state = loop.fit(loop.restore(start()), arrays, deadline=time.monotonic() - 1)
    assert int(state.step) == 0
    state = loop.fit(state, arrays, until=14)
    assert int(loop.restore(start()).step) == 14
    loop.close()


def test_schedule() -> None:
    rates = [float(learning_rate_at(CONFIG, jnp.asarray(s), jnp.asarray(60))) for s in range(61)]
    assert rates[0] == pytest.approx(0.05 / 5)
    assert max(rates) == pytest.approx(0.05) and int(np.argmax(rates)) in (4, 5)
    assert rates[-1] == pytest.approx(0.05 * CONFIG.final_learning_rate)
    assert all(a >= b for a, b in itertools.pairwise(rates[5:]))


def test_metrics_survive_a_cut_line_and_draw(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / 'm.jsonl')
    for step in (1, 2, 3):
        file.append({'step': step, 'loss': 1 / step})
    with file.path.open('a') as raw:
        raw.write('{"step": 4, "lo')
    assert [r['step'] for r in file.read()] == [1, 2, 3]
    file.truncate(2)
    assert [json.loads(line)['step'] for line in file.path.read_text().splitlines()] == [1, 2]
    file.append({'step': 2, 'success/reach': 0.5})
    plot_curve(file.read(), tmp_path / 'curve.png', title='test')
    assert (tmp_path / 'curve.png').read_bytes().startswith(b'\x89PNG')
    with pytest.raises(ValueError, match='no record'):
        plot_curve([], tmp_path / 'none.png', title='test')
