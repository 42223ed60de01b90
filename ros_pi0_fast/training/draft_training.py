"""Training of drafters: the policy's answers to frames, and a train loop for each drafter."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.draft_file import flatten, load_drafters, small_model
from ros_pi0_fast.accel.draft_model import init_draft
from ros_pi0_fast.accel.drafter_head import HeadSize, init_head
from ros_pi0_fast.accel.drafter_ngram import NgramDrafter
from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.model.attention import folded
from ros_pi0_fast.model.config import GemmaConfig
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.sim.episodes import EpisodeConfig
from ros_pi0_fast.sim.tasks import TASKS
from ros_pi0_fast.training.collect import collect_expert
from ros_pi0_fast.training.data import encode_shards
from ros_pi0_fast.training.draft_data import TargetRecorder
from ros_pi0_fast.training.draft_objective import head_loss, model_loss
from ros_pi0_fast.training.loop import LoopConfig, LossFunction, TrainLoop, TrainState
from ros_pi0_fast.training.workers import Run
from ros_pi0_fast.weights.checkpoint import Checkpoint

HELD_OUT = 0.02
"""Of the rows, the last ones: not learned from, but what the agreement is measured on."""
MOST_HELD_OUT = 4000


@dataclass(frozen=True, kw_only=True)
class DraftRun:
    """Everything that decides the drafters' weights, but the machine."""

    checkpoint: Path = Path('checkpoints/tabletop')
    """The policy's."""
    start: Path | None = None
    """Folder of drafters, whose head is where the training of the head begins; None: at random."""
    episodes: int = 1250
    """Scenes, of which the first look is kept of half, and all of the rest."""
    first_seed: int = 3_000_000
    """Of the scenes: others than those that the policy learned from."""
    orders: int = 8
    """For how many orders each picture is answered."""
    batch: int = 128
    """Pictures that are answered at once."""
    hidden: int = 512
    """Of the head: width of its feed-forward layers."""
    blocks: int = 2
    """Of the head."""
    ahead: int = 6
    """Of the head: how many ids one after another it learns to guess."""
    order: int = 3
    """Of the n-gram table: ids of a context."""
    width: int = 96
    """Of the small decoder, and so the next."""
    depth: int = 2
    dtype: str = 'bfloat16'
    """Of activations in training."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(
        steps=8369, batch_size=256, learning_rate=2e-3, warmup_steps=200, weight_decay=2e-2,
        ema_decay=0.999, steps_per_dispatch=50, checkpoint_every=2000))
    seed: int = 0


def record(run: DraftRun, work: Path, profile: Path, checkpoint: Checkpoint, codec: PolicyCodec,
           pool: Run) -> dict[str, Any]:
    """Return the policy's answers to frames of the expert's episodes: see TargetRecorder.

    Args:
        run: Which frames.
        work: Folder that keeps them.
        profile: YAML of the robot.
        checkpoint: The policy, and so the next.
        codec: Of the policy.
        pool: Where episodes are simulated and encoded: see workers.worker_pool.
    """
    began = time.monotonic()
    shards = collect_expert(
        range(run.first_seed, run.first_seed + run.episodes), work / 'shards', tasks=TASKS,
        config=EpisodeConfig(first_look_only=0.5, orders=run.orders), run=pool)
    print(f'{run.episodes} scenes: {time.monotonic() - began:.0f} s', flush=True)
    model = Pi0Fast(checkpoint.config, attend=folded)
    params = model.unroll(jax.tree.map(jnp.asarray, checkpoint.params))
    recorder = TargetRecorder(model, params, codec, batch=run.batch, layers=run.blocks)
    with jax.default_matmul_precision('highest'):  # As near a tie as it is: the policy's own ids.
        answers = recorder(encode_shards(shards, run.checkpoint, profile, run=pool))
    print(f'{len(answers["count"])} answers to {len(answers["vision"])} pictures, of '
          f'{float(jnp.mean(answers["count"])):.1f} ids: {time.monotonic() - began:.0f} s',
          flush=True)
    return answers


def train(name: str, run: DraftRun, work: Path, checkpoint: Checkpoint, codec: PolicyCodec,
          answers: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Train a drafter.

    Args:
        name: 'head', 'model' or 'ngram'.
        run: How.
        work: Folder of its state.
        checkpoint: The policy, and so the next.
        codec: Of the policy.
        answers: What `record` returns.

    Returns:
        Its arrays, its sizes, and how it was made: see draft_file.save_drafter.
    """
    columns, held_out = codec.fast.vocab_size, _held_out(answers)
    if name == 'ngram':
        ids, counts = (np.asarray(answers[key])[:-held_out] for key in ('columns', 'count'))
        table = NgramDrafter.build([row[:count] for row, count in zip(ids, counts, strict=True)],
                                   columns, order=run.order)
        arrays = {f'keys{level}': keys for level, keys in enumerate(table.keys)}
        arrays |= {f'following{level}': ids for level, ids in enumerate(table.following)}
        return arrays, {'columns': columns}, {'chunks': len(counts)}
    model, rng = Pi0Fast(checkpoint.config), jax.random.key(run.seed)
    if name == 'head':
        config = checkpoint.config
        sizes = {'hidden': run.hidden, 'depth': run.blocks}
        params = init_head(config.gemma, HeadSize(
            columns=columns, coefficients=config.action_dim * config.action_horizon, **sizes), rng)
        if run.start is not None:
            params = load_drafters(run.start, model, columns)['head'].weights
        loss = head_loss(config, run.ahead, len(codec.action_prefix_ids), run.dtype)
        wanted = ('columns', 'count', 'remaining', 'prefix', 'opening', 'hidden', 'keys', 'values')
    else:
        gemma = _small(model.config.gemma, run)
        small = small_model(model, gemma)
        small = dataclasses.replace(small, config=dataclasses.replace(
            small.config, dtype=run.dtype))
        params = init_draft(small, model.config.gemma.width, rng)
        candidates = codec.fast_to_model(np.arange(columns))
        loss = model_loss(small, answers['vision'], jnp.asarray(candidates, jnp.int32),
                          jnp.asarray(codec.action_prefix_ids, jnp.int32))
        sizes = {'gemma': dataclasses.asdict(gemma)}
        wanted = ('columns', 'count', 'prompt', 'prompt_length', 'picture')
    data = {key: answers[key] for key in wanted}
    state, metrics = _descend(run, work / name, loss, params, data, held_out)
    made = {'steps': int(state.step), 'rows': len(data['count']), 'held_out': metrics}
    return flatten(state.ema), sizes, made


def _descend(run: DraftRun, work: Path, loss: LossFunction, params: Any, data: Mapping[str, Any],
            held_out: int) -> tuple[TrainState, dict[str, float]]:
    """Train; return the state, and the metrics of the rows that were not learned from."""
    loop = TrainLoop(run.loop, loss, work)
    data, state, rows = loop.put(data), loop.restore(params), len(data['count']) - held_out
    state = loop.fit(state, data, report=_say, rows=rows)
    loop.close()
    judge = jax.jit(loss)
    batches = [{key: array[start:start + 200] for key, array in data.items()}
               for start in range(rows, len(data['count']) - 199, 200)] or [
                   {key: array[rows:] for key, array in data.items()}]
    found = [jax.device_get(judge(state.ema, batch, jax.random.key(0))[1]) for batch in batches]
    return state, {key: float(np.mean([metrics[key] for metrics in found])) for key in found[0]}


def _held_out(answers: Mapping[str, Any]) -> int:
    return max(1, min(MOST_HELD_OUT, int(HELD_OUT * len(answers['count']))))


def _small(gemma: GemmaConfig, run: DraftRun) -> GemmaConfig:
    """Return the sizes of the small decoder: the target's, but for width and depth."""
    return dataclasses.replace(gemma, width=run.width, depth=run.depth, mlp_dim=2 * run.width,
                               num_heads=max(1, run.width // gemma.head_dim), num_kv_heads=1)


def _say(record: dict[str, float]) -> None:
    if record['step'] % 500 == 0:
        print(f'step {record["step"]:,}: loss {record["loss"]:.3f}, '
              + ', '.join(f'{name} {value:.3f}' for name, value in record.items()
                          if name.startswith('right')), flush=True)
