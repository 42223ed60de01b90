"""The stages of a policy's training, each of which a killed run goes on from."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.evaluation.batch_policy import BatchPolicy
from ros_pi0_fast.evaluation.closed_loop import Simulations
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.training.assets import fit_assets, keep_assets, load_start
from ros_pi0_fast.training.collect import collect_expert
from ros_pi0_fast.training.config import PolicyRun
from ros_pi0_fast.training.dagger import rollout_round
from ros_pi0_fast.training.data import Frames, encode_shards
from ros_pi0_fast.training.dataset import DeviceDataset
from ros_pi0_fast.training.export import export_checkpoint
from ros_pi0_fast.training.loop import TrainLoop, TrainState, data_mesh
from ros_pi0_fast.training.objective import next_token_loss
from ros_pi0_fast.training.pointing import POINTER, init_pointer, without_pointer
from ros_pi0_fast.training.workers import worker_pool

FIT_FRAMES = 60_000
"""Frames that statistics and tokenizers are fitted on, at most."""
CALIBRATION_DISPATCHES = 8
REPORT_SECONDS = 10.0


@dataclasses.dataclass
class Progress:
    """What a run has done so far, kept in a file beside its state."""

    examples_per_second: float = 0.0
    """Measured once, where the number of steps follows from a time; else 0."""
    rounds: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Finished DAgger rounds: their shards, states, success and seconds."""
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    """Wall time by stage, over all calls."""

    @classmethod
    def load(cls, path: Path) -> Progress:
        """Read it, or start anew where there is none."""
        return cls(**json.loads(path.read_text('utf-8'))) if path.exists() else cls()

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        temporary = path.with_suffix('.tmp')
        temporary.write_text(json.dumps(dataclasses.asdict(self), indent=2), 'utf-8')
        temporary.replace(path)


class PolicyTraining:
    """One run.

    Args:
        run: what to train.
        work: folder of its state.
        profile: YAML of the robot.
        workers: processes that simulate and encode; 0 does both in this one.
        deadline: `time.monotonic()` at which to stop cleanly; None for no limit.
    """

    def __init__(self, run: PolicyRun, work: Path, *, profile: Path, workers: int,
                 deadline: float | None = None):
        self.run = run
        self.work = work
        self._workers = workers
        self._deadline = deadline
        self._profile = profile
        self._assets = work / 'assets'
        self._progress_file = work / 'progress.json'
        work.mkdir(parents=True, exist_ok=True)
        self.progress = Progress.load(self._progress_file)
        self._start = None
        if run.start is not None:
            self._start = load_start(run.start, RobotProfile.load(profile))
            run = self.run = dataclasses.replace(run, model=dataclasses.replace(
                self._start.config, dtype=run.model.dtype))
        model = Pi0Fast(run.model, remat=run.remat)
        self._model = model
        self.loop = TrainLoop(run.loop, next_token_loss(
            model, run.augment, unroll=run.unroll, pointing=run.pointing,
            scheme=run.quantize), work, mesh=data_mesh())
        self._dataset = DeviceDataset(run.capacity, self.loop.replicated)
        self._said = 0.0
        self._run = map

    def train(self) -> TrainState:
        """Go on to the end or to the deadline; return the state there."""
        with worker_pool(self._workers) as run, Simulations(self._workers) as simulations:
            self._run = run
            self._stage('expert data', self._collect)
            self.codec = self._stage('assets', self._fit_assets)
            self._stage('encoding', self._add, self._shards())
            state = self.loop.restore(self._first_params())
            state = self._stage('training', self._calibrate, state)
            policy = BatchPolicy(self._model, None, self.codec,
                                 batch=max(1, self._workers) * self.run.dagger.slots)
            for index, boundary in enumerate(self._boundaries(), 1):
                state = self._stage('training', self._fit, state, boundary)
                if index > len(self.progress.rounds) and not self._late():
                    policy.params = self._model.unroll(without_pointer(state.ema))
                    self._stage('dagger', self._round, index, policy, simulations)
            return self._stage('training', self._fit, state, self.total_steps)

    def finished(self, state: TrainState) -> bool:
        """Tell whether nothing is left to do."""
        return (int(state.step) >= self.total_steps
                and len(self.progress.rounds) >= self.run.dagger.rounds)

    def export(self, state: TrainState, out: Path) -> None:
        """Write checkpoint, curve and summary."""
        title = (f'{self.run.name}: {self._dataset.rows:,} frames, {int(state.step):,} steps of '
                 f'{self.run.loop.batch_size}')
        export_checkpoint(out, without_pointer(state.ema), self.codec, title=title,
                          records=self.loop.metrics.read(), summary=self.summary(state),
                          quantize=None if self.run.quantize is None else (
                              self._model, self.run.quantize))

    def summary(self, state: TrainState) -> dict[str, Any]:
        """Return the run in numbers."""
        return {
            'run': self.run.name, 'finished': self.finished(state), 'steps': int(state.step),
            'total_steps': self.total_steps, 'batch_size': self.run.loop.batch_size,
            'frames': self._dataset.rows,
            'parameters': sum(leaf.size for leaf in jax.tree.leaves(without_pointer(state.ema))),
            'rounds': self.progress.rounds,
            'wall_seconds': {k: round(v, 1) for k, v in self.progress.seconds.items()},
            'wall_minutes': round(sum(self.progress.seconds.values()) / 60, 2),
            'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
            'workers': self._workers, 'config': dataclasses.asdict(self.run)}

    def _first_params(self) -> Any:
        """Return the parameters before the first step."""
        params = (self._model.init(jax.random.key(self.run.seed)) if self._start is None
                  else self._start.params)
        return {**params, POINTER: init_pointer(self._model)} if self.run.pointing else params

    # --- stages --------------------------------------------------------------------------

    def _late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _stage(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run a stage, add up its wall time, and save the progress."""
        began = time.monotonic()
        result = work(*arguments)
        seconds = time.monotonic() - began
        self.progress.seconds[name] = self.progress.seconds.get(name, 0.0) + seconds
        self.progress.save(self._progress_file)
        if seconds > 1:
            print(f'{name}: {seconds:.1f} s', flush=True)
        return result

    def _collect(self) -> None:
        seeds = range(self.run.expert_episodes)
        with tqdm(total=len(seeds), unit='episode', desc='expert', mininterval=5) as bar:
            collect_expert(seeds, self.work / 'shards', run=self._run,
                           config=self.run.expert, tasks=self.run.tasks, progress=bar.update)

    def _fit_assets(self) -> PolicyCodec:
        profile = RobotProfile.load(self._profile)
        if (self._assets / 'policy.json').exists():
            return PolicyCodec.from_checkpoint(self._assets, profile)
        parts, count = [], 0
        for path in self._shards():
            parts.append(Frames.load(path))
            count += len(parts[-1])
            if count >= FIT_FRAMES:
                break
        frames = Frames.concatenate(parts)
        if self._start is not None:
            return keep_assets(self._assets, profile, frames, self.run.start)
        return fit_assets(self._assets, profile, frames,
                          vocab_size=self.run.model.gemma.vocab_size,
                          fast_vocab_size=self.run.fast_vocab_size,
                          fast_scale=self.run.fast_scale, fast_margin=self.run.fast_margin)

    def _shards(self) -> list[Path]:
        """Shards of the expert, then those of the finished rounds."""
        folder = self.work / 'shards'
        return sorted(folder.glob('expert_*.npz')) + [
            folder / name for done in self.progress.rounds for name in done['shards']]

    def _add(self, shards: Sequence[Path]) -> None:
        added = self._dataset.extend(encode_shards(
            shards, self._assets, self._profile, run=self._run,
            max_lost=self.run.dagger.max_lost))
        print(f'{added:,} frames added, now {self._dataset.rows:,}', flush=True)

    def _calibrate(self, state: TrainState) -> TrainState:
        """Find out how fast steps are, where their number is to follow from that."""
        if self.progress.examples_per_second or not self.run.train_minutes:
            return state
        # The first dispatch compiles; the fastest of the others is not disturbed by anything.
        rates: list[float] = []
        config = self.run.loop
        state = self.loop.fit(
            state, self._dataset.arrays, rows=self._dataset.rows, total=config.steps,
            until=CALIBRATION_DISPATCHES * config.steps_per_dispatch, extra={'round': 0},
            report=lambda record: rates.append(record['examples_per_second']))
        self.progress.examples_per_second = max(rates)
        print(f'{max(rates):,.0f} examples/s: {self.total_steps:,} steps in '
              f'{self.run.train_minutes:g} minutes', flush=True)
        return state

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        rate = self.progress.examples_per_second
        if not self.run.train_minutes:
            return self._whole_dispatches(self.run.loop.steps)
        return self._whole_dispatches(
            60 * self.run.train_minutes * rate / self.run.loop.batch_size)

    def _whole_dispatches(self, steps: float) -> int:
        """Round to whole dispatches, since a dispatch of another length compiles anew."""
        count = self.run.loop.steps_per_dispatch
        return max(1, round(steps / count)) * count

    def _boundaries(self) -> list[int]:
        """Steps after which the rounds of DAgger come."""
        config = self.run.dagger
        fractions = np.linspace(config.first, config.last, config.rounds)
        return [self._whole_dispatches(f * self.total_steps) for f in fractions]

    def _fit(self, state: TrainState, until: int) -> TrainState:
        return self.loop.fit(
            state, self._dataset.arrays, until=until, total=self.total_steps,
            rows=self._dataset.rows, deadline=self._deadline, report=self._say,
            extra={'round': len(self.progress.rounds)})

    def _say(self, record: dict[str, float]) -> None:
        if time.monotonic() - self._said > REPORT_SECONDS:
            self._said = time.monotonic()
            print(f'step {record["step"]:,}: loss {record["loss"]:.4f}, '
                  f'{record["examples_per_second"]:,.0f} examples/s', flush=True)

    def _round(self, index: int, policy: BatchPolicy, simulations: Simulations) -> None:
        began = time.monotonic()
        found = rollout_round(index, policy.plan, simulations, self.work / 'shards',
                              config=self.run.dagger, tasks=self.run.tasks,
                              orders=self.run.expert.orders)
        self._add(found.shards)
        self.progress.rounds.append({
            'shards': [path.name for path in found.shards], 'states': found.states,
            'success': found.success, 'seconds': round(time.monotonic() - began, 1)})
        step = self.loop.metrics.read()[-1]['step']
        self.loop.metrics.append({'step': step, 'round': index, **{
            f'success/{task}': rate for task, rate in found.success.items()}})
        rates = ', '.join(f'{task} {100 * rate:.1f} %' for task, rate in found.success.items())
        print(f'DAgger round {index}: {rates} of {self.run.dagger.episodes} episodes', flush=True)
