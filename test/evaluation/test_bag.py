"""A replay from the command line: figures, files, resuming, the gate, and what goes wrong."""

import csv
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml
from bag_tools import rewrite, stamp
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import CompressionMode, StoragePlugin

from ros_pi0_fast.codec.bag_types import bag_types
from ros_pi0_fast.codec.normalize import NormStats
from ros_pi0_fast.evaluation import bag as command
from ros_pi0_fast.evaluation.bag_choice import Candidate, decide
from ros_pi0_fast.evaluation.bag_variants import NAMED, Runners, parse_variants
from ros_pi0_fast.sim import record

VARIANTS = 'reference,engine,pruned25,speculative'
RAN = ('reference', 'engine', 'pruned25')
PERIOD_NS = 100_000_000


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    folder = tmp_path_factory.mktemp('bags')
    record.main(['--episodes', '2', '--seed', '60', '--out', str(folder)])
    return folder / 'shard_0000'


@pytest.fixture(scope='module')
def evaluate(random_checkpoint, tmp_path_factory):
    """Return a function that runs the command and returns its exit status.

    All runs share an engine, which compiles in the first one: each would take seconds more.
    """
    cache, make, engines = tmp_path_factory.mktemp('cache'), command._engine, []

    def shared(*arguments):
        engines.extend([] if engines else [make(*arguments)])
        return engines[0]

    def run(bag, out, *more):
        command._engine = shared
        with pytest.raises(SystemExit) as ended:
            command.main([str(bag), '--checkpoint', str(random_checkpoint), '--out', str(out),
                          '--variants', VARIANTS, '--rate-hz', '5', '--compilation-cache',
                          str(cache), *map(str, more)])
        return ended.value.code

    yield run
    command._engine = make


@pytest.fixture(scope='module')
def out(bag, evaluate, tmp_path_factory):
    folder = tmp_path_factory.mktemp('out')
    assert evaluate(bag, folder) == 0
    return folder


def report_of(out):
    return json.loads((out / 'report.json').read_text('utf-8'))


def rows_of(out, variant):
    with (out / 'chunks.csv').open(newline='') as file:
        return [row for row in csv.DictReader(file) if row['variant'] == variant]


def actions_of(row):
    return np.array(row['actions'].split(), float).reshape(10, 5)


def messages(path, topic):
    with AnyReader([path], default_typestore=bag_types()) as reader:
        chosen = [each for each in reader.connections if each.topic == topic]
        for _, time_ns, raw in reader.messages(chosen):
            yield time_ns, reader.deserialize(raw, chosen[0].msgtype)


def test_observations_are_the_pictures_that_the_timer_finds(bag, out):
    stamps = [time_ns for time_ns, _ in messages(bag, '/image/base')]
    ticks = range(stamps[0], stamps[-1] + 200_000_000, 200_000_000)
    seen = []
    for tick in ticks:
        newest = max(stamp for stamp in stamps if stamp <= tick)
        if tick - newest <= 500_000_000 and newest not in seen:
            seen.append(newest)
    for variant in RAN:
        assert [int(row['stamp_ns']) for row in rows_of(out, variant)] == seen
    assert report_of(out)['observations'] == len(seen) > 8


def test_times_and_tokens_match_an_independent_count(out):
    report, reference = report_of(out), rows_of(out, 'reference')
    for variant in RAN:
        rows, figures = rows_of(out, variant), report['variants'][variant]
        assert (figures['chunks'], figures['valid']) == (len(rows), len(rows))
        for stage in ('vision_ms', 'decode_ms', 'total_ms'):
            times = sorted(float(row[stage]) for row in rows if row['compiled'] == '0')
            for percent in (50, 95, 99):
                place = percent / 100 * (len(times) - 1)
                low = int(place)
                between = times[low] + (place - low) * (
                    times[min(low + 1, len(times) - 1)] - times[low])
                assert figures['latency'][stage][f'p{percent}'] == pytest.approx(between)
        assert figures['passes'] == pytest.approx(
            sum(int(row['target_passes']) for row in rows) / len(rows))
        shares = []
        for row, other in zip(rows, reference, strict=True):
            ids, expected = row['tokens'].split(), other['tokens'].split()
            same = sum(a == b for a, b in zip(ids, expected, strict=False))
            shares.append(same / max(len(ids), len(expected)))
        assert figures['token_agreement'] == pytest.approx(sum(shares) / len(shares))
        assert figures['identical'] == shares.count(1.0)
    assert report['variants']['engine']['identical'] == len(reference)
    pruned = report['variants']['pruned25']
    kept = [sum(int(word.partition('=')[2]) for word in row['kept'].split())
            for row in rows_of(out, 'pruned25')]
    assert sum(pruned['kept'].values()) == pytest.approx(np.mean(kept))
    assert min(kept) == 8 and sum(report['variants']['engine']['kept'].values()) == 32
    assert pruned['identical'] < len(reference)
    assert report['variants']['engine']['speedup'] == pytest.approx(np.median([
        float(slow['total_ms']) / float(fast['total_ms']) for slow, fast in
        zip(reference, rows_of(out, 'engine'), strict=True)
        if slow['compiled'] == fast['compiled'] == '0']), rel=1e-3)


def test_errors_match_an_independent_count(bag, out, random_checkpoint):
    report = report_of(out)
    stats = NormStats.load(random_checkpoint / 'assets' / 'tabletop' / 'norm_stats.json').actions
    ranges = stats.q99 - stats.q01
    np.testing.assert_allclose(report['ranges'], ranges, rtol=1e-5)
    commands = {time_ns: np.asarray(message.position)
                for time_ns, message in messages(bag, '/joint_command')}
    found = rows_of(out, 'pruned25')
    sums = {'error_reference': [], 'error_recorded': []}
    for row, other in zip(found, rows_of(out, 'reference'), strict=True):
        sums['error_reference'].append(np.abs(actions_of(row) - actions_of(other)))
        known = [commands.get(int(row['stamp_ns']) + step * PERIOD_NS, np.full(5, np.nan))
                 for step in range(10)]
        sums['error_recorded'].append(np.abs(actions_of(row) - known))
    for key, errors in sums.items():
        figures, errors = report['variants']['pruned25'][key], np.array(errors)
        by_joint = np.nanmean(errors, axis=(0, 1))
        np.testing.assert_allclose(figures['by_joint'], by_joint, rtol=1e-4)
        np.testing.assert_allclose(figures['by_step'], np.nanmean(errors, axis=0), rtol=1e-4)
        assert figures['relative'] == pytest.approx(np.mean(by_joint / ranges), rel=1e-4)
        assert by_joint.min() > 0
    jumps = [np.abs(actions_of(new)[0] - actions_of(old)[2])
             for old, new in itertools.pairwise(found)
             if int(new['stamp_ns']) - int(old['stamp_ns']) == 2 * PERIOD_NS
             and new['instruction'] == old['instruction']]
    seam = report['variants']['pruned25']['seam']
    assert seam['pairs'] == len(jumps) > 5
    np.testing.assert_allclose(seam['by_joint'], np.mean(jumps, axis=0), rtol=1e-4)


def test_each_variant_remembers_only_what_it_saw_itself(bag, out, evaluate, tmp_path):
    """Pruning goes by the frames before: alone, the variant gives the same."""
    assert evaluate(bag, tmp_path, '--variants', 'reference', 'pruning.enabled=true,'
                    'pruning.keep_ratio=0.25', '--no-overlays') == 0
    name = 'pruning.enabled=true,pruning.keep_ratio=0.25'
    assert ([row['tokens'] for row in rows_of(tmp_path, name)]
            == [row['tokens'] for row in rows_of(out, 'pruned25')])


def test_another_writer_gives_the_same_answers(bag, out, evaluate, tmp_path):
    other = rewrite(bag, tmp_path / 'other', storage=StoragePlugin.SQLITE3, version=8,
                    distribution='humble', compression=CompressionMode.MESSAGE)
    assert evaluate(other, tmp_path / 'out') == 0
    for variant in (*RAN, 'recorded'):
        for one, same in zip(rows_of(tmp_path / 'out', variant), rows_of(out, variant),
                             strict=True):
            for column in ('index', 'time_ns', 'stamp_ns', 'tokens', 'actions', 'instruction'):
                assert one[column] == same[column]


def test_the_predictions_are_a_bag_on_the_clock_of_the_other(out):
    for variant in RAN:
        rows = rows_of(out, variant)
        chunks = list(messages(out / 'predictions', f'/{variant}/action_chunk'))
        assert [time_ns for time_ns, _ in chunks] == [int(row['time_ns']) for row in rows]
        for (_, chunk), row in zip(chunks, rows, strict=True):
            np.testing.assert_allclose(chunk.actions.reshape(10, 5), actions_of(row), rtol=1e-6)
            assert chunk.valid and chunk.instruction == row['instruction']
        pictures = list(messages(out / 'predictions', f'/{variant}/overlay'))
        assert len(pictures) == len(rows)
        assert all(picture.format == 'jpeg' and bytes(picture.data[:2]) == b'\xff\xd8'
                   for _, picture in pictures)


def test_the_page_needs_nothing_else_and_begins_with_the_answer(out):
    page, report = (out / 'report.html').read_text('utf-8'), report_of(out)
    outside = re.findall(r'(?:src|href)="(?!#)[^"]*"|url\((?!#)[^)]*\)|@import', page)
    assert not outside
    answer = page.index(f'Run {report["choice"]["variant"]}')
    assert answer < page.index('All variants') < page.index('<svg')
    assert page.count('<svg') == 5
    assert 'speculative cannot run here: speculative.drafter: head, expected' in page
    assert report['failed'].keys() == {'speculative'}


def test_the_least_lossy_that_fits_is_chosen():
    choices = [Candidate(name='slow', ms=90, loss=0, sound=True),
               Candidate(name='exact', ms=30, loss=1e-9, sound=True),
               Candidate(name='lossy', ms=10, loss=0.01, sound=True),
               Candidate(name='broken', ms=1, loss=0, sound=False)]
    for budget, name in ((100, 'exact'), (29, 'lossy'), (9, None)):
        assert decide(choices, budget).variant == name
    assert 'the fastest is lossy: p95 10.0 ms' in decide(choices, 5).why


def test_a_replay_that_was_interrupted_goes_on(bag, out, evaluate, tmp_path, monkeypatch,
                                               capsys):
    run, calls = Runners.run, []

    def counted(self, observation, turn):
        calls.append(turn)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return run(self, observation, turn)

    monkeypatch.setattr(Runners, 'run', counted)
    assert evaluate(bag, tmp_path) == 130
    assert calls == [0, 1, 2, 3]
    report = report_of(tmp_path)
    assert report['observations'] == 4 and not report['complete']
    assert 'was interrupted' in (tmp_path / 'report.html').read_text('utf-8')
    with (tmp_path / 'chunks.csv').open('a') as file:  # As if killed while it wrote.
        file.write('4,1000800000000,100080')
    assert evaluate(bag, tmp_path, '--rate-hz', '4') == 2
    assert 'rate_hz 5.0, expected 4.0: choose another --out' in capsys.readouterr().err
    assert evaluate(bag, tmp_path) == 0
    total = len(rows_of(out, 'reference'))
    assert calls[4:] == list(range(4, total))
    for variant in ('reference', 'engine', 'recorded'):
        assert ([(row['index'], row['actions']) for row in rows_of(tmp_path, variant)]
                == [(row['index'], row['actions']) for row in rows_of(out, variant)])
    assert len(list(messages(tmp_path / 'predictions', '/engine/overlay'))) == total
    assert evaluate(bag, tmp_path, '--budget-ms', '0.001') == 0  # Nothing is run again.
    assert len(calls) == total and report_of(tmp_path)['choice']['variant'] is None


def test_the_gate_names_what_became_worse(bag, out, evaluate, tmp_path, capsys):
    baseline = out / 'report.json'
    assert evaluate(bag, out, '--baseline', baseline) == 0
    better = report_of(out)
    better['variants']['pruned25']['token_agreement'] += 0.02
    better['variants']['engine']['latency']['total_ms']['p95'] /= 2
    better['variants']['int4'] = better['variants']['engine']
    (tmp_path / 'report.json').write_text(json.dumps(better))
    limits = {'token_agreement': 0.01, 'latency.total_ms.p95': '20%'}
    (tmp_path / 'limits.yaml').write_text(yaml.safe_dump(limits))
    capsys.readouterr()
    gate = ('--baseline', tmp_path / 'report.json', '--tolerance', tmp_path / 'limits.yaml')
    assert evaluate(bag, out, *gate) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if 'REGRESSION' in line]
    assert [line.split(': ')[0:2] for line in lines] == [
        ['REGRESSION engine', 'latency.total_ms.p95'],
        ['REGRESSION pruned25', 'token_agreement'],
        ['REGRESSION int4', 'was measured, and now']]
    limits['variants'] = {'pruned25': {'token_agreement': 0.03},
                          'engine': {'latency.total_ms.p95': '101%'}}
    (tmp_path / 'limits.yaml').write_text(yaml.safe_dump(limits))
    assert evaluate(bag, out, *gate) == 1
    assert capsys.readouterr().err.count('REGRESSION') == 1
    better['bag']['messages'] += 1
    (tmp_path / 'report.json').write_text(json.dumps(better))
    assert evaluate(bag, out, *gate) == 2
    assert 'the baseline is of another replay: messages' in capsys.readouterr().err
    (tmp_path / 'limits.yaml').write_text('token_agrement: 1')
    assert evaluate(bag, out, *gate) == 2
    assert "unknown key 'token_agrement', expected one of" in capsys.readouterr().err


def test_what_cannot_be_evaluated_is_told(bag, evaluate, tmp_path, capsys):
    plain = rewrite(bag, tmp_path / 'plain', keep=('/image/base', '/image/wrist', '/joint_states',
                                                   '/instruction'))
    short = ('--variants', 'reference', '--no-overlays')
    assert evaluate(plain, tmp_path / 'a', *short) == 0
    report = report_of(tmp_path / 'a')
    assert report['variants']['reference']['error_recorded'] is None
    assert 'the bag has no actions on a usual topic' in report['bag']['notes'][0]
    blind = rewrite(bag, tmp_path / 'blind', keep=('/image/base', '/joint_states'))
    capsys.readouterr()
    assert evaluate(blind, tmp_path / 'b', *short) == 2
    assert ('blind: has no /image/wrist, /instruction; it has /image/base, /joint_states'
            in capsys.readouterr().err)
    shifted = rewrite(bag, tmp_path / 'shifted', change=lambda topic, time_ns, message: [
        (topic, time_ns + 10**12, message)])
    assert evaluate(shifted, tmp_path / 'c', *short) == 2
    assert re.search(r'found no observation that the node would have answered: .*stale camera.*'
                     r'try --time header', capsys.readouterr().err)
    assert evaluate(bag, tmp_path / 'd', '--variants', 'int5') == 2
    assert "--variants int5: 'int5'" in capsys.readouterr().err
    shutil.rmtree(tmp_path / 'shifted')
    assert evaluate(tmp_path / 'shifted', tmp_path / 'e') == 2
    assert 'shifted: is not there, expected a rosbag2' in capsys.readouterr().err


def test_variants_are_named_as_the_benchmark_names_them():
    found = parse_variants(['int8,early_stop=false,pruning.enabled=true,all', 'packed_prefix'])
    assert list(found) == ['reference', 'int8', 'early_stop=false,pruning.enabled=true', 'all',
                           'packed_prefix']
    assert found['all'] == NAMED['all'] and not found['reference'].packed_prefix
    changed = found['early_stop=false,pruning.enabled=true']
    assert (changed.early_stop, changed.pruning) == (False, True)


SYNTHETIC = """
import resource, sys
from pathlib import Path
from ros_pi0_fast.evaluation import bag
try:
    bag.main(sys.argv[1:])
finally:
    print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_a_long_bag_takes_no_more_memory_than_a_short_one(bag, tmp_path, random_checkpoint):
    """Ten minutes and one: the same episodes, again and again."""
    peaks = []
    for minutes in (1, 10):
        long = tmp_path / f'long{minutes}'
        repeat(bag, long, minutes * 60)
        done = subprocess.run(
            [sys.executable, '-c', SYNTHETIC, str(long), '--checkpoint', str(random_checkpoint),
             '--out', str(tmp_path / f'out{minutes}'), '--variants', 'engine'],
            capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split('PEAK')[1]))
        print(minutes, 'minutes:', peaks[-1], 'MiB', report_of(tmp_path / f'out{minutes}')[
            'observations'], 'observations')
    assert peaks[1] < peaks[0] + 20


def repeat(source, target, seconds):
    """Write the first episode of a bag again and again, without a gap, until it is as long."""
    with AnyReader([source], default_typestore=bag_types()) as reader:
        first = [(each.topic, time_ns, reader.deserialize(raw, each.msgtype))
                 for each, time_ns, raw in reader.messages()]
    start = first[0][1]
    episode = [found for found in first if found[1] < start + 5 * 10**9]
    length = episode[-1][1] - start + 2 * PERIOD_NS
    rounds = iter(range(seconds * 10**9 // length))

    def change(topic, time_ns, message):
        if time_ns != start or topic != '/instruction':
            return []
        return [moved for number in rounds for moved in moved_by(episode, number * length)]

    rewrite(source, target, change=change)


def moved_by(episode, shift):
    for topic, time_ns, message in episode:
        if hasattr(message, 'header'):
            old = message.header.stamp
            header = replace(message.header, stamp=stamp(
                old.sec * 10**9 + old.nanosec + shift))
            message = replace(message, header=header)
        yield topic, time_ns + shift, message
