"""Which cut of a product of few tokens is fastest on this GPU, for the sizes of Gemma 2B.

    python -m ros_pi0_fast.evaluation.product_cuts --kinds int8 --products gated linear

Times are those of the kernels in a trace: to launch one takes longer than some of them run. Before
each the GPU's cache is filled with something else. What `accel.kernels.few_product.Tile` chooses
is marked. A split product is not whole before its sums are added up, about 1 µs more.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.kernels.few_product import Halves, Tile, few_product
from ros_pi0_fast.accel.kernels.rows import Rows
from ros_pi0_fast.accel.quantized import quantize_int4, quantize_int8
from ros_pi0_fast.evaluation.trace_report import kernels_of, trace_file

PRODUCTS = {'qkv': ((2048, 2048), (2048, 256), (2048, 256)), 'out': ((2048, 2048),),
            'gated': ((2048, 16_384), (2048, 16_384)), 'linear': ((16_384, 2048),)}
"""Inputs and outputs of the matrices of each."""
KINDS = {'bfloat16': lambda w: w.astype(jnp.bfloat16), 'int8': quantize_int8,
         'int4': quantize_int4}
OUTPUTS, INPUTS = (16, 32, 64, 128), (128, 256, 512)
SPLITS, STAGES = (1, 2, 4, 8, 16), (1, 2, 3, 4)
PROGRAMS = (96, 4096)
"""Fewer or more programs are not worth trying."""
RUNS = 5
CACHE = 400e6
"""Bytes that are read and written between products."""


def candidates(parts: Sequence[Rows], gated: bool) -> Iterator[Tile]:
    """Yield tiles that fit the matrices."""
    outputs = sum(w.outputs for w in parts) // (2 if gated else 1)
    for rows, inputs, splits, stages in itertools.product(
            OUTPUTS, INPUTS, (1,) if gated else SPLITS, STAGES):
        share, programs = parts[0].columns // splits, outputs // rows * splits
        if (PROGRAMS[0] <= programs <= PROGRAMS[1] and share % inputs == 0
                and share >= 2 * inputs and inputs % max(1, parts[0].block) == 0):
            yield Tile(outputs=rows, inputs=inputs, splits=splits, stages=stages)


def measure(parts: Sequence[Rows], tokens: int, gated: bool,
            tiles: Sequence[Tile | None]) -> dict[Tile | None, float]:
    """Return the median microseconds of a product's kernel by how it is cut; None: as chosen."""
    x = jax.random.normal(jax.random.key(0), (tokens, parts[0].columns)).astype(jnp.bfloat16)
    x = x if parts[0].bits == 16 else Halves.of(x)
    other = jnp.zeros((int(CACHE / 8),), jnp.float32)
    compiled = {}
    for index, tile in enumerate(tiles):
        def run(parts: Sequence[Rows], x: jax.Array | Halves, other: jax.Array,
                tile: Tile | None = tile) -> tuple[jax.Array, jax.Array]:
            return few_product(parts, x, gate=gated, tile=tile), other + 1

        run.__name__ = f'cut_{index}'
        try:
            executable = jax.jit(run).lower(parts, x, other).compile()
            jax.block_until_ready(executable(parts, x, other))
            compiled[run.__name__] = tile, executable
        except RuntimeError as error:  # More registers or shared memory than there are.
            print(f'  {tile}: {str(error).splitlines()[0]}', flush=True)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _, executable in compiled.values():
                jax.block_until_ready([executable(parts, x, other) for _ in range(RUNS)])
        kernels = kernels_of(trace_file(Path(folder)))
    return {tile: float(np.median([
        kernel.end_us - kernel.start_us for kernel in kernels
        if kernel.function == name and 'product' in kernel.name]))
        for name, (tile, _) in compiled.items()}


def sweep(kind: str, name: str, counts: Sequence[int]) -> None:
    """Print the best cuts of a product, by numbers of tokens."""
    gated = name == 'gated'
    parts = jax.jit(lambda key: tuple(Rows.of(KINDS[kind](jax.random.normal(key, shape)))
                                      for shape in PRODUCTS[name]))(jax.random.key(0))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(parts))
    for tokens in counts:
        found = measure(parts, tokens, gated, [None, *candidates(parts, gated)])
        best = sorted((tile for tile in found if tile), key=found.__getitem__)[:5]
        print(f'{kind} {name}, {tokens} tokens, {size / 1e6:.1f} MB: ' + '; '.join(
            f'{cut(tile, parts, gated)} {found[tile]:.2f} us ({size / found[tile] / 1e3:.0f} GB/s)'
            for tile in (None, *best)), flush=True)


def cut(tile: Tile | None, parts: Sequence[Rows], gated: bool) -> str:
    """Describe a tile."""
    if tile is None:
        return 'as chosen'
    mark = ' (chosen for several tokens)' if tile == Tile.of(parts[0], gated) else ''
    return (f'{tile.outputs} x {tile.inputs}, {tile.splits} splits, {tile.stages} stages{mark}')


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kinds', nargs='+', default=list(KINDS), choices=KINDS)
    parser.add_argument('--products', nargs='+', default=list(PRODUCTS), choices=PRODUCTS)
    parser.add_argument('--tokens', nargs='+', type=int, default=[1, 3])
    options = parser.parse_args(arguments)
    if jax.devices()[0].platform != 'gpu':
        parser.error(f'device: {jax.devices()[0].platform}, expected a GPU that JAX can use')
    for kind, name in itertools.product(options.kinds, options.products):
        sweep(kind, name, options.tokens)


if __name__ == '__main__':
    main()
