"""The latest of each input, and whether together they are an observation. No rclpy.

The same code serves the node and the replay of bags. Nothing is silently used: what is broken,
old, out of order or missing is refused with a reason, and reasons are counted by their kind, which
is what stands before the colon.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.types import Observation

MAX_POSITION = float(np.finfo(np.float32).max)
CLOCK_JUMP_NS = 10**9
"""A stamp older than the last one by more than this is a new clock, not a late message."""


class ObservationRefused(ValueError):  # noqa: N818
    """There is no observation; the message is the reason, `kind: details`."""

    @property
    def kind(self) -> str:
        """What is counted."""
        return str(self).partition(':')[0]


@dataclass(frozen=True, kw_only=True)
class Freshness:
    """How old and how far apart inputs may be."""

    max_observation_age_s: float
    """Of the oldest picture and of the oldest joint."""
    max_camera_skew_s: float
    """Between the stamps of the oldest and the newest picture."""


@dataclass(frozen=True)
class _Picture:
    pixels: np.ndarray
    stamp_ns: int


class ObservationAssembler:
    """Keeps the latest inputs of one robot. May be used by several threads.

    Args:
        profile: The robot.
        freshness: May be replaced by assigning to `freshness`.
    """

    def __init__(self, profile: RobotProfile, freshness: Freshness):
        self.freshness = freshness
        self.refusals: Counter[str] = Counter()
        """How often each kind of reason was given."""
        self._profile = profile
        self._lock = threading.Lock()
        self._pictures: dict[str, _Picture] = {}
        self._joints: dict[str, tuple[float, int]] = {}
        self._instruction = ''

    def refuse(self, reason: str) -> ObservationRefused:
        """Count a reason and return it as an exception."""
        refused = ObservationRefused(reason)
        with self._lock:
            self.refusals[refused.kind] += 1
        return refused

    def update_image(self, key: str, pixels: np.ndarray, stamp_ns: int) -> None:
        """Take a picture uint8 RGB [h, w, 3].

        Raises:
            ObservationRefused: it is older than the last one.
        """
        with self._lock:
            last = self._pictures.get(key)
            late = last is not None and 0 < last.stamp_ns - stamp_ns < CLOCK_JUMP_NS
            if not late:
                self._pictures[key] = _Picture(pixels, stamp_ns)
        if late:
            raise self.refuse(f'out of order: {key} is {(last.stamp_ns - stamp_ns) / 1e6:.1f} ms '
                              'older than the picture before it')

    def update_joints(self, names: Sequence[str], positions: Sequence[float],
                      stamp_ns: int) -> None:
        """Take the joints that the profile names, in any order; others are ignored, and so are
        messages that have none but others, whatever else is in them.

        Raises:
            ObservationRefused: not one position for each name, one is not finite (in float32, as
                the model takes it), or they are older than the last ones. Nothing of the message
                is taken then.
        """
        if names and not set(names) & set(self._profile.state.joints):
            return
        if len(names) != len(positions):
            raise self.refuse(f'bad joint state: found {len(positions)} positions for '
                              f'{len(names)} names')
        wanted = {name: float(position) for name, position in zip(names, positions, strict=True)
                  if name in self._profile.state.joints}
        broken = [name for name, position in wanted.items() if not abs(position) <= MAX_POSITION]
        if broken:
            raise self.refuse(f'bad joint state: {broken[0]} is {wanted[broken[0]]}, expected a '
                              'finite number')
        with self._lock:
            behind = {name: self._joints[name][1] - stamp_ns for name in wanted
                      if name in self._joints
                      and 0 < self._joints[name][1] - stamp_ns < CLOCK_JUMP_NS}
            if not behind:
                self._joints.update({name: (position, stamp_ns)
                                     for name, position in wanted.items()})
        if behind:
            name = max(behind, key=behind.__getitem__)
            raise self.refuse(f'out of order: {name} is {behind[name] / 1e6:.1f} ms older than '
                              'the joint state before it')

    def update_instruction(self, text: str) -> bool:
        """Take an instruction. A blank one withdraws the one before: the robot must not go on
        with an order that somebody cleared.

        Returns:
            Whether it is another one than before.

        Raises:
            ObservationRefused: it is blank.
        """
        with self._lock:
            before, self._instruction = self._instruction, text.strip()
        if not text.strip():
            raise self.refuse('empty instruction: found a blank text on the instruction topic')
        return text.strip() != before

    def assemble(self, now_ns: int) -> Observation:
        """Return the latest inputs as one observation, stamped with its oldest picture.

        Args:
            now_ns: Time of the clock that stamps the inputs, nanoseconds.

        Raises:
            ObservationRefused: something is missing, too old, or too far apart.
        """
        with self._lock:
            pictures, joints = dict(self._pictures), dict(self._joints)
            instruction = self._instruction
        reason = (self._missing(pictures, joints, instruction)
                  or self._stale(pictures, joints, now_ns))
        if reason:
            raise self.refuse(reason)
        return Observation(
            images={key: picture.pixels for key, picture in pictures.items()},
            state=np.array([joints[name][0] for name in self._profile.state.joints], np.float32),
            instruction=instruction,
            stamp_ns=min(picture.stamp_ns for picture in pictures.values()))

    def check_fresh(self, observation: Observation, now_ns: int) -> None:
        """Check an observation again, after it has waited for its turn.

        Raises:
            ObservationRefused: it has become too old, or its instruction is no longer in force.
        """
        age = (now_ns - observation.stamp_ns) / 1e9
        if age > self.freshness.max_observation_age_s:
            raise self.refuse(f'stale observation: waited until it was {age:.3f} s old, expected '
                              f'at most {self.freshness.max_observation_age_s:g} s '
                              '(max_observation_age_s)')
        self.check_wanted(observation)

    def check_wanted(self, observation: Observation) -> None:
        """Check that an observation's instruction is the one in force: what answers an order that
        was withdrawn or replaced is not to move the robot.

        Raises:
            ObservationRefused: it is not.
        """
        with self._lock:
            instruction = self._instruction
        if not instruction:
            raise self.refuse('no instruction: withdrawn before its chunk was ready')
        if instruction != observation.instruction:
            raise self.refuse('old instruction: replaced before its chunk was ready')

    def _missing(self, pictures: dict, joints: dict, instruction: str) -> str:
        for key, source in self._profile.cameras.items():
            if key not in pictures:
                return f'missing camera: nothing for {key} on {source.topic} yet'
        lacking = [name for name in self._profile.state.joints if name not in joints]
        if lacking:
            return f'missing joints: no position of {", ".join(lacking)} on joint_states yet'
        return '' if instruction else 'no instruction: none on the instruction topic yet'

    def _stale(self, pictures: dict[str, _Picture], joints: dict[str, tuple[float, int]],
               now_ns: int) -> str:
        limit = self.freshness.max_observation_age_s
        stamps = {key: picture.stamp_ns for key, picture in pictures.items()}
        joint_stamps = {name: joints[name][1] for name in self._profile.state.joints}
        for what, times in (('camera', stamps), ('joint', joint_stamps)):
            oldest = min(times, key=times.__getitem__)
            age = (now_ns - times[oldest]) / 1e9
            if abs(age) > limit:
                word = 'old' if age > 0 else 'ahead of the clock'
                return (f'stale {what}: {oldest} is {abs(age):.3f} s {word}, expected at most '
                        f'{limit:g} s (max_observation_age_s)')
        skew = (max(stamps.values()) - min(stamps.values())) / 1e9
        if skew > self.freshness.max_camera_skew_s:
            return (f'camera skew: pictures are {skew:.3f} s apart, expected at most '
                    f'{self.freshness.max_camera_skew_s:g} s (max_camera_skew_s)')
        return ''
