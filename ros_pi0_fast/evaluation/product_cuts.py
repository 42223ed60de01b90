"""Which cut of a product of few tokens is fastest on this GPU, for the sizes of Gemma 2B.

    python -m ros_pi0_fast.evaluation.product_cuts --kinds int8 int4 --tokens 1 3

What `accel.kernels.matvec.Cut` chooses is printed beside what was measured to be best. The
matrices are as many as do not fit into the GPU's cache, read one after another in one program.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from ros_pi0_fast.accel.kernels.matvec import THREADS, Cut, few_product
from ros_pi0_fast.accel.kernels.rows import Rows
from ros_pi0_fast.accel.quantized import quantize_int4, quantize_int8
from ros_pi0_fast.engine.compiler import PLATFORM_OPTIONS
from ros_pi0_fast.evaluation.machine import seconds_of

PRODUCTS = {'qkv': ((2048, 2048), (2048, 256), (2048, 256)), 'out': ((2048, 2048),),
            'gated': ((2048, 16_384), (2048, 16_384)), 'linear': ((16_384, 2048),)}
"""Inputs and outputs of the matrices of each."""
KINDS = {'bfloat16': lambda w: w.astype(jnp.bfloat16), 'int8': quantize_int8,
         'int4': quantize_int4}
ROWS, STEPS = (1, 2, 4, 8, 16), (128, 256, 512, 1024, 2048, 4096)
"""Outputs of a program and bytes of a step that are tried."""
SUMS = range(8, 129)
"""Partial sums of a thread that are worth trying."""
BYTES = 600e6
"""Of all matrices together."""


def candidates(parts: tuple[Rows, ...], tokens: int, gated: bool) -> Iterator[Cut]:
    """Yield cuts that fit the matrices and a thread's registers."""
    values = parts[0].values
    row = values.shape[1] * values.dtype.itemsize
    for rows, step, ahead in itertools.product(ROWS, STEPS, (False, True)):
        sums = rows * step // values.dtype.itemsize * tokens * (1 + gated) // THREADS
        if row % step == 0 and sums in SUMS and not (ahead and row == step):
            yield Cut(rows=rows, step=step, ahead=ahead)


def measure(sets: Sequence[tuple[Rows, ...]], x: jax.Array, gated: bool, cut: Cut) -> float:
    """Return the median microseconds of a product of x [t, in] with one of the sets."""
    def run(sets: Sequence[tuple[Rows, ...]], x: jax.Array) -> list[jax.Array]:
        return [few_product(parts, x, gated=gated, cut=cut) for parts in sets]

    options = dict(PLATFORM_OPTIONS[jax.devices()[0].platform])
    compiled = jax.jit(run).lower(sets, x).compile(compiler_options=options)
    return 1e6 * seconds_of(compiled, sets, x) / len(sets)


def sweep(kind: str, name: str, counts: Sequence[int]) -> None:
    """Print the cuts of a product, by numbers of tokens."""
    shapes, gated = PRODUCTS[name], name == 'gated'
    make = jax.jit(lambda key: tuple(Rows.of(KINDS[kind](jax.random.normal(key, shape)))
                                     for shape in shapes))
    first = make(jax.random.key(0))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(first))
    sets = [first] + [make(jax.random.key(i)) for i in range(1, max(4, int(BYTES / size)))]
    for tokens in counts:
        x = jax.random.normal(jax.random.key(0), (tokens, shapes[0][0]), jnp.bfloat16)
        chosen = Cut.of(first, tokens, gated)
        found = {}
        for cut in {chosen, *candidates(first, tokens, gated)}:
            try:
                found[cut] = measure(sets, x, gated, cut)
            except RuntimeError as error:  # More registers or shared memory than there are.
                print(f'  {cut}: {str(error).splitlines()[0]}', flush=True)
        best = sorted(found, key=found.__getitem__)[:5]
        print(f'{kind} {name}, {tokens} tokens, {size / 1e6:.1f} MB: ' + '; '.join(
            f'{"chosen" if cut == chosen else "best"} {cut.rows} x {cut.step} B'
            f'{", ahead" if cut.ahead else ""} {found[cut]:.2f} us '
            f'({size / found[cut] / 1e3:.0f} GB/s)' for cut in (chosen, *best)), flush=True)


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
