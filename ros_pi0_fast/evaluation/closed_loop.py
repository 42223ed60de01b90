"""A policy and the simulated robot in a loop, many episodes at once, in worker processes.

Time is counted in control steps. The policy plans at steps 0, E, 2E, … (E = `execute`). With a
latency of N steps a chunk planned at step t is executed from t + N on, from its row N, since its
rows are one control step apart from the observation on; until then the chunk before goes on. At
the start the arm holds still. Workers do not import jax: observations go to the process that owns
the accelerator, which plans for all of them in one batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from ros_pi0_fast.sim.episodes import LabelledState, label_state
from ros_pi0_fast.sim.expert import HORIZON, expert_chunk
from ros_pi0_fast.sim.tabletop import Tabletop
from ros_pi0_fast.types import ActionChunk, Observation

Plan = Callable[[Sequence[Observation]], Sequence[ActionChunk]]
Planner = Generator[list[Observation], Sequence[ActionChunk], None]


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One scene, and how the policy is run in it."""

    task: str
    seed: int
    latency: int = 0
    """Control steps from an observation to the first row that is executed of its chunk."""
    swap: bool = False
    """Ask for another cube of the scene than the seed does."""


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """How one episode went."""

    episode: Episode
    success: bool
    touched_target_first: bool
    steps: int
    plans: int = 0
    malformed: int = 0
    """Chunks that were not valid."""
    error: np.ndarray = field(default_factory=lambda: np.zeros((0, 5)))
    """float64 [plans that were valid, 5]: mean over the executed rows of |chunk − expert's|."""


Save = Callable[[Path, Sequence[LabelledState]], None]


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """What is the same for all episodes of a run."""

    execute: int = 5
    """Control steps from one plan to the next."""
    slots: int = 4
    """Episodes that a worker runs at once."""
    label_every: int = 0
    """Control steps between two visited states that the expert labels; 0 for none."""
    orders: int = 4
    """For how many orders each of them is labelled."""
    linger_steps: int = 0
    """Control steps that go on after success, to label what staying there means."""

    def __post_init__(self) -> None:
        if not 1 <= self.execute <= HORIZON:
            raise ValueError(f'execute is {self.execute}, expected 1 to {HORIZON} (the horizon)')


class Rollout:
    """One episode on one simulation.

    Args:
        table: is reset to the episode's scene.
        episode: what to do.
        settings: of the run.
    """

    def __init__(self, table: Tabletop, episode: Episode, settings: LoopSettings):
        self.episode = episode
        self.states: list[LabelledState] = []
        self.table = table
        self._settings = settings
        table.reset(episode.seed, episode.task)
        if episode.swap:
            _ask_for_another(table)
        # The commands of the coming steps as far as they are known: hold still.
        self._commands = np.tile(np.append(table.joints, 0.0), (HORIZON, 1))
        self._plans = self._malformed = 0
        self._errors: list[np.ndarray] = []
        self._expert: np.ndarray | None = None
        self._success = False
        self._linger = settings.linger_steps

    def observe(self) -> Observation:
        """Return what the next chunk is to be planned from."""
        self._expert = expert_chunk(self.table)
        return self.table.observe()

    def act(self, chunk: ActionChunk, observation: Observation) -> None:
        """Execute until the next plan is due or the episode is over.

        A chunk that is not valid is not executed: the one before goes on, then its last row.

        Args:
            chunk: planned from the observation.
            observation: what `observe` returned last.
        """
        latency, execute = self.episode.latency, self._settings.execute
        self._plans += 1
        planned = self._commands
        if chunk.valid:
            planned = chunk.actions
            rows = slice(latency, latency + execute)
            self._errors.append(np.abs(planned[rows] - self._expert[rows]).mean(axis=0))
        else:
            self._malformed += 1
        merged = np.concatenate([self._commands[:latency], planned[latency:]])
        for index, action in enumerate(merged[:execute]):
            self._label(index, observation)
            self.table.step(action)
            self._success |= self.table.success()
            if self.table.over():
                self._linger -= 1
                if self.over:
                    return
        left = merged[execute:]
        # Where nothing is left the last command is held.
        self._commands = np.concatenate([left, np.tile(merged[-1], (HORIZON - len(left), 1))])

    def _label(self, index: int, observation: Observation) -> None:
        every = self._settings.label_every
        if every and index % every == 0:
            if index:
                observation = self.table.observe()
            self.states.append(label_state(self.table, observation, self.episode.seed,
                                           self._settings.orders))

    @property
    def over(self) -> bool:
        """Tell whether the episode has ended."""
        return self.table.over() and (self._linger <= 0 or not self._success)

    @property
    def result(self) -> EpisodeResult:
        """How it went."""
        table = self.table
        return EpisodeResult(
            episode=self.episode, success=bool(self._success),
            touched_target_first=table.first_touched == table.layout.target, steps=table.steps,
            plans=self._plans, malformed=self._malformed,
            error=np.asarray(self._errors).reshape(-1, 5))


def _ask_for_another(table: Tabletop) -> None:
    """Name the next cube of the scene instead of the one that the seed named."""
    layout = table.layout
    table.layout = replace(layout, target=(layout.target + 1) % len(layout.colours))
    table.instruction = table.layout.instruction


def run_episodes(episodes: Sequence[Episode], settings: LoopSettings, tables: list[Tabletop],
                 results: list[EpisodeResult], states: list[LabelledState]) -> Planner:
    """Run episodes, as many at once as there are tables.

    Yields:
        Observations to plan from; expects their chunks to be sent in. Results and labelled
        states are appended to the lists given.
    """
    waiting: Iterator[Episode] = iter(episodes)
    running = [Rollout(table, episode, settings)
               for table, episode in zip(tables, waiting, strict=False)]
    while running:
        observations = [rollout.observe() for rollout in running]
        chunks = yield observations
        going_on = []
        for rollout, chunk, observation in zip(running, chunks, observations, strict=True):
            rollout.act(chunk, observation)
            if rollout.over:
                results.append(rollout.result)
                states.extend(rollout.states)
                going_on += [Rollout(rollout.table, following, settings)
                             for following in itertools.islice(waiting, 1)]
            else:
                going_on.append(rollout)
        running = going_on


@dataclass(frozen=True, kw_only=True)
class _Job:
    episodes: Sequence[Episode]
    settings: LoopSettings
    shard: Path | None
    save: Save | None


def _serve(connection: Connection) -> None:
    """Work off jobs in a worker process until None comes, or the parent is gone."""
    tables: list[Tabletop] = []
    try:
        while (job := connection.recv()) is not None:
            tables += [Tabletop() for _ in range(job.settings.slots - len(tables))]
            _work_off(job, tables[:job.settings.slots], connection)
    except EOFError:
        return


def _work_off(job: _Job, tables: list[Tabletop], connection: Connection) -> None:
    """Run a job's episodes: send observations, receive chunks; send what came of it at last."""
    results: list[EpisodeResult] = []
    states: list[LabelledState] = []
    planner = run_episodes(job.episodes, job.settings, tables, results, states)
    observations = next(planner, None)
    while observations is not None:
        connection.send(observations)
        observations = _next(planner, connection.recv())
    if states and job.save is not None:
        job.save(job.shard, states)
    connection.send((results, len(states)))


def _next(planner: Planner, chunks: Sequence[ActionChunk]) -> list[Observation] | None:
    """Send chunks into a planner; return what it asks next, or None when it is done."""
    try:
        return planner.send(chunks)
    except StopIteration:
        return None


class Simulations:
    """Worker processes that run episodes; a context manager.

    Args:
        workers: processes; 0 runs everything in this one.
    """

    def __init__(self, workers: int):
        self._workers: list[tuple[Any, Connection]] = []
        self._tables: list[Tabletop] = []
        # Spawned, not forked: a forked child would inherit JAX's threads in an unknown state.
        context = get_context('spawn')
        for _ in range(workers):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there,), daemon=True)
            process.start()
            there.close()
            self._workers.append((process, here))

    def __enter__(self) -> Simulations:
        return self

    def __exit__(self, *_: object) -> None:
        for process, connection in self._workers:
            if process.is_alive():
                connection.send(None)
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
        self._workers.clear()

    def run(self, episodes: Sequence[Episode], settings: LoopSettings, plan: Plan,
            *, shards: Path | None = None, save: Save | None = None,
            ) -> tuple[list[EpisodeResult], int]:
        """Run episodes.

        Args:
            episodes: what to run, all different, in any order.
            settings: of the run.
            plan: the policy.
            shards: folder and start of the names of the shards of labelled states, one a worker.
            save: writes a shard; must be importable by a worker.

        Returns:
            The results in the order of `episodes`, and how many labelled states were saved.

        Raises:
            RuntimeError: if a worker process died.
        """
        if not self._workers:
            results, count = self._run_here(episodes, settings, plan, shards, save)
        else:
            results, count = self._run_in_workers(episodes, settings, plan, shards, save)
        by_episode = {result.episode: result for result in results}
        return [by_episode[episode] for episode in episodes], count

    def _run_here(self, episodes: Sequence[Episode], settings: LoopSettings, plan: Plan,
                  shards: Path | None, save: Save | None) -> tuple[list[EpisodeResult], int]:
        self._tables += [Tabletop() for _ in range(settings.slots - len(self._tables))]
        results: list[EpisodeResult] = []
        states: list[LabelledState] = []
        planner = run_episodes(episodes, settings, self._tables[:settings.slots], results, states)
        observations = next(planner, None)
        while observations is not None:
            observations = _next(planner, plan(observations))
        if states and save is not None:
            save(_shard(shards, 0), states)
        return results, len(states)

    def _run_in_workers(self, episodes: Sequence[Episode], settings: LoopSettings,
                        plan: Plan, shards: Path | None, save: Save | None,
                        ) -> tuple[list[EpisodeResult], int]:
        active = []
        for index, (_, connection) in enumerate(self._workers):
            # Dealt round, so that long and short tasks spread over the workers.
            part = episodes[index::len(self._workers)]
            if part:
                connection.send(_Job(episodes=part, settings=settings, save=save,
                                     shard=None if shards is None else _shard(shards, index)))
                active.append(connection)
        results: list[EpisodeResult] = []
        count = 0
        while active:
            asking, observations = [], []
            for connection in active:
                message = self._receive(connection)
                if isinstance(message, tuple):
                    results += message[0]
                    count += message[1]
                else:
                    asking.append((connection, len(message)))
                    observations += message
            chunks = iter(plan(observations) if observations else ())
            for connection, length in asking:
                connection.send(list(itertools.islice(chunks, length)))
            active = [connection for connection, _ in asking]
        return results, count

    @staticmethod
    def _receive(connection: Connection) -> Any:
        try:
            return connection.recv()
        except EOFError as error:
            raise RuntimeError('a simulation worker died; its traceback is above') from error


def _shard(start: Path, worker: int) -> Path:
    return start.with_name(f'{start.name}_{worker:03d}.npz')
