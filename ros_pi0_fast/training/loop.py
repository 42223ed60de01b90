"""One train loop for every loss: AdamW, warm-up cosine, EMA, resume, several steps a dispatch.

The loop knows no model. A loss is passed in as a pure function of parameters and a batch; the
data are arrays that stay on the device, and each step gathers its rows inside the graph, so that
the input pipeline costs nothing. Data parallelism is one `jax.sharding.Mesh` with one axis: state
and data are replicated, the batch is split, and XLA sums the gradients.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ros_pi0_fast.training.metrics import MetricsFile

Batch = Mapping[str, Any]
LossFunction = Callable[[Any, Batch, jax.Array], tuple[jax.Array, Mapping[str, jax.Array]]]
"""(params, batch, rng) -> (scalar loss, scalar metrics)."""

NOT_DECAYED = ('bias', 'scale', 'pos_embedding')


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How to descend. Steps are optimizer steps, fractions are of `steps`."""

    steps: int
    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    final_learning_rate: float = 0.02
    """Learning rate at the last step, as a fraction of `learning_rate`."""
    weight_decay: float = 1e-4
    b1: float = 0.9
    b2: float = 0.95
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    steps_per_dispatch: int = 10
    checkpoint_every: int = 1000
    seed: int = 0


@flax.struct.dataclass
class TrainState:
    """Everything that a resumed run needs."""

    step: jax.Array
    """int32 []: optimizer steps done."""
    params: Any
    ema: Any
    """Exponential moving average of `params`: what is evaluated and shipped."""
    optimizer: Any


def learning_rate_at(config: LoopConfig, step: jax.Array, total: jax.Array) -> jax.Array:
    """Return the learning rate of a step: linear warm-up, then cosine to the final rate.

    `total` is an argument of the compiled step, not a constant of it, so that a run whose length
    follows from a time budget need not compile twice.
    """
    step = step.astype(jnp.float32)
    warmup = jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
    span = jnp.maximum(total.astype(jnp.float32) - config.warmup_steps, 1.0)
    progress = jnp.clip((step - config.warmup_steps) / span, 0.0, 1.0)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * progress))
    floor = config.final_learning_rate
    return config.learning_rate * warmup * (floor + (1 - floor) * cosine)


def _decayed(params: Any) -> Any:
    """Mark the leaves that weight decay applies to: matrices, not norms, biases or positions."""
    def is_matrix(path: tuple, _: Any) -> bool:
        return getattr(path[-1], 'key', '') not in NOT_DECAYED

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def make_optimizer(config: LoopConfig) -> optax.GradientTransformation:
    """Return AdamW of rate 1 behind gradient clipping; the step multiplies by the schedule."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(1.0, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay,
                    mask=_decayed))


def cast_floats(tree: Any, dtype: str) -> Any:
    """Cast the floating leaves of a tree."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def _norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Return a mesh whose one axis, `data`, runs over all devices."""
    return Mesh(np.asarray(devices if devices is not None else jax.devices()), ('data',))


class TrainLoop:
    """Trains, saves, and resumes one run in one folder.

    Args:
        config: how to descend.
        loss: see LossFunction.
        folder: receives `state/` (Orbax) and `metrics.jsonl`.
        mesh: the devices to split each batch over; None takes the first device only.

    Raises:
        ValueError: if the batch does not split evenly over the devices.
    """

    def __init__(self, config: LoopConfig, loss: LossFunction, folder: Path, *,
                 mesh: Mesh | None = None):
        self.config = config
        self.mesh = mesh if mesh is not None else data_mesh(jax.devices()[:1])
        if config.batch_size % self.mesh.size:
            raise ValueError(f'batch_size {config.batch_size} does not split over '
                             f'{self.mesh.size} devices; choose a multiple')
        self._loss = loss
        self._optimizer = make_optimizer(config)
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self._split = NamedSharding(self.mesh, PartitionSpec('data'))
        self._split_steps = NamedSharding(self.mesh, PartitionSpec(None, 'data'))
        self.metrics = MetricsFile(Path(folder) / 'metrics.jsonl')
        self._checkpoints = ocp.CheckpointManager(
            (Path(folder) / 'state').resolve(),
            options=ocp.CheckpointManagerOptions(max_to_keep=2, create=True))
        self._steps = jax.jit(self._many_steps, donate_argnums=0)

    # --- state ---------------------------------------------------------------------------

    def new_state(self, params: Any) -> TrainState:
        """Return the state before the first step, with float32 copies of `params`."""
        params = cast_floats(jax.tree.map(jnp.asarray, params), 'float32')
        state = TrainState(step=jnp.zeros((), jnp.int32), params=params,
                           ema=jax.tree.map(jnp.copy, params),
                           optimizer=self._optimizer.init(params))
        return jax.device_put(state, self.replicated)

    def restore(self, params: Any) -> TrainState:
        """Return the newest saved state, or a new one from `params` if none was saved.

        `params` gives the structure and shapes. Metrics beyond the restored step are dropped.
        """
        state = self.new_state(params)
        latest = self._checkpoints.latest_step()
        if latest is not None:
            target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=x.sharding), state)
            state = self._checkpoints.restore(latest, args=ocp.args.StandardRestore(target))
        self.metrics.truncate(int(state.step))
        return state

    def save(self, state: TrainState) -> None:
        """Write the state, atomically, and wait until it is on disk."""
        step = int(state.step)
        if self._checkpoints.latest_step() != step:
            self._checkpoints.save(step, args=ocp.args.StandardSave(state))
            self._checkpoints.wait_until_finished()

    def close(self) -> None:
        """Release the checkpoint manager's threads."""
        self._checkpoints.close()

    # --- steps ---------------------------------------------------------------------------

    def put(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Move a dataset (a tree of arrays with one leading axis) to every device."""
        return jax.device_put(dict(data), self.replicated)

    def fit(self, state: TrainState, data: Mapping[str, Any], *, until: int | None = None,
            total: int | None = None, rows: int | None = None, deadline: float | None = None,
            extra: Mapping[str, float] = MappingProxyType({}),
            report: Callable[[dict[str, float]], None] | None = None) -> TrainState:
        """Train to step `until` (or the deadline), saving on the way and at the end.

        Args:
            state: what to start from; its buffers are given up.
            data: what `put` returned.
            until: last step of this call; `total` by default.
            total: last step of the schedule; `config.steps` by default.
            rows: of the data to draw from, the first ones; all by default.
            deadline: `time.monotonic()` at which to stop cleanly.
            extra: added to each record of the metrics.
            report: called with the metrics of each dispatch.

        Returns:
            The state at the last step done; `int(state.step) < until` when the deadline came.
        """
        total = self.config.steps if total is None else total
        until = total if until is None else until
        rows = len(jax.tree.leaves(data)[0]) if rows is None else rows
        step = int(state.step)
        while step < until and (deadline is None or time.monotonic() < deadline):
            count = min(self.config.steps_per_dispatch, until - step)
            began = time.monotonic()
            index = jax.device_put(self._rows(step, count, rows), self._split_steps)
            state, values = self._steps(state, data, index, jnp.asarray(total, jnp.int32))
            values = {key: float(np.mean(value)) for key, value in jax.device_get(values).items()}
            before, step = step, step + count
            seconds = time.monotonic() - began
            record = {'step': step, **values, **extra,
                      'examples_per_second': count * self.config.batch_size / seconds}
            self.metrics.append(record)
            if report is not None:
                report(record)
            every = self.config.checkpoint_every
            if before // every != step // every:
                self.save(state)
        self.save(state)
        return state

    def _rows(self, step: int, count: int, rows: int) -> np.ndarray:
        """Draw the rows of the next steps. It depends on the step alone, so a resume repeats it.

        Returns:
            int32 [count, batch_size].
        """
        draws = [np.random.default_rng((self.config.seed, step + i)).integers(
            rows, size=self.config.batch_size) for i in range(count)]
        return np.stack(draws).astype(np.int32)

    def _many_steps(self, state: TrainState, data: Batch, index: jax.Array,
                    total: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        """Run index.shape[0] steps in one dispatch. index: int32 [steps, batch]."""
        return jax.lax.scan(functools.partial(self._one_step, data, total), state, index)

    def _one_step(self, data: Batch, total: jax.Array, state: TrainState,
                  index: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        batch = jax.tree.map(
            lambda x: jax.lax.with_sharding_constraint(x[index], self._split), data)
        rng = jax.random.fold_in(jax.random.key(self.config.seed), state.step)

        def mean_loss(params: Any) -> tuple[jax.Array, Mapping[str, jax.Array]]:
            return self._loss(params, batch, rng)

        (loss, metrics), gradient = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        updates, optimizer = self._optimizer.update(gradient, state.optimizer, state.params)
        rate = learning_rate_at(self.config, state.step, total)
        params = jax.tree.map(lambda p, u: p + rate * u, state.params, updates)
        # A short average while the weights still move fast: min(decay, (1 + t) / (10 + t)).
        decay = jnp.minimum(self.config.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, params)
        values = {'loss': loss, 'gradient_norm': _norm(gradient),
                  'learning_rate': rate, **metrics}
        return TrainState(step=state.step + 1, params=params, ema=ema,
                          optimizer=optimizer), values
