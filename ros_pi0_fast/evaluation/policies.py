"""The policy that an evaluation runs: plain and in batches, or the engine with its switches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from ros_pi0_fast.codec.contract import check_contract
from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.variant import Variant
from ros_pi0_fast.evaluation.batch_policy import BatchPolicy
from ros_pi0_fast.evaluation.closed_loop import Plan
from ros_pi0_fast.evaluation.settings import override
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.types import ActionChunk, Observation
from ros_pi0_fast.weights.checkpoint import load_checkpoint


def make_policy(checkpoint: Path, profile: Path, settings: Sequence[str], *,
                batch: int) -> tuple[Plan, str]:
    """Load a checkpoint and return what plans with it, and the name of what runs.

    Args:
        checkpoint: folder.
        profile: YAML of the robot.
        settings: `field=value` of engine.variant.Variant. Without any, the plain policy plans for
            `batch` observations at once; with some, the engine plans for one after another, as
            on a robot.
        batch: observations that come at once.

    Raises:
        ValueError: if a setting is no field of Variant; the message lists the fields.
        ContractError, CheckpointError: if the checkpoint does not fit or cannot be read.
    """
    variant = override(Variant(), settings)
    robot = RobotProfile.load(profile)
    codec = PolicyCodec.from_checkpoint(checkpoint, robot)
    loaded = load_checkpoint(checkpoint, robot, dtype='float32')
    check_contract(loaded.contract, robot, codec.norm_stats, codec.text, codec.fast,
                   loaded.config)
    if settings:
        engine = Engine(loaded, codec, variant=variant)

        def one_by_one(observations: Sequence[Observation]) -> list[ActionChunk]:
            return [engine.infer(observation) for observation in observations]

        return one_by_one, variant.name
    model = Pi0Fast(loaded.config)
    params = model.unroll(jax.tree.map(jnp.asarray, loaded.params))
    return BatchPolicy(model, params, codec, batch=batch).plan, 'plain'
