"""What the node publishes, built from the package's own types."""

from __future__ import annotations

import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from rclpy.time import Time
from sensor_msgs.msg import Image

from ros_pi0_fast.accel.pruning_overlay import draw_kept
from ros_pi0_fast.codec.resize import resize_with_pad
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.engine.budget import BudgetReport
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.memory import device_memory_bytes
from ros_pi0_fast.engine.parameters import MIB
from ros_pi0_fast.msg import ActionChunk as ActionChunkMessage
from ros_pi0_fast.msg import InferenceStats as InferenceStatsMessage
from ros_pi0_fast.node.gate import Released
from ros_pi0_fast.node.trajectory import duration
from ros_pi0_fast.types import InferenceStats, Observation

COUNTERS = ('observations', 'observations_dropped', 'chunks_published', 'chunks_valid',
            'malformed', 'over_limits', 'deadline_misses')
STAGES = ('preprocess_ms', 'vision_ms', 'prefill_ms', 'decode_ms', 'total_ms')


@dataclass(kw_only=True)
class Counts:
    """What happened since the node was activated."""

    observations: int = 0
    observations_dropped: int = 0
    chunks_published: int = 0
    chunks_valid: int = 0
    malformed: int = 0
    over_limits: int = 0
    deadline_misses: int = 0
    last: InferenceStats = field(default_factory=InferenceStats)
    """Of the last inference."""
    age_ms: float = 0.0
    """Of the last chunk's observation when the chunk was published."""


def chunk_message(released: Released, profile: RobotProfile, *, sequence: int, instruction: str,
                  late: bool) -> ActionChunkMessage:
    """Build the message of a chunk."""
    chunk = released.chunk
    message = ActionChunkMessage(
        sequence=sequence, horizon=len(chunk.actions), action_dim=profile.action_dim,
        names=list(profile.actions.names),
        actions=array.array('f', chunk.actions.tobytes()),
        control_period=duration(round(1e9 / profile.control_rate_hz)),
        # The codec has turned deltas into targets.
        absolute=True, valid=chunk.valid, reason=chunk.reason, late=late,
        clamped=released.clamped, instruction=instruction,
        variant=chunk.stats.variant, **{name: getattr(chunk.stats, name) for name in STAGES})
    message.header.stamp = Time(nanoseconds=chunk.stamp_ns).to_msg()
    message.header.frame_id = profile.name
    return message


def stats_message(*, now: Time, state: str, reason: str, dry_run: bool, engine: Engine,
                  counts: Counts, refusals: Mapping[str, int], budget: BudgetReport,
                  ) -> InferenceStatsMessage:
    """Build the message about one inference or one refusal."""
    last, pending = counts.last, engine.pending
    message = InferenceStatsMessage(
        variant=engine.variant.name, pending_variant='' if pending is None else pending.name,
        state=state, reason=reason, dry_run=dry_run,
        refused=sum(refusals.values()), refusal_reasons=list(refusals),
        refusal_counts=list(refusals.values()), compilations=engine.compilations,
        weights_mb=engine.weight_bytes / MIB, device_memory_mb=device_memory_bytes() / MIB,
        observation_age_ms=counts.age_ms, prompt_tokens=last.prompt_tokens,
        prefix_tokens=last.prefix_tokens, generated_tokens=last.generated_tokens,
        target_passes=last.target_passes, cameras=list(last.kept_tokens),
        kept_tokens=list(last.kept_tokens.values()), draft_length=last.draft_length,
        drafted_tokens=last.drafted_tokens, accepted_tokens=last.accepted_tokens,
        acceptance=last.acceptance,
        latency_budget_ms=budget.budget_ms, budget_decision=budget.decision,
        budget_variants=list(budget.variants),
        budget_latencies_ms=array.array('f', budget.latencies_ms),
        budget_left_out=list(budget.left_out),
        **{name: getattr(last, name) for name in STAGES},
        **{name: getattr(counts, name) for name in COUNTERS})
    message.header.stamp = now.to_msg()
    return message


def kept_message(observation: Observation, stats: InferenceStats,
                 profile: RobotProfile) -> Image:
    """Build the picture of what pruning kept: the robot's cameras side by side, keys sorted."""
    keys = sorted(stats.kept)
    images = np.stack([resize_with_pad(observation.images[key], *profile.image_size)
                       for key in keys])
    kept = np.stack([stats.kept[key] for key in keys])
    pixels = draw_kept(images, kept.ravel(), kept.shape[1:])
    height, width, _ = pixels.shape
    message = Image(height=height, width=width, encoding='rgb8', step=3 * width,
                    data=array.array('B', pixels.tobytes()))
    message.header.stamp = Time(nanoseconds=observation.stamp_ns).to_msg()
    message.header.frame_id = profile.name
    return message
