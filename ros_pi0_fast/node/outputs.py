"""What the node says while it is active: chunks, trajectories, statistics. Nothing unchecked."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.publisher import Publisher

from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.engine.budget import BudgetReport
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.node.gate import Released, release
from ros_pi0_fast.node.messages import Counts, chunk_message, kept_message, stats_message
from ros_pi0_fast.node.trajectory import trajectory_message
from ros_pi0_fast.types import ActionChunk, InferenceStats, Observation

RECENT_S = 10.0
"""What diagnostics say of rate and latency is about this last time."""
KEPT = 2000
"""Inferences that are remembered for that, at most."""


@dataclass(frozen=True, kw_only=True)
class Publishers:
    """Of the node, silent while it is not active."""

    chunks: Publisher
    trajectories: Publisher
    stats: Publisher
    kept: Publisher
    """Pictures of what pruning kept."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What may be published, by the parameters of the same names."""

    deadline_ms: float
    late_chunks: str
    action_limits: str
    dry_run: bool
    trajectories: bool
    overlay: bool

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Rules:
        """Return what values of the parameters ask for."""
        return cls(**{name: settings[name] for name in (
            'deadline_ms', 'late_chunks', 'action_limits', 'dry_run')},
            trajectories=settings['joint_trajectory.enabled'], overlay=settings['pruning.overlay'])


@dataclass(frozen=True, kw_only=True)
class Recent:
    """The last seconds, for diagnostics."""

    rate_hz: float = 0.0
    latencies_ms: tuple[float, ...] = ()
    """Of the inferences, oldest first."""
    missed: bool = False
    """One of their chunks was too late."""

    def percentile(self, share: float) -> float:
        """Return the latency that so many per cent of the inferences stay below; 0 for none."""
        return float(np.percentile(self.latencies_ms, share)) if self.latencies_ms else 0.0


class Outputs:
    """Publishes from one activation to the next deactivation; nothing after `close`.

    Args:
        node: Counts the time.
        engine: Whose chunks they are.
        profile: The robot.
        publishers: Of the node.
        rules: May be replaced by assigning to `rules`.
        refusals: How often each kind of reason was given, counted by others.
    """

    def __init__(self, node: Node, engine: Engine, profile: RobotProfile, publishers: Publishers,
                 rules: Rules, refusals: Mapping[str, int]):
        self.rules = rules
        self.counts = Counts()
        self._node, self._engine, self._profile = node, engine, profile
        self._publishers, self._refusals = publishers, refusals
        self._recent: deque[tuple[float, float, bool]] = deque(maxlen=KEPT)
        self._lock = threading.Lock()
        self._open = True

    def close(self) -> None:
        """Publish nothing more, at once."""
        with self._lock:
            self._open = False

    def chunk(self, observation: Observation, chunk: ActionChunk) -> tuple[str, str]:
        """Publish what may be published of a chunk.

        Returns:
            State and reason for `stats`.
        """
        rules = self.rules
        released = release(chunk, self._profile, rules.action_limits)
        with self._lock:
            if not self._open:
                return 'dropped', ''
            counts = self.counts
            counts.malformed += chunk.reason.startswith('malformed')
            counts.over_limits += released.over_limits
            counts.age_ms = (self._now_ns() - observation.stamp_ns) / 1e6
            late = 0 < rules.deadline_ms < counts.age_ms
            counts.deadline_misses += late
            if chunk.stats.total_ms:  # Else the inference failed.
                counts.last = chunk.stats
                self._recent.append((time.monotonic(), chunk.stats.total_ms, late))
            if late and rules.late_chunks == 'drop':
                return 'dropped', (f'late: {counts.age_ms:.1f} ms after its observation, expected '
                                   f'at most {rules.deadline_ms:g} ms (deadline_ms)')
            counts.chunks_published += 1
            counts.chunks_valid += released.chunk.valid
            if not rules.dry_run:
                self._publish(observation, released, rules, late=late)
        return 'inference', released.chunk.reason

    def _publish(self, observation: Observation, released: Released, rules: Rules, *,
                 late: bool) -> None:
        self._publishers.chunks.publish(chunk_message(
            released, self._profile, sequence=self.counts.chunks_published,
            instruction=observation.instruction, late=late))
        if rules.trajectories and released.chunk.valid:
            self._publishers.trajectories.publish(
                trajectory_message(released.chunk, self._profile))

    def kept(self, observation: Observation, stats: InferenceStats) -> None:
        """Publish a picture of what pruning kept, if that is asked for."""
        if not self.rules.overlay:
            return
        picture = kept_message(observation, stats, self._profile)
        with self._lock:
            if self._open:
                self._publishers.kept.publish(picture)

    def stats(self, state: str, reason: str, budget: BudgetReport) -> None:
        """Publish statistics about what has just happened."""
        with self._lock:
            if self._open:
                self._publishers.stats.publish(stats_message(
                    now=self._node.get_clock().now(), state=state, reason=reason,
                    dry_run=self.rules.dry_run, engine=self._engine, counts=self.counts,
                    refusals=dict(self._refusals), budget=budget))

    @property
    def recent(self) -> Recent:
        """What happened in the last seconds."""
        with self._lock:
            recent = list(self._recent)
        since = time.monotonic() - RECENT_S
        recent = [each for each in recent if each[0] > since]
        return Recent(rate_hz=len(recent) / RECENT_S, missed=any(late for *_, late in recent),
                      latencies_ms=tuple(latency for _, latency, _ in recent))

    def _now_ns(self) -> int:
        return self._node.get_clock().now().nanoseconds
