"""A robot whose clock, joints and instruction can be broken, and who trusts no chunk."""

import os
import time

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.qos import qos_profile_sensor_data
from rclpy.time import Time
from robot import JOINTS, Robot, stamp_of
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

S = 10**9
START_NS = 1_000_000 * S
MAX_AGE_S = 0.5
"""Of the node's parameter max_observation_age_s."""
GRACE_S = 1.0
"""From what makes an observation unusable to the last chunk that may still come: inferences that
run, and messages on their way on a busy machine."""


class World(Robot):
    """Publishes /clock, joints and the instruction; pictures come from a process of their own.

    Each chunk is checked as it comes in: that it answers no observation that had to be refused,
    none that is too old, and an instruction that was given.
    """

    def __init__(self):
        super().__init__()
        self.offset_ns, self.instruction = 0, 'touch the red cube'
        self.joints_well = True
        self.broken_stamps, self.valid = set(), []
        self.invalid_reasons, self.refusals = set(), {}
        self.starving_since = self.last_picture = None
        self.last_stats = self.last_variant = ''
        self._said = {self.instruction: time.monotonic()}
        self._started = self._jumped = time.monotonic()
        self._clock_publisher = self.create_publisher(ClockMessage, '/clock', 10)
        self.create_subscription(Image, 'image/base', self._see, qos_profile_sensor_data)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        for period, callback in ((0.02, self._tick), (0.05, self._move), (0.4, self._order)):
            self.create_timer(period, callback, clock=steady)

    def now_ns(self):
        return START_NS + self.offset_ns + int((time.monotonic() - self._started) * S)

    def jump(self, seconds):
        self.offset_ns += int(seconds * S)
        self._jumped = time.monotonic()
        self._tick()

    def order(self, instruction):
        self.instruction = instruction
        self._order()

    def _tick(self):
        self._clock_publisher.publish(ClockMessage(clock=Time(nanoseconds=self.now_ns()).to_msg()))

    def _move(self):
        if self.joints_well:
            self.send_joints([0.1, 0.2, 0.3, 0.4, 0.0])

    def send_joints(self, positions, names=JOINTS):
        message = JointState(name=list(names), position=positions)
        message.header.stamp = Time(nanoseconds=self.now_ns()).to_msg()
        self._joints.publish(message)

    def _order(self):
        self._said[self.instruction.strip()] = time.monotonic()
        self._instruction.publish(String(data=self.instruction))

    def _see(self, message):
        if stamp_of(message) not in self.broken_stamps:
            self.last_picture = time.monotonic()

    def send_picture(self, stamp_ns, *, broken, **fields):
        """Publish a picture of the base camera beside those of the camera."""
        message = Image(**{'height': 64, 'width': 64, 'step': 192, 'encoding': 'rgb8',
                           'data': bytes(64 * 192), **fields})
        message.header.stamp = Time(nanoseconds=stamp_ns).to_msg()
        if broken:
            self.broken_stamps.add(stamp_ns)
        self._base.publish(message)

    def send_wrist(self, data):
        """Publish data of the wrist camera that are no picture."""
        stamp_ns = self.now_ns()
        message = CompressedImage(format='png', data=data)
        message.header.stamp = Time(nanoseconds=stamp_ns).to_msg()
        self.broken_stamps.add(stamp_ns)
        self._wrist.publish(message)

    def live(self, seconds):
        """Let time pass, checking all that comes in."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            rclpy.spin_once(self, timeout_sec=0.01)
            self._look()

    def _hear(self, chunk):
        self.chunks.append((time.monotonic(), self.now_ns(), chunk))

    def _look(self):
        for stats in self.stats:
            self.refusals |= dict(zip(stats.refusal_reasons, stats.refusal_counts, strict=True))
            self.last_stats = f'{stats.state} {stats.reason!r} {stats.variant}'
        self.stats.clear()
        heard, self.chunks[:] = list(self.chunks), []
        for when, now_ns, chunk in heard:
            self._check(when, (now_ns - stamp_of(chunk)) / S, chunk)
            self.last_variant = chunk.variant
            if chunk.valid:
                self.valid.append((when, stamp_of(chunk), chunk.instruction))
            else:
                self.invalid_reasons.add(chunk.reason.partition(':')[0])

    def _check(self, when, age_s, chunk):
        assert stamp_of(chunk) not in self.broken_stamps, 'it answers what is broken'
        if self.starving_since is not None:
            hungry_s = when - self.starving_since
            assert hungry_s < MAX_AGE_S + GRACE_S, f'a chunk {hungry_s:.2f} s after its inputs'
        if when - self._jumped > GRACE_S:
            assert -0.1 < age_s < MAX_AGE_S + GRACE_S, f'a chunk that is {age_s:.2f} s old'
        said = self._said.get(chunk.instruction)
        assert said is not None and chunk.instruction, 'an instruction that nobody gave'
        if chunk.instruction != self.instruction.strip():
            assert when - said < GRACE_S, f'still answers {chunk.instruction!r}'

    def use_once(self, settings):
        """Set parameters at once, and have a chunk made by the variant that they ask for."""
        before = self.last_variant
        assert not self.set_together(settings)
        end = time.monotonic() + 120
        while self.last_variant == before:
            self.live(0.05)
            assert time.monotonic() < end, self.last_stats

    def recover(self, since=None, limit_s=2.0):
        """Wait for a valid chunk that was observed after now; return the seconds that it took."""
        since = time.monotonic() if since is None else since
        stamp_ns = self.now_ns() - int((time.monotonic() - since) * S)
        while True:
            self.live(0.02)
            for when, stamp, instruction in self.valid[-20:]:
                if stamp >= stamp_ns and when > since and instruction == self.instruction.strip():
                    return when - since
            waited = time.monotonic() - since
            assert waited < limit_s, (
                f'no valid chunk within {waited:.1f} s, last heard of: {self.last_stats}')


def resident_mb(pid):
    """Return the memory of a process that is resident, MiB."""
    with open(f'/proc/{pid}/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2 ** 20
