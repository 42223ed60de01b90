"""What gradient checkpointing saves and what it costs: scratch memory and time of a training step.

    python -m ros_pi0_fast.training.memory --preset tabletop --batch 16
    python -m ros_pi0_fast.training.memory --preset full --batch 1 --compile-only

Memory is what XLA plans for the compiled gradient of the loss, beside parameters and gradients;
nothing is allocated to find it out. Times are medians of interleaved steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.engine.parameters import MIB
from ros_pi0_fast.model.config import Pi0FastConfig, get_config
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Batch, Pi0Fast

POLICIES = (None, 'dots_saveable', 'dots_with_no_batch_dims_saveable', 'nothing_saveable')
"""Names in jax.checkpoint_policies; None keeps everything."""


@dataclass(kw_only=True)
class Row:
    """What was found for one policy."""

    policy: str | None
    scratch_mib: float
    seconds: list[float] = field(default_factory=list)


def batch_shapes(config: Pi0FastConfig, batch: int) -> Batch:
    """Return the shapes of a training batch."""
    length, size = config.max_token_len, config.siglip.image_size
    arrays = {name: jax.ShapeDtypeStruct((batch, length), dtype) for name, dtype in (
        ('tokens', jnp.int32), ('token_mask', bool), ('ar_mask', jnp.int32), ('loss_mask', bool))}
    picture = jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8)
    return {**arrays, 'images': dict.fromkeys(config.camera_keys, picture)}


def measure(config: Pi0FastConfig, batch: int, *, unroll: bool, steps: int) -> list[Row]:
    """Compile the gradient under each policy, and time steps of it.

    Args:
        config: Of the network.
        batch: Examples.
        unroll: Compile layers one by one; False scans over them.
        steps: Timed steps a policy; 0 only compiles.
    """
    shapes = batch_shapes(config, batch)
    params = jax.eval_shape(Pi0Fast(config).init, jax.random.key(0))
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, config.dtype), params)
    compiled = {policy: _gradient(Pi0Fast(config, remat=policy), unroll).lower(
        params, shapes).compile() for policy in POLICIES}
    rows = [Row(policy=policy, scratch_mib=each.memory_analysis().temp_size_in_bytes / MIB)
            for policy, each in compiled.items()]
    if steps:
        values = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        weights = jax.jit(Pi0Fast(config).init)(jax.random.key(0))
        weights = jax.tree.map(lambda x: x.astype(config.dtype), weights)
        for _ in range(steps + 1):
            for row in rows:
                began = time.perf_counter()
                jax.block_until_ready(compiled[row.policy](weights, values))
                row.seconds.append(time.perf_counter() - began)
    return rows


def _gradient(model: Pi0Fast, unroll: bool) -> jax.stages.Wrapped:
    def loss(params: Params, batch: Batch) -> jax.Array:
        return jnp.mean(model.loss(model.unroll(params) if unroll else params, batch))

    return jax.jit(jax.grad(loss))


def table(rows: Sequence[Row]) -> str:
    """Return the table for people."""
    lines = [f'{"kept for the backward pass":<36}{"scratch MiB":>12}{"step s":>9}']
    for row in rows:
        seconds = f'{np.median(row.seconds[1:]):9.3f}' if row.seconds else ''
        lines.append(f'{row.policy or "everything":<36}{row.scratch_mib:12.0f}{seconds}')
    return '\n'.join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--preset', default='tabletop')
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--steps', type=int, default=3, help='timed steps a policy')
    parser.add_argument('--compile-only', action='store_true', help='do not allocate anything')
    parser.add_argument('--scan', action='store_true',
                        help='scan over layers, which compiles faster')
    options = parser.parse_args(arguments)
    try:
        config = get_config(options.preset)
    except ValueError as error:
        parser.error(str(error))
    print(table(measure(config, options.batch, unroll=not options.scan,
                        steps=0 if options.compile_only else options.steps)))


if __name__ == '__main__':
    main()
