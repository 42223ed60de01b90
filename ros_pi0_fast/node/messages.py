"""What the node publishes, built from the package's own types."""

from __future__ import annotations

import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from builtin_interfaces.msg import Duration
from rclpy.time import Time
from sensor_msgs.msg import Image

from ros_pi0_fast.accel.pruning_overlay import draw_kept
from ros_pi0_fast.codec.resize import resize_with_pad
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.msg import ActionChunk as ActionChunkMessage
from ros_pi0_fast.msg import InferenceStats as InferenceStatsMessage
from ros_pi0_fast.types import ActionChunk, InferenceStats, Observation

STAGES = ('preprocess_ms', 'vision_ms', 'prefill_ms', 'decode_ms', 'total_ms')


@dataclass(kw_only=True)
class Counts:
    """What happened since the node was activated."""

    observations: int = 0
    chunks_published: int = 0
    chunks_valid: int = 0
    malformed: int = 0
    last: InferenceStats = field(default_factory=InferenceStats)
    """Of the last inference."""
    age_ms: float = 0.0
    """Of the last chunk's observation when the chunk was published."""


def chunk_message(chunk: ActionChunk, profile: RobotProfile, *, sequence: int,
                  instruction: str) -> ActionChunkMessage:
    """Build the message of a chunk."""
    period_ns = round(1e9 / profile.control_rate_hz)
    message = ActionChunkMessage(
        sequence=sequence, horizon=len(chunk.actions), action_dim=profile.action_dim,
        names=list(profile.actions.names),
        actions=array.array('f', chunk.actions.astype('float32').tobytes()),
        control_period=Duration(sec=period_ns // 10**9, nanosec=period_ns % 10**9),
        # The codec has turned deltas into targets.
        absolute=True, valid=chunk.valid, reason=chunk.reason, instruction=instruction,
        variant=chunk.stats.variant, **{name: getattr(chunk.stats, name) for name in STAGES})
    message.header.stamp = Time(nanoseconds=chunk.stamp_ns).to_msg()
    message.header.frame_id = profile.name
    return message


def stats_message(*, now: Time, state: str, reason: str, variant: str, pending_variant: str,
                  counts: Counts, refusals: Mapping[str, int], compilations: int,
                  weight_bytes: int) -> InferenceStatsMessage:
    """Build the message about one inference or one refusal."""
    last = counts.last
    message = InferenceStatsMessage(
        variant=variant, pending_variant=pending_variant, state=state, reason=reason,
        observations=counts.observations,
        chunks_published=counts.chunks_published, chunks_valid=counts.chunks_valid,
        malformed=counts.malformed, refused=sum(refusals.values()),
        refusal_reasons=list(refusals), refusal_counts=list(refusals.values()),
        compilations=compilations, weights_mb=weight_bytes / 2**20,
        observation_age_ms=counts.age_ms, prompt_tokens=last.prompt_tokens,
        prefix_tokens=last.prefix_tokens, generated_tokens=last.generated_tokens,
        target_passes=last.target_passes, cameras=list(last.kept_tokens),
        kept_tokens=list(last.kept_tokens.values()), draft_length=last.draft_length,
        drafted_tokens=last.drafted_tokens, accepted_tokens=last.accepted_tokens,
        acceptance=last.acceptance,
        **{name: getattr(last, name) for name in STAGES})
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
