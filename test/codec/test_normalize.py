import json

import numpy as np
import pytest

from ros_pi0_fast.codec.normalize import NormStats, NormStatsError, Stats


@pytest.fixture
def stats():
    return Stats(mean=np.array([1.0, 2.0]), std=np.array([0.5, 2.0]),
                 q01=np.array([0.0, -2.0]), q99=np.array([2.0, 6.0]))


def test_formulas(stats):
    x = np.array([[2.0, 2.0], [0.0, 8.0]], np.float32)
    quantile = stats.normalize(x, 'quantile')
    np.testing.assert_allclose(quantile, [[1.0, 0.0], [-1.0, 1.5]], atol=2e-6)
    assert quantile.dtype == np.float64
    np.testing.assert_allclose(stats.normalize(x, 'z-score'), [[2, 0], [-2, 3]], atol=1e-5)


@pytest.mark.parametrize('mode', ['quantile', 'z-score'])
def test_inverse(stats, mode):
    x = np.random.default_rng(0).normal(size=(10, 2)) * 5
    np.testing.assert_allclose(stats.unnormalize(stats.normalize(x, mode), mode), x, atol=1e-12)


@pytest.mark.parametrize('mode', ['quantile', 'z-score'])
def test_statistics_are_cut_and_surplus_dimensions_pass_through(stats, mode):
    x = np.array([0.3])
    both = stats.normalize(np.array([0.3, 9.0]), mode)
    np.testing.assert_array_equal(stats.normalize(x, mode), both[:1])
    wide = np.array([0.1, 0.2, 0.3])
    np.testing.assert_array_equal(stats.unnormalize(wide, mode)[:2],
                                  stats.unnormalize(wide[:2], mode))
    assert stats.unnormalize(wide, mode)[2] == 0.3


def test_unknown_mode(stats):
    with pytest.raises(ValueError, match="found 'minmax', expected 'quantile' or 'z-score'"):
        stats.normalize(np.zeros(2), 'minmax')


@pytest.mark.parametrize('name', [
    'norm_stats_example.json',
    'policy_libero/checkpoint/assets/physical-intelligence/libero/norm_stats.json'])
def test_round_trip_of_openpi_files(golden, tmp_path, name):
    NormStats.load(golden / name).save(tmp_path)
    assert json.loads((tmp_path / 'norm_stats.json').read_text()) == json.loads(
        (golden / name).read_text())


def test_null_quantiles_survive(tmp_path):
    plain = Stats(mean=np.zeros(2), std=np.ones(2))
    NormStats(state=plain, actions=plain).save(tmp_path)
    read = NormStats.load(tmp_path)
    assert read.actions.q01 is None
    assert read.source == tmp_path / 'norm_stats.json'
    with pytest.raises(NormStatsError, match='needs q01 and q99, found null'):
        read.state.normalize(np.zeros(2), 'quantile')


def test_compute():
    data = np.random.default_rng(0).uniform(-1, 3, (200, 10, 2))
    stats = NormStats.compute(state=data[:, 0], actions=data).actions
    inside = np.abs(stats.normalize(data, 'quantile')) <= 1
    assert 0.97 < inside.mean() < 0.99
    np.testing.assert_allclose(stats.normalize(data, 'z-score').std(axis=(0, 1)), 1, atol=1e-4)


@pytest.mark.parametrize(('change', 'message'), [
    (lambda d: d.pop('norm_stats'), "found no mapping 'norm_stats'"),
    (lambda d: d['norm_stats'].pop('actions'), 'norm_stats.actions: found NoneType, expected a'),
    (lambda d: d['norm_stats']['state'].update(mean='0'),
     "norm_stats.state.mean: found '0', expected a list of finite numbers"),
    (lambda d: d['norm_stats']['state'].update(mean=[0.0, float('nan')]),
     r'norm_stats.state.mean: found \[0.0, nan\], expected a list of finite numbers'),
    (lambda d: d['norm_stats']['state'].update(std=[1.0]),
     'norm_stats.state.std: found 1 numbers, expected 2, as in mean'),
    (lambda d: d['norm_stats']['state'].update(std=[1.0, -1.0]),
     r'norm_stats.state.std\[1\]: found -1.0, expected 0 or more'),
    (lambda d: d['norm_stats']['state'].update(q01=[0.0, 3.0]),
     r'norm_stats.state.q01\[1\]: found 3.0, expected no more than q99\[1\], 1.0'),
])
def test_refused(tmp_path, change, message):
    vectors = {'mean': [0.0, 0.0], 'std': [1.0, 1.0], 'q01': [0.0, 0.0], 'q99': [1.0, 1.0]}
    data = {'norm_stats': {'state': vectors, 'actions': dict(vectors)}}
    change(data)
    path = tmp_path / 'norm_stats.json'
    path.write_text(json.dumps(data))
    with pytest.raises(NormStatsError, match=message) as error:
        NormStats.load(path)
    assert str(path) in str(error.value)


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(NormStatsError, match='cannot be read: No such file'):
        NormStats.load(tmp_path)
    (tmp_path / 'norm_stats.json').write_text('{"norm_stats": {"state"')
    with pytest.raises(NormStatsError, match='is not JSON'):
        NormStats.load(tmp_path)
