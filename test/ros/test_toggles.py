"""Every optimization can be switched while the robot runs, and no chunk is missed over it."""

import itertools
import random
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from std_srvs.srv import Trigger

from ros_pi0_fast.engine.variant import LOSSLESS, REFERENCE, Variant, alone, parameter_of

RATE_HZ = 5.0
SECONDS = 60.0
SAY_EVERY_S = 0.04


@pytest.fixture(scope='module')
def node(start, random_checkpoint, profile_file, tmp_path_factory):
    process = start(checkpoint=random_checkpoint, robot_profile=profile_file, rate_hz=RATE_HZ,
                    compilation_cache=tmp_path_factory.mktemp('nothing_compiled'))
    process.wait_for('active: ')
    return process


def settings_of(variant):
    return {parameter_of(name): value for name, value in asdict(variant).items()}


@pytest.mark.timed
def test_toggling_at_random_leaves_no_gap(node, robot):
    variants = [Variant(), REFERENCE, *map(alone, LOSSLESS), Variant(quantized_weights='int8'),
                Variant(quantized_weights='int4', quantized_cache='int8')]
    asked, arrivals, rng = ['default'], [], random.Random(0)
    robot.until(lambda: robot.chunks)
    robot.forget()
    end = time.monotonic() + SECONDS
    next_toggle = 0.0
    while time.monotonic() < end:
        if time.monotonic() > next_toggle:
            variant = rng.choice(variants)
            assert not robot.set_together(settings_of(variant))
            asked.append(variant.name)
            next_toggle = time.monotonic() + rng.uniform(0.3, 2.0)
        before = len(robot.chunks)
        said = itertools.count()
        robot.until(lambda said=said: next(said) == 1, every=SAY_EVERY_S)
        arrivals += [time.monotonic()] * (len(robot.chunks) - before)
    inference_s = max(chunk.total_ms for chunk in robot.chunks) / 1e3
    gaps = [after - before for before, after in itertools.pairwise(arrivals)]
    assert max(gaps) <= 2 / RATE_HZ + inference_s, sorted(gaps)[-5:]
    assert len(robot.chunks) > 0.8 * SECONDS * RATE_HZ
    assert all(chunk.valid for chunk in robot.chunks)
    ran = [chunk.variant for chunk in robot.chunks]
    assert set(ran) <= set(asked) and len(set(ran)) > 5
    # What was asked for last is what runs in the end.
    robot.forget()
    robot.until(lambda: robot.chunks and robot.chunks[-1].variant == asked[-1], timeout=60)
    assert {stats.pending_variant for stats in robot.stats} <= {*asked, ''}


def test_what_contradicts_itself_is_refused(node, robot):
    assert not robot.set_together(settings_of(Variant()))
    assert robot.set_parameter('engine.unrolled_layers', False) == (
        'engine.in_place_cache: true, expected engine.unrolled_layers to be true with it')
    assert robot.set_parameter('quantization.weights', 'int5') == (
        "quantization.weights: found 'int5', expected one of none, int8, int4")


def test_a_trace_of_the_next_chunks_is_written(node, robot, tmp_path):
    assert not robot.set_parameter('profile_folder', str(tmp_path))
    assert not robot.set_parameter('profile_chunks', 2)
    client = robot.create_client(Trigger, 'policy_node/profile')
    assert client.wait_for_service(timeout_sec=15)
    answer = client.call_async(Trigger.Request())
    robot.until(answer.done)
    assert answer.result().success and str(tmp_path) in answer.result().message
    folder = Path(answer.result().message.split()[-1])
    robot.until(lambda: list(folder.rglob('*.xplane.pb')), timeout=60)
    robot.forget()
    robot.until(lambda: robot.chunks)
    assert robot.chunks[-1].valid
