"""A bag that is played to the node over DDS gives the chunks that its offline replay gives."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from bag_tools import rewrite, stamp

from ros_pi0_fast.evaluation import bag as command
from ros_pi0_fast.sim import record

RATE_HZ = 20
PICTURES_LATER_NS = 40_000_000
"""Topics are not ordered among each other: joints must be there when pictures come."""
STRETCH, SPEED, STEPS = 4, 0.5, 12
"""Between these pictures and the next joints there are 0.7 s, in which the timer fires on the
busiest machine, too."""


def later(topic, time_ns, message):
    start = record.START_NS + record.EPISODE_GAP_NS  # The second episode is the longer one.
    if not start <= time_ns < start + STEPS * 100_000_000:
        return []
    time_ns = start + STRETCH * (time_ns - start)
    time_ns += PICTURES_LATER_NS if topic.startswith('/image') else 0
    if hasattr(message, 'header'):
        message = replace(message, header=replace(message.header, stamp=stamp(time_ns)))
    return [(topic, time_ns, message)]


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    folder = tmp_path_factory.mktemp('bags')
    record.main(['--episodes', '2', '--seed', '71', '--out', str(folder)])
    return rewrite(folder / 'shard_0000', folder / 'bag', change=later)


def rows_of(folder, variant):
    with (folder / 'chunks.csv').open(newline='') as file:
        return {int(row['stamp_ns']): row for row in csv.DictReader(file)
                if row['variant'] == variant}


def test_offline_and_live_agree(bag, random_checkpoint, begin, ros2_program, tmp_path):
    cache = tmp_path / 'cache'
    with pytest.raises(SystemExit, match='0'):
        command.main([str(bag), '--out', str(tmp_path / 'offline'), '--checkpoint',
                      str(random_checkpoint), '--rate-hz', str(RATE_HZ), '--variants', 'engine',
                      '--no-overlays', '--compilation-cache', str(cache)])
    params = tmp_path / 'params.yaml'
    params.write_text(f'/**:\n  ros__parameters:\n    rate_hz: {RATE_HZ}.0\n'
                      f'    compilation_cache: {cache}\n', 'utf-8')
    launch = begin(ros2_program, 'launch', 'ros_pi0_fast', 'replay.launch.xml', f'bag:={bag}',
                   f'checkpoint:={random_checkpoint}', f'params:={params}',
                   f'rate_hz:={RATE_HZ}.0', f'rate:={SPEED}', f'out:={tmp_path / "live"}',
                   f'reference:={tmp_path / "offline"}')
    launch.wait_for(str(tmp_path / 'live' / 'report.html'))
    assert launch.wait(30) == 0, launch.output

    offline, live = (rows_of(tmp_path / name, 'engine') for name in ('offline', 'live'))
    assert live.keys() <= offline.keys()
    assert len(live) > len(offline) / 2 > 4
    for stamp_ns, row in live.items():
        assert row['instruction'] == offline[stamp_ns]['instruction']
        np.testing.assert_array_equal(np.array(row['actions'].split(), np.float32),
                                      np.array(offline[stamp_ns]['actions'].split(), np.float32))
    report = json.loads((tmp_path / 'live' / 'report.json').read_text('utf-8'))
    assert report['choice']['variant'] == 'engine' and not report['bag']['notes']
    figures = report['variants']['engine']
    assert figures['error_reference']['largest'] == [0.0] * 5
    assert figures['error_recorded']['chunks'] and figures['token_agreement'] is None
    assert figures['latency']['total_ms']['p50'] > 0 and figures['passes'] > 0
