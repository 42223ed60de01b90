"""The stages of a pruner's training: frames, what the policy has to say of them, steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.pruning import AdaptiveVisualPruner
from ros_pi0_fast.accel.pruning_file import load_decoder, load_pruner, save_pruner
from ros_pi0_fast.accel.pruning_scores import LearnedScorer
from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.evaluation.closed_loop import Simulations
from ros_pi0_fast.evaluation.pruned_policy import PrunedPolicy
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.sim.episodes import EpisodeConfig
from ros_pi0_fast.sim.tasks import TASKS
from ros_pi0_fast.training.collect import collect_expert
from ros_pi0_fast.training.config import RoundConfig
from ros_pi0_fast.training.dagger import Round, rollout_round
from ros_pi0_fast.training.data import TOKEN_ARRAYS, encode_shards
from ros_pi0_fast.training.loop import LoopConfig, TrainLoop, TrainState, data_mesh
from ros_pi0_fast.training.pruner_objective import (
    PROGRESS,
    PrunerTerms,
    change_of_decoder,
    changed_decoder,
    pruner_loss,
    teach,
)
from ros_pi0_fast.training.workers import Run
from ros_pi0_fast.weights.checkpoint import Checkpoint

FIRST_SEED = 4_000_000
"""Of the scenes: others than those that the policy learned from."""
VISITED = 'visited.npz'
"""What a run keeps of the states that the pruned policy got itself into."""
FIRST_ROUND = 50
"""Of DAgger, see dagger.SEEDS_A_ROUND: beyond those of the policy."""


@dataclass(frozen=True, kw_only=True)
class PrunerRun:
    """Everything that decides a pruner's weights, but the machine."""

    name: str
    checkpoint: Path = Path('checkpoints/tabletop')
    loop: LoopConfig
    scorer: LearnedScorer = field(default_factory=LearnedScorer)
    terms: PrunerTerms = field(default_factory=PrunerTerms)
    frames: int
    """To learn from, the first ones of the shards."""
    episodes: int
    """That the expert solves for these, where no shards are given."""
    tasks: tuple[str, ...] = TASKS
    """That take turns there; one that is named twice comes twice as often."""
    orders: int = 4
    """For how many each frame is labelled."""
    start: Path | None = None
    """Folder of a pruner to go on from, with its decoder; its scorer counts, not that above."""
    dagger: RoundConfig | None = None
    """Learn from the states, too, that the policy pruned by `start` gets itself into."""
    dagger_tasks: tuple[str, ...] = TASKS
    """That take turns there: see `tasks`."""
    dagger_keep: float = 0.25
    """Fraction of the image tokens that is kept there."""
    stages: int = 6
    """Of the curriculum, in which the ratio falls evenly; 1 starts at the target."""
    curriculum: float = 0.5
    """Fraction of the steps that the curriculum takes."""
    finetune: bool = False
    """The policy's decoder learns along, to do without the tokens that are pruned."""
    seed: int = 0


def _tabletop() -> PrunerRun:
    return PrunerRun(
        name='tabletop', frames=80_000, episodes=20_000, finetune=True,
        tasks=('push', 'reach', 'push', 'pick'),
        terms=PrunerTerms(whole=8, fewest=0.15, counted=True),
        scorer=LearnedScorer(heads=4, head_dim=32, hidden=128),
        loop=LoopConfig(steps=4250, batch_size=256, learning_rate=2e-3, warmup_steps=50,
                        weight_decay=0.0, ema_decay=0.998, steps_per_dispatch=25,
                        checkpoint_every=10_000))


def _tabletop_dagger() -> PrunerRun:
    return PrunerRun(
        name='tabletop_dagger', frames=3000, episodes=1000, orders=1, stages=1, finetune=True,
        start=Path('checkpoints/tabletop/pruner'),
        terms=PrunerTerms(whole=8, fewest=0.15, counted=True, centred=True),
        dagger=RoundConfig(episodes=600, max_latency=0, slots=8),
        dagger_tasks=('push', 'push', 'reach', 'push', 'push', 'pick'),
        loop=LoopConfig(steps=600, batch_size=32, learning_rate=1e-3, warmup_steps=10,
                        weight_decay=0.0, ema_decay=0.97, steps_per_dispatch=20,
                        checkpoint_every=100))


def _smoke() -> PrunerRun:
    return PrunerRun(
        name='smoke', frames=48, episodes=12, stages=3, finetune=True,
        scorer=LearnedScorer(heads=2, hidden=16),
        loop=LoopConfig(steps=30, batch_size=4, learning_rate=5e-3, warmup_steps=5,
                        weight_decay=0.0, ema_decay=0.9, steps_per_dispatch=5,
                        checkpoint_every=10_000))


_RUNS = {'tabletop': _tabletop, 'tabletop_dagger': _tabletop_dagger, 'smoke': _smoke}


def get_pruner_run(name: str) -> PrunerRun:
    """Return a run by name.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in _RUNS:
        raise ValueError(f'run: {name!r}, expected one of {", ".join(_RUNS)}')
    return _RUNS[name]()


def curriculum(run: PrunerRun) -> Iterator[tuple[int, float]]:
    """Yield until which step how much of the way to the target is gone: 0 to 1, rising."""
    size, count = run.loop.steps_per_dispatch, run.stages - 1
    for stage in range(count):
        dispatches = round((stage + 1) * run.curriculum * run.loop.steps / count / size)
        yield min(run.loop.steps, max(1, dispatches) * size), stage / count
    yield run.loop.steps, 1.0


class PrunerTraining:
    """One run.

    Args:
        run: What to train.
        work: Folder of its state.
        policy: Checkpoint of the policy, float32.

    Raises:
        PruningError: the pruner to start from cannot be read, or is of another policy.
    """

    def __init__(self, run: PrunerRun, work: Path, policy: Checkpoint):
        sizes = {'tokens': policy.config.num_image_tokens, 'width': policy.config.gemma.width}
        decoder = policy.params['PaliGemma']['llm']
        if run.start is None:
            weights = jax.device_get(run.scorer.init(jax.random.key(run.seed), **sizes))
        else:
            scorer, weights = load_pruner(run.start, **sizes)
            run = dataclasses.replace(run, scorer=scorer)
            if run.finetune:
                decoder = load_decoder(run.start, decoder) or decoder
        self._first_weights, self._first_decoder = weights, decoder
        self.run = run
        self.work = work
        self.policy = policy
        self.model = Pi0Fast(dataclasses.replace(policy.config, dtype='float32'))
        self.pruner = AdaptiveVisualPruner(scorer=run.scorer)
        self._params = jax.tree.map(jnp.asarray, policy.params)
        self.loop = TrainLoop(
            run.loop, pruner_loss(self.model, self.pruner, run.terms, self._params), work,
            mesh=data_mesh())

    def first_params(self) -> dict[str, Any]:
        """Return the parameters before the first step."""
        params = {'pruner': self._first_weights}
        if self.run.finetune:
            params['decoder'] = change_of_decoder(self._first_decoder,
                                                  self._params['PaliGemma']['llm'])
        return params

    def visit(self, profile: RobotProfile, simulations: Simulations, batch: int) -> Round:
        """Let the pruned policy drive, as it is before the first step, and the expert label.

        Args:
            profile: Of the robot.
            simulations: Where; shards are written to `work`.
            batch: Chunks that are planned at once.
        """
        run = self.run
        params = {'PaliGemma': {**self.policy.params['PaliGemma'], 'llm': self._first_decoder}}
        policy = PrunedPolicy(
            self.model, self.model.unroll(jax.tree.map(jnp.asarray, params)),
            PolicyCodec.from_checkpoint(run.checkpoint, profile),
            pruner=dataclasses.replace(self.pruner, keep_ratio=run.dagger_keep),
            weights=jax.tree.map(jnp.asarray, self._first_weights), batch=batch)
        return rollout_round(FIRST_ROUND + run.seed, policy.plan, simulations, self.work,
                             config=run.dagger, tasks=run.dagger_tasks, orders=run.orders)

    def prepare(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Let the policy teach: arrays of data.encode_frames, with what it says of them."""
        kept = {name: arrays[name] for name in TOKEN_ARRAYS}
        return kept | teach(self.model, self._params, arrays)

    def train(self, arrays: Mapping[str, np.ndarray], *, deadline: float | None = None,
              report: Callable[[dict[str, float]], None] | None = None) -> TrainState:
        """Go on to the end or to the deadline; return the state there.

        Args:
            arrays: What `prepare` returns.
            deadline: `time.monotonic()` at which to stop.
            report: Called with the metrics of each dispatch.
        """
        data = self.loop.put(arrays)
        state = self.loop.restore(self.first_params())
        rows = len(arrays['tokens'])
        for until, progress in curriculum(self.run):
            data[PROGRESS] = jax.device_put(jnp.full((rows,), progress), self.loop.replicated)
            state = self.loop.fit(state, data, until=until, deadline=deadline, report=report,
                                  extra={'progress': progress})
        return state

    def summary(self, state: TrainState) -> dict[str, Any]:
        """Return the run in numbers."""
        records = self.loop.metrics.read()
        config = dataclasses.asdict(self.run)
        paths = {name: None if config[name] is None else str(config[name])
                 for name in ('checkpoint', 'start')}
        return {'run': self.run.name, 'steps': int(state.step), 'of': self.run.loop.steps,
                'config': config | paths, 'last': records[-1] if records else {}}

    def export(self, state: TrainState, folder: Path) -> None:
        """Write the pruner, and the decoder if it learned along; see accel.pruning_file."""
        learned, decoder = jax.device_get(state.ema), None
        if self.run.finetune:
            decoder = jax.device_get(changed_decoder(
                self._params['PaliGemma']['llm'], learned['decoder']))
        save_pruner(folder, self.run.scorer, learned['pruner'], self.summary(state), decoder)


def load_frames(config: PrunerRun, shards: Path, profile: Path, *,
                run: Run = map) -> dict[str, np.ndarray]:
    """Encode the first frames of the expert's shards; let the expert make some if there are none.

    Args:
        config: How many, and of which policy.
        shards: Folder.
        profile: YAML of the robot.
        run: Where: see workers.worker_pool.

    Raises:
        ValueError: there are too few.
    """
    paths = sorted(shards.glob('expert_*.npz'))
    if not paths:
        paths = collect_expert(range(FIRST_SEED, FIRST_SEED + config.episodes), shards,
                               tasks=config.tasks, run=run, config=EpisodeConfig(
                                   first_look_only=0.83, orders=config.orders))
    parts, count = [], 0
    for part in encode_shards(paths, config.checkpoint, profile, run=run):
        parts.append(part)
        count += len(part['tokens'])
        if count >= config.frames:
            break
    if count < config.loop.batch_size:
        raise ValueError(f'{shards}: {count} frames, expected at least a batch of '
                         f'{config.loop.batch_size}')
    return {name: array[:config.frames] for name, array in _joined(parts).items()}


def load_taught(training: PrunerTraining, shards: Path, profile: Path, *,
                run: Run = map) -> dict[str, np.ndarray]:
    """Return what the policy has to say of the frames, asked once for each policy and count.

    Args:
        training: Of the policy.
        shards: See load_frames, and so the next two.
        profile: YAML of the robot.
        run: Where to encode.
    """
    config = training.run
    return _kept(shards / f'taught_{config.checkpoint.name}_{config.frames}.npz',
                 lambda: training.prepare(load_frames(config, shards, profile, run=run)))


def load_visited(training: PrunerTraining, profile: Path, workers: int, *,
                 run: Run = map) -> dict[str, np.ndarray]:
    """Return the like of load_taught for the states that the pruned policy gets itself into.

    Args:
        training: With `run.dagger`; the frames are kept in its folder.
        profile: YAML of the robot.
        workers: Processes that simulate; 0 does it in this one.
        run: Where to encode.
    """
    config = training.run

    def make() -> dict[str, np.ndarray]:
        with Simulations(workers) as simulations:
            found = training.visit(RobotProfile.load(profile), simulations,
                                   batch=max(1, workers) * config.dagger.slots)
        rates = ', '.join(f'{task} {rate:.1%}' for task, rate in found.success.items())
        print(f'{found.states:,} states visited; success: {rates}', flush=True)
        return training.prepare(_joined(list(encode_shards(
            found.shards, config.checkpoint, profile, run=run,
            max_lost=config.dagger.max_lost))))

    return _kept(training.work / VISITED, make)


def load_all(training: PrunerTraining, shards: Path, profile: Path, workers: int, *,
             earlier: Sequence[Path] = (), run: Run = map) -> dict[str, np.ndarray]:
    """Return everything that a run learns from: load_taught, and load_visited if it asks for it.

    Args are theirs, and:
        earlier: Folders of the rounds before, whose states count as well.
    """
    taught = load_taught(training, shards, profile, run=run)
    if training.run.dagger is None:
        return taught
    return _joined([taught, *(_read(folder / VISITED) for folder in earlier),
                    load_visited(training, profile, workers, run=run)])


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _kept(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the arrays of a file, which is made whole where there is none."""
    if not path.exists():
        arrays = make()
        temporary = path.with_suffix('.tmp')
        with temporary.open('wb') as file:
            np.savez(file, **arrays)
        temporary.replace(path)
    return _read(path)


def _read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
