"""Faults at random over DDS: the node never dies, never answers what it must refuse, recovers.

Each fault once runs with all tests, ten minutes with `make test-slow`; FAULT_SECONDS in the
environment sets another length for the latter. Prints what happened.
"""

import os
import random
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import rclpy

from ros_pi0_fast.node.parameters import DECLARATIONS

SHORT_S = 20.0
LONG_S = float(os.environ.get('FAULT_SECONDS', 600.0))
MEMORY_MB = 50.0
DEFAULTS = {each.name: each.default for each in DECLARATIONS
            if not each.read_only and not each.at_configure} | {'rate_hz': 10.0}
KINDS = ({'quantization.weights': 'int8'},
         {'quantization.weights': 'int4', 'quantization.kv_cache': 'int8'},
         {'quantization.weights': 'none', 'quantization.kv_cache': 'none',
          'pruning.enabled': True},
         {'pruning.enabled': False, 'speculative.enabled': True,
          'speculative.drafter': 'previous_chunk'},
         {'speculative.enabled': False, 'engine.early_stop': False}, DEFAULTS)
"""As many variants as stay compiled: used one after another, they are what is in memory."""
WORDS = ('touch', 'push', 'the', 'red', 'blue', 'green', 'cube', 'onto', 'mat')


class Faults:
    """Each method is a fault; it returns when the fault has been taken away, and since when.

    Args:
        rng: Decides.
        world: The robot.
        begin: Starts a process.
        start: Starts a policy node.
        checkpoint: Of another node, which is interrupted while it compiles.
    """

    def __init__(self, rng, world, begin, start, checkpoint):
        self._rng, self._world, self._begin = rng, world, begin
        self._start, self._checkpoint = start, checkpoint
        self._camera = None
        self.camera_returns()

    def all(self):
        names = [name for name in vars(type(self)) if name.startswith('fault_')]
        return {name.removeprefix('fault_'): getattr(self, name) for name in names}

    def camera_returns(self):
        world, begun = self._world, time.monotonic()
        world.starving_since = None  # The node may see the first picture before the robot does.
        self._camera = self._begin(sys.executable, Path(__file__).with_name('camera.py'))
        while world.last_picture is None or world.last_picture < begun:
            world.live(0.02)
            assert time.monotonic() < begun + 60, self._camera.output
        return world.last_picture

    def fault_camera_is_killed(self):
        world = self._world
        self._camera.stop(signal.SIGKILL)
        world.live(0.3)  # What was on its way.
        world.starving_since = world.last_picture
        world.live(self._rng.uniform(1.0, 3.0))
        return self.camera_returns()

    def fault_burst(self):
        """Both kinds of input come 200 times a second."""
        world, end = self._world, time.monotonic() + 2.0
        while time.monotonic() < end:
            world.send_picture(world.now_ns(), broken=False)
            world.send_joints([0.1, 0.2, 0.3, 0.4, 0.0])
            world.live(0.005)

    def fault_pictures_are_corrupt(self):
        noise = self._rng.randbytes(5000)
        whole = cv2.imencode('.png', np.frombuffer(noise[:4800], np.uint8).reshape(40, 40, 3))[1]
        for _ in range(30):
            kind = self._rng.choice((
                {'encoding': self._rng.choice(('yuv422', '', 'rgb8 ', '32FC1'))},
                {'data': noise[:self._rng.randrange(5000)]}, {'height': 0, 'data': b''},
                {'width': 2**31, 'step': 2**31}, {'step': 7}))
            self._world.send_picture(self._world.now_ns(), broken=True, **kind)
            self._world.send_wrist(self._rng.choice((
                b'', noise, whole.tobytes()[:self._rng.randrange(len(whole))])))
            self._world.live(0.02)

    def fault_pictures_come_late_and_early(self):
        for _ in range(15):
            ahead_s = self._rng.choice((-30.0, -0.9, -0.6, 10.0, 3600.0))
            self._world.send_picture(self._world.now_ns() + int(ahead_s * 1e9), broken=True)
            self._world.live(0.05)

    def fault_clock_jumps(self):
        for _ in range(self._rng.randint(1, 3)):
            self._world.jump(self._rng.choice((-1800.0, -2.0, -0.7, 0.7, 2.0, 3600.0)))
            self._world.live(self._rng.uniform(0.0, 0.3))

    def fault_joint_states_are_of_the_wrong_size(self):
        world = self._world
        world.joints_well = False
        world.live(0.2)
        world.starving_since, end = time.monotonic(), time.monotonic() + 2.0
        while time.monotonic() < end:
            world.send_joints(self._rng.choice(([], [0.1], [0.1] * 6, [float('nan')] * 5,
                                                [1e300] * 5)))
            world.live(0.03)
        world.joints_well, world.starving_since = True, None

    def fault_parameters(self):
        """Valid and invalid ones, as fast as they are answered."""
        for _ in range(25):
            declaration = self._rng.choice(DECLARATIONS)
            self._world.set_parameter(declaration.name, self._rng.choice((
                declaration.default, 'nonsense', -1, 1e12, True, [1.0])))
            variant = {
                'pruning.enabled': True, 'pruning.keep_ratio': round(self._rng.random(), 2),
                'quantization.weights': self._rng.choice(('none', 'int8', 'int4', 'int5')),
                'engine.early_stop': self._rng.random() < 0.5,
                'latency_budget_ms': self._rng.choice((0.0, 0.0, 1e-3)),
                'rate_hz': self._rng.choice((5.0, 10.0, 50.0, 1e9)), 'malformed': 'constrain'}
            self._world.set_together(dict(self._rng.sample(sorted(variant.items()), 3)))
            self._world.live(0.02)
        assert not self._world.set_together(DEFAULTS)

    def fault_instructions_change(self):
        for _ in range(20):
            text = ' '.join(self._rng.sample(WORDS, self._rng.randint(2, 6)))
            self._world.order(self._rng.choice((text, text, ' ')))
            self._world.live(self._rng.choice((0.0, 0.05, 0.2)))
        self._world.order('touch the blue cube')

    def fault_another_node_is_interrupted_while_it_compiles(self):
        other = self._start('-r', '__ns:=/other', checkpoint=self._checkpoint)
        end = time.monotonic() + 60
        while 'compiling ' not in other.output:
            self._world.live(0.05)
            assert time.monotonic() < end, other.output
        self._world.live(self._rng.uniform(0.0, 1.0))
        other.send(signal.SIGINT)
        interrupted = time.monotonic()
        while other.running():
            self._world.live(0.05)
            assert time.monotonic() < interrupted + 8, 'it does not end'
        assert other.wait(1) == 0, other.output
        assert 'Traceback' not in other.output


@pytest.fixture
def world(context):
    from faulty_world import World
    node = World()
    yield node
    node.destroy_node()


@pytest.mark.parametrize('seconds', [
    SHORT_S, pytest.param(LONG_S, marks=pytest.mark.slow)], ids=['short', 'long'])
def test_faults(seconds, world, begin, start, random_checkpoint, profile_file, tmp_path):
    from faulty_world import resident_mb
    seed = int(os.environ.get('FAULT_SEED', 0))
    rng, recovered = random.Random(seed), defaultdict(list)
    node = start('-p', 'use_sim_time:=true', checkpoint=random_checkpoint,
                 robot_profile=profile_file, rate_hz=10.0, compilation_cache=tmp_path / 'cache')
    faults = Faults(rng, world, begin, start, random_checkpoint)
    world.recover(limit_s=120)
    memory = [resident_mb(node.pid)]

    def memory_with_the_same_variants():
        for settings in KINDS if seconds == LONG_S else ():
            world.use_once(settings)
        return resident_mb(node.pid)

    before = memory_with_the_same_variants()
    begun, rounds = time.monotonic(), 0
    while time.monotonic() < begun + seconds or not rounds:
        order = list(faults.all().items())
        rng.shuffle(order)
        for name, fault in order:
            print(f'{time.monotonic() - begun:.0f} s: {name}', end=' ', flush=True)
            recovered[name].append(world.recover(fault()))
            print(f'{recovered[name][-1]:.2f} s, {resident_mb(node.pid):.0f} MiB', flush=True)
            assert node.running(), node.output
            memory.append(resident_mb(node.pid))
            if time.monotonic() > begun + seconds and rounds:
                break
        rounds += 1
    for name, times in sorted(recovered.items()):
        print(f'{name}: {len(times)} times, a valid chunk after {max(times):.2f} s at most, '
              f'{np.median(times):.2f} s in the middle')
    print(f'{time.monotonic() - begun:.0f} s, {len(world.valid)} valid chunks, refused: '
          f'{world.refusals}, not valid: {world.invalid_reasons}')
    after = memory_with_the_same_variants()
    print(f'memory: {memory[0]:.0f} MiB at first, {max(memory):.0f} at most; with the same '
          f'variants compiled {before:.0f} before the faults and {after:.0f} after them')
    if seconds == LONG_S:
        assert after - before < MEMORY_MB
    assert {'bad image', 'bad joint state', 'stale camera', 'stale joint', 'out of order',
            'empty instruction'} <= world.refusals.keys()
    assert node.stop() == 0, node.output
    assert 'Traceback' not in node.output, node.output
    assert rclpy.ok()
