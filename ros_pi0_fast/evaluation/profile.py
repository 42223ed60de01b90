"""Where an inference's time goes, stage by stage, and how near each is to what the machine can do.

    python -m ros_pi0_fast.evaluation.profile --preset mid

Bytes are those of the weights that a stage must read, operations what XLA counts in the compiled
stage. The floor is the longer of bytes over the measured rate of matrix-vector products and
operations over the measured rate of a large product. With --trace a trace is written, too, in
which the stages have their names.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.parameters import tree_bytes
from ros_pi0_fast.engine.stages import Prefill, Vision
from ros_pi0_fast.evaluation.benchmark import (
    PRESETS,
    load_policy_and_observations,
    parse_variant,
)
from ros_pi0_fast.evaluation.machine import Machine, measure_machine
from ros_pi0_fast.types import InferenceStats, Observation

STAGES = ('preprocess', 'vision', 'prefill', 'decode', 'postprocess')


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What a stage must do at least, in one inference."""

    weight_bytes: float = 0.0
    operations: float = 0.0


def stage_costs(engine: Engine, stats: InferenceStats) -> dict[str, StageCost]:
    """Return what the stages of an inference cost, by name.

    Args:
        engine: That ran it.
        stats: Of that inference.
    """
    params = engine.params['PaliGemma']
    table = params['llm']['embedder']
    decoder = tree_bytes(params['llm']) - tree_bytes(table)
    head = engine.head_bytes
    counted = {}
    for key, compiled in engine.compiler.executables():
        for name, kind in (('vision', Vision), ('prefill', Prefill)):
            if isinstance(key[0], kind):
                counted[name] = float((compiled.cost_analysis() or {}).get('flops', 0.0))
    passes = stats.target_passes
    each = 2 * (decoder + head) / engine.model.dtype.itemsize
    return {
        'vision': StageCost(weight_bytes=tree_bytes(params['img']),
                            operations=counted.get('vision', 0.0)),
        'prefill': StageCost(weight_bytes=decoder, operations=counted.get('prefill', 0.0)),
        'decode': StageCost(weight_bytes=passes * (decoder + head),
                            operations=max(stats.generated_tokens, passes) * each)}


def stage_table(times: dict[str, float], costs: dict[str, StageCost], machine: Machine,
                passes: int) -> str:
    """Return the table for people."""
    total = sum(times.values())
    lines = [f'{"stage":<14}{"ms":>9}{"share":>8}{"MB read":>10}{"GB/s":>8}{"GFLOP":>9}'
             f'{"GFLOP/s":>9}{"floor ms":>10}{"x floor":>9}']
    for name, ms in times.items():
        line = f'{name:<14}{ms:9.2f}{ms / total:8.1%}'
        if name in costs and ms:
            cost = costs[name]
            floor = machine.floor_ms(cost.weight_bytes, cost.operations)
            line += (f'{cost.weight_bytes / 1e6:10.1f}{cost.weight_bytes / ms / 1e6:8.1f}'
                     f'{cost.operations / 1e9:9.2f}{cost.operations / ms / 1e6:9.1f}'
                     f'{floor:10.2f}{ms / floor:9.2f}')
        lines.append(line)
    lines.append(f'{"total":<14}{total:9.2f}')
    lines.append(f'decoding: {passes} passes of {times["decode"] / max(passes, 1):.2f} ms')
    lines.append(f'{machine.device}: copy {machine.copy / 1e9:.1f} GB/s, matrix-vector '
                 f'{machine.matrix_vector / 1e9:.1f} GB/s, matmul {machine.matmul / 1e9:.0f} '
                 'GFLOP/s')
    return '\n'.join(lines)


def profile(engine: Engine, observations: Sequence[Observation], runs: int) -> str:
    """Run inferences and return the table of their median stages."""
    engine.warm_up()
    engine.infer(observations[0])
    stats = [engine.infer(observations[run % len(observations)]).stats for run in range(runs)]
    times = {name: float(np.median([getattr(each, f'{name}_ms') for each in stats]))
             for name in STAGES}
    middle = sorted(stats, key=lambda each: each.target_passes)[len(stats) // 2]
    return stage_table(times, stage_costs(engine, middle),
                       measure_machine(str(engine.model.dtype)), middle.target_passes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--preset', default='tiny', choices=PRESETS)
    parser.add_argument('--checkpoint', type=Path, help='instead of the one of this package')
    parser.add_argument('--variant', default='default', help='as in evaluation.benchmark')
    parser.add_argument('--runs', type=int, default=11)
    parser.add_argument('--prompt-tokens', type=int, default=120)
    parser.add_argument('--tokens', type=int, default=48)
    parser.add_argument('--trace', type=Path, help='folder for a trace of one inference')
    options = parser.parse_args(arguments)
    try:
        variant = parse_variant(options.variant)
        checkpoint, codec, seen, how = load_policy_and_observations(
            options.preset, count=4, checkpoint=options.checkpoint,
            prompt_tokens=options.prompt_tokens, tokens=options.tokens)
    except ValueError as error:
        parser.error(str(error))
    engine = Engine(checkpoint, codec, variant=variant, **how)
    print(profile(engine, seen, options.runs))
    if options.trace is not None:
        with jax.profiler.trace(str(options.trace)):
            engine.infer(seen[0])
        print(f'trace: {options.trace}')


if __name__ == '__main__':
    main()
