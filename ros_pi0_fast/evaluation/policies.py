"""The policy that an evaluation runs: plain and in batches, or the engine with its switches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.evaluation.batch_policy import BatchPolicy
from ros_pi0_fast.evaluation.closed_loop import Plan
from ros_pi0_fast.evaluation.settings import variant_with
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.types import ActionChunk, Observation


def make_policy(checkpoint: Path, profile: Path, settings: Sequence[str], *,
                batch: int) -> tuple[Plan, str]:
    """Load a checkpoint and return what plans with it, and the name of what runs.

    Args:
        checkpoint: folder.
        profile: YAML of the robot.
        settings: see settings.variant_with. Without any, the plain policy plans for `batch`
            observations at once; with some, the engine plans for one after another, as on a
            robot.
        batch: observations that come at once.

    Raises:
        ValueError: if a setting is no switch of the engine; the message lists those.
        VariantError: if the checkpoint has no weights for it.
        ContractError, CheckpointError: if the checkpoint does not fit or cannot be read.
    """
    loaded, codec = load_policy(checkpoint, RobotProfile.load(profile))
    stored = [] if loaded.params is not None else [
        f'quantization.weights={name}' for name in loaded.quantized]
    variant = variant_with([*stored, *settings])
    if settings or loaded.params is None:
        engine = Engine(loaded, codec, variant=variant)

        def one_by_one(observations: Sequence[Observation]) -> list[ActionChunk]:
            return [engine.infer(observation) for observation in observations]

        return one_by_one, variant.name
    model = Pi0Fast(loaded.config)
    params = model.unroll(jax.tree.map(jnp.asarray, loaded.params))
    return BatchPolicy(model, params, codec, batch=batch).plan, 'plain'
