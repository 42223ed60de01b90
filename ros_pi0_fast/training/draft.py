"""Train drafters for a policy's speculative decoding.

    python -m ros_pi0_fast.training.draft --drafter head
    python -m ros_pi0_fast.training.draft --drafter model
    python -m ros_pi0_fast.training.draft --drafter ngram

The policy decodes the frames of scenes that the expert solved, once for all drafters (the answers
are kept in --work); a drafter learns to continue those ids. It is written into the checkpoint's
folder `drafters`, and `speculative.drafter` of the node and the engine names it.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.draft_file import FOLDER, flatten, save_drafter, small_model
from ros_pi0_fast.accel.draft_model import init_draft
from ros_pi0_fast.accel.drafter_head import init_head
from ros_pi0_fast.accel.drafter_ngram import NgramDrafter
from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.evaluation.settings import override
from ros_pi0_fast.model.attention import folded
from ros_pi0_fast.model.config import GemmaConfig
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.sim.episodes import EpisodeConfig
from ros_pi0_fast.sim.tasks import TASKS
from ros_pi0_fast.training.collect import collect_expert
from ros_pi0_fast.training.data import encode_shards
from ros_pi0_fast.training.draft_data import TargetRecorder
from ros_pi0_fast.training.draft_objective import head_loss, model_loss
from ros_pi0_fast.training.loop import LoopConfig, TrainLoop
from ros_pi0_fast.weights.checkpoint import Checkpoint

DRAFTERS = ('head', 'model', 'ngram')
HELD_OUT = 200
"""Rows that are not learned from, the last ones: what the agreement is measured on."""


@dataclass(frozen=True, kw_only=True)
class DraftRun:
    """Everything that decides a drafter's weights, but the machine."""

    drafter: str = 'head'
    checkpoint: Path = Path('checkpoints/tabletop')
    episodes: int = 1500
    """Scenes, of which the first look is kept of half, and all of the rest."""
    first_seed: int = 3_000_000
    """Of the scenes: others than those that the policy learned from."""
    hidden: int = 256
    """Of the head: width of its feed-forward layer."""
    ahead: int = 5
    """Of the head: how many ids one after another it learns to guess."""
    order: int = 3
    """Of the n-gram table: ids of a context."""
    width: int = 96
    """Of the small decoder, and so the next."""
    depth: int = 2
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(
        steps=4000, batch_size=32, learning_rate=2e-3, warmup_steps=100, weight_decay=5e-2,
        ema_decay=0.995, steps_per_dispatch=20, checkpoint_every=500))
    seed: int = 0

    def __post_init__(self) -> None:
        if self.drafter not in DRAFTERS:
            raise ValueError(f'drafter: {self.drafter!r}, expected one of {", ".join(DRAFTERS)}')


class Recordings:
    """The policy's answers, kept in a folder.

    Args:
        run: Which policy and scenes.
        work: Folder.
        profile: YAML of the robot.
        checkpoint: The policy, and so the next.
        codec: Of the policy.
    """

    def __init__(self, run: DraftRun, work: Path, profile: Path, checkpoint: Checkpoint,
                 codec: PolicyCodec):
        self._run, self._work, self._profile = run, work, profile
        model = Pi0Fast(checkpoint.config, attend=folded)
        params = model.unroll(jax.tree.map(jnp.asarray, checkpoint.params))
        self._record = TargetRecorder(model, params, codec)

    def load(self) -> dict[str, np.ndarray]:
        """Return them, made where they are not there: see TargetRecorder."""
        run = self._run
        shards = collect_expert(
            range(run.first_seed, run.first_seed + run.episodes), self._work / 'shards',
            tasks=TASKS, config=EpisodeConfig(first_look_only=0.5, orders=2))
        parts = []
        for shard in shards:
            kept = self._work / 'answers' / shard.name
            if not kept.exists():
                answers = self._record(encode_shards([shard], run.checkpoint, self._profile))
                kept.parent.mkdir(parents=True, exist_ok=True)
                with kept.with_suffix('.tmp').open('wb') as file:
                    np.savez(file, **answers)
                kept.with_suffix('.tmp').replace(kept)
                print(f'{kept}: {len(answers["count"])} answers', flush=True)
            with np.load(kept, allow_pickle=False) as file:
                parts.append({name: file[name] for name in file.files})
        return join(parts)


def join(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join recordings; arrays of fewer places are filled up with zeros."""
    result: dict[str, np.ndarray] = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        if name == 'picture':
            before = np.cumsum([0, *(len(part['vision']) for part in parts[:-1])])
            arrays = [array + first for array, first in zip(arrays, before, strict=True)]
        places = max(array.shape[1] if array.ndim > 1 else 0 for array in arrays)
        result[name] = np.concatenate([array if array.ndim == 1 else np.pad(
            array, [(0, 0), (0, places - array.shape[1])] + [(0, 0)] * (array.ndim - 2))
            for array in arrays])
    return result


def train(run: DraftRun, work: Path, checkpoint: Checkpoint, codec: PolicyCodec,
          recordings: Mapping[str, np.ndarray], *, deadline: float | None = None,
          ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Train a drafter.

    Args:
        run: Which.
        work: Folder of its state.
        checkpoint: The policy, and so the next.
        codec: Of the policy.
        recordings: What Recordings.load returns.
        deadline: `time.monotonic()` at which to stop.

    Returns:
        Its arrays, its sizes, and how it was made: see draft_file.save_drafter.
    """
    columns = codec.fast.vocab_size
    if run.drafter == 'ngram':
        table = NgramDrafter.build([ids[:count] for ids, count in zip(
            recordings['columns'], recordings['count'], strict=True)], columns, order=run.order)
        arrays = {f'keys{level}': keys for level, keys in enumerate(table.keys)}
        arrays |= {f'following{level}': ids for level, ids in enumerate(table.following)}
        return arrays, {'columns': columns}, {'chunks': len(recordings['count'])}
    model, rng = Pi0Fast(checkpoint.config), jax.random.key(run.seed)
    data: dict[str, Any] = dict(recordings)
    vision = data.pop('vision')
    if run.drafter == 'head':
        params = init_head(model.config.gemma, columns, run.hidden, rng)
        loss, sizes = head_loss(model.config, run.ahead), {'hidden': run.hidden}
        data = {name: data[name] for name in ('columns', 'count', 'prefix', 'hidden', 'keys',
                                              'values')}
    else:
        gemma = _small(model.config.gemma, run)
        small = small_model(model, gemma)
        params = init_draft(small, model.config.gemma.width, rng)
        candidates = codec.fast_to_model(np.arange(columns))
        loss = model_loss(small, jnp.asarray(vision), jnp.asarray(candidates, jnp.int32),
                          jnp.asarray(codec.action_prefix_ids, jnp.int32))
        sizes = {'gemma': dataclasses.asdict(gemma)}
        data = {name: data[name] for name in ('columns', 'count', 'prompt', 'prompt_length',
                                              'picture')}
    loop = TrainLoop(run.loop, loss, work / run.drafter)
    state = loop.fit(loop.restore(params), loop.put(data), deadline=deadline, report=_say,
                     rows=len(data['count']) - HELD_OUT)
    held_out = {name: jnp.asarray(array[-HELD_OUT:]) for name, array in data.items()}
    _, metrics = jax.jit(loss)(state.ema, held_out, rng)
    loop.close()
    made = {'steps': int(state.step), 'of': run.loop.steps, 'rows': len(data['count']),
            'held_out': {name: float(value) for name, value in metrics.items()}}
    return flatten(state.ema), sizes, made


def _small(gemma: GemmaConfig, run: DraftRun) -> GemmaConfig:
    """Return the sizes of the small decoder: the target's, but for width and depth."""
    return dataclasses.replace(gemma, width=run.width, depth=run.depth, mlp_dim=2 * run.width,
                               num_heads=max(1, run.width // gemma.head_dim), num_kv_heads=1)


def _say(record: dict[str, float]) -> None:
    if record['step'] % 100 == 0:
        print(f'step {record["step"]:,}: loss {record["loss"]:.3f}, '
              + ', '.join(f'{name} {value:.3f}' for name, value in record.items()
                          if name.startswith('right')), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--drafter', default='head', choices=DRAFTERS)
    parser.add_argument('--checkpoint', type=Path, default=Path('checkpoints/tabletop'),
                        help="the policy's")
    parser.add_argument('--out', type=Path, help='<checkpoint>/drafters by default')
    parser.add_argument('--work', type=Path, default=Path('runs/draft'),
                        help='scenes, answers, and the state of training')
    parser.add_argument('--profile', type=Path, default=Path('config/robots/tabletop.yaml'))
    parser.add_argument('--minutes', type=float, help='stop cleanly after so many')
    parser.add_argument('--set', action='append', default=[], metavar='FIELD=VALUE',
                        help='change the run, such as loop.steps=500')
    options = parser.parse_args(arguments)
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    try:
        run = override(DraftRun(drafter=options.drafter, checkpoint=options.checkpoint),
                       options.set)
        policy, codec = load_policy(run.checkpoint, RobotProfile.load(options.profile))
    except ValueError as error:
        parser.error(str(error))
    recordings = Recordings(run, options.work, options.profile, policy, codec).load()
    arrays, sizes, made = train(run, options.work, policy, codec, recordings, deadline=deadline)
    out = options.out or run.checkpoint / FOLDER
    save_drafter(out, run.drafter, arrays, sizes, made)
    print(f'{out / run.drafter}.npz: {made}', flush=True)


if __name__ == '__main__':
    main()
