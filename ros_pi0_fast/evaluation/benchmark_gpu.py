"""What each optimization gains on a GPU, and how near each is to what the GPU can do.

    python -m ros_pi0_fast.evaluation.benchmark_gpu --json gpu.json

Random weights of a preset, a given number of ids decoded. Every row is measured in turns with the
reference, so that both see the same clocks, and printed as soon as it is there. Only the second of
two inferences counts in each turn, as a robot runs the same variant again and again: in the first
one buffers lie elsewhere than before, which CUDA graphs must be told of, and nothing is known of
the picture before, without which pruning keeps all tokens. Floors are by measured rates: the bytes
of weights that the passes must read over the rate at which the GPU copies (bytes read and
written).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np

from ros_pi0_fast.accel.quantized_checkpoint import tree_bytes
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.pruning import PolicyPruner
from ros_pi0_fast.engine.variant import REFERENCE, Variant
from ros_pi0_fast.evaluation.benchmark import PRESETS, load_policy_and_observations
from ros_pi0_fast.evaluation.forced_speculation import ForcedSpeculation
from ros_pi0_fast.evaluation.machine import Machine, measure_machine
from ros_pi0_fast.evaluation.trace_report import trace_file, trace_report
from ros_pi0_fast.types import Observation

STAGES = ('vision_ms', 'prefill_ms', 'decode_ms', 'total_ms')


def speculating(tokens: int, **fields: object) -> Variant:
    """Return a variant in which a pass yields so many tokens: see ForcedSpeculation."""
    return Variant(speculative=True, draft_length=max(1, tokens - 1),
                   tolerance=float(tokens > 1), **fields)


ENGINE = Variant(flash_attention=False)
ROWS: dict[str, Variant] = {
    'reference': REFERENCE,
    'engine': ENGINE,
    '+ flash': Variant(),
    '+ int8': Variant(quantized_weights='int8'),
    '+ int4': Variant(quantized_weights='int4'),
    'all together': speculating(3, quantized_weights='int8', pruning=True, keep_ratio=0.5),
    '+ kv int8': Variant(quantized_cache='int8'),
    '+ pruning 50 %': Variant(pruning=True, keep_ratio=0.5),
    '+ pruning 25 %': Variant(pruning=True, keep_ratio=0.25),
    **{f'+ {tokens} a pass': speculating(tokens) for tokens in (1, 2, 3, 4)},
}
"""What is measured. Each + is on top of the engine with flash attention; all together: int8
weights, half of the image tokens, 3 tokens a pass."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Medians of one row."""

    name: str
    vision_ms: float
    prefill_ms: float
    decode_ms: float
    total_ms: float
    passes: int
    tokens: int
    prefix: int
    """Tokens of the prefix that are prefilled."""
    pass_bytes: int
    """Of weights that a pass reads."""
    ratio: float
    """Total of the reference over this one's, medians of runs in turns."""
    floor_ms: float
    """Of decoding."""

    @property
    def pass_ms(self) -> float:
        """Time of a pass."""
        return self.decode_ms / self.passes

    def line(self) -> str:
        """Return the row for people."""
        rate = self.pass_bytes / self.pass_ms / 1e6
        return (f'{self.name:<16}{self.vision_ms:8.2f}{self.prefill_ms:9.2f}{self.decode_ms:9.2f}'
                f'{self.total_ms:9.2f}{self.passes:7}{self.pass_ms:9.3f}{rate:8.0f}'
                f'{self.decode_ms / self.floor_ms:8.2f}x{self.ratio:8.2f}x')


HEADER = (f'{"ms":<16}{"vision":>8}{"prefill":>9}{"decode":>9}{"total":>9}{"passes":>7}{"pass":>9}'
          f'{"GB/s":>8}{"floor":>9}{"gain":>9}')


def prepare(engine: Engine, name: str, variant: Variant, observation: Observation) -> bool:
    """Make the weights and compile what a row needs; say so, or why it cannot be."""
    began = time.perf_counter()
    try:
        engine.use(variant)
        engine.infer(observation)
    except (RuntimeError, ValueError) as error:
        print(f'{name}: left out, {type(error).__name__}: {error}', flush=True)
        return False
    print(f'  {name}: ready after {time.perf_counter() - began:.0f} s', flush=True)
    return True


def measure(engine: Engine, name: str, variant: Variant, reference: Variant,
            observations: Sequence[Observation], runs: int, machine: Machine) -> Result:
    """Measure a row in turns with the reference."""
    def times(variant: Variant, run: int) -> tuple[list[float], object]:
        engine.use(variant)
        for _ in range(2):
            stats = engine.infer(observations[run % len(observations)]).stats
        return [getattr(stats, stage) for stage in STAGES], stats

    both: dict[Variant, list[list[float]]] = {reference: [], variant: []}
    for run in range(-1, runs):
        for each in both:
            found, stats = times(each, max(run, 0))
            if run >= 0:
                both[each].append(found)
    base, own = (np.median(both[each], axis=0) for each in (reference, variant))
    decoder = engine.params['PaliGemma']['llm']
    size = tree_bytes(decoder) - tree_bytes(decoder['embedder']) + engine.head_bytes
    return Result(name=name, **dict(zip(STAGES, map(float, own), strict=True)),
                  passes=stats.target_passes, tokens=stats.generated_tokens,
                  prefix=stats.prefix_tokens, pass_bytes=size,
                  ratio=float(base[-1] / own[-1]),
                  floor_ms=1e3 * stats.target_passes * size / machine.copy)


def trace(engine: Engine, variant: Variant, observation: Observation, folder: Path) -> Path:
    """Trace one inference as it is after some; return the file."""
    engine.use(variant)
    for _ in range(3):
        engine.infer(observation)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # It would slow down what is to be seen.
    with jax.profiler.trace(str(folder), profiler_options=options):
        engine.infer(observation)
    return trace_file(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--preset', default='full', choices=[p for p in PRESETS if p != 'tiny'])
    parser.add_argument('--rows', nargs='+', default=list(ROWS), choices=ROWS, metavar='ROW',
                        help=f'some of: {", ".join(ROWS)}; the reference is always measured')
    parser.add_argument('--runs', type=int, default=11, help='timed inferences a row')
    parser.add_argument('--prompt-tokens', type=int, default=60)
    parser.add_argument('--tokens', type=int, default=48, help='decoded')
    parser.add_argument('--training-free', action='store_true',
                        help='prune as where there is no trained pruner; else by one of random '
                        'weights')
    parser.add_argument('--trace', type=Path, help='folder for traces of one inference a row')
    parser.add_argument('--json', type=Path, help='file for the table as JSON')
    options = parser.parse_args(arguments)
    checkpoint, codec, seen, how = load_policy_and_observations(
        options.preset, count=4, checkpoint=None, prompt_tokens=options.prompt_tokens,
        tokens=options.tokens)
    engine = Engine(checkpoint, codec, variant=REFERENCE, **how, kept_variants=None,
                    speculation=ForcedSpeculation({}, codec),
                    pruning=None if options.training_free else PolicyPruner.random(
                        checkpoint.config, codec.profile.cameras))
    machine = measure_machine(checkpoint.config.dtype)
    print(f'{machine.device}: copy {machine.copy / 1e9:.0f} GB/s (read and written), '
          f'matrix-vector {machine.matrix_vector / 1e9:.0f} GB/s, '
          f'matmul {machine.matmul / 1e12:.0f} TFLOP/s', flush=True)
    print(HEADER, flush=True)
    results = []
    for name in dict.fromkeys(['reference', *options.rows]):
        variant = ROWS[name]
        if not prepare(engine, name, variant, seen[0]):
            continue
        results.append(measure(engine, name, variant, REFERENCE, seen, options.runs, machine))
        print(results[-1].line(), flush=True)
    print('medians; GB/s: bytes of weights a pass over its time; floor: decoding over the time of '
          'copying these bytes; gain: total of the reference over total, in turns')
    for shape, times in engine.attention.times.items():
        print(f'attention, {shape.kind}, {shape.tokens} on {shape.slots}: ' + ', '.join(
            f'{name} {1e3 * ms:.0f} us' for name, ms in times.items()))
    if options.json:
        options.json.write_text(json.dumps(
            {'machine': asdict(machine), 'rows': [asdict(result) for result in results]},
            indent=1))
    for index, result in enumerate(results if options.trace else ()):
        path = trace(engine, ROWS[result.name], seen[0], options.trace / str(index))
        print(f'trace of one inference, {result.name}, {path}: {trace_report(path)}', flush=True)


if __name__ == '__main__':
    main()
