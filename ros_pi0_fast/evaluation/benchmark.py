"""Compare variants of the engine: time by stage, tokens, memory, compilation.

    python -m ros_pi0_fast.evaluation.benchmark --preset mid

Runs are interleaved, so that what else the machine does falls on all variants alike, and medians
are compared. A variant is 'reference', 'default', the name of one gain (which is the reference
with that gain alone), or 'field=value,…' (which is the default with those changes). Preset `tiny`
is the policy of this package on observations of its simulation; others have random weights, which
make no chunks: they decode as many FAST ids as they are told.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.engine.answer import Memory
from ros_pi0_fast.engine.choice import FIXED
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.parameters import MIB, tree_bytes
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.engine.variant import LOSSLESS, REFERENCE, Variant, alone
from ros_pi0_fast.evaluation.random_policy import random_observations, random_policy
from ros_pi0_fast.evaluation.settings import parse_value, variant_with
from ros_pi0_fast.share import share_folder
from ros_pi0_fast.types import ActionChunk, Observation
from ros_pi0_fast.weights.checkpoint import Checkpoint

PRESETS = ('tiny', 'tabletop', 'mid', 'full')
STAGES = ('vision_ms', 'prefill_ms', 'decode_ms', 'total_ms')
RECORDED_SEED = 900_000_000
"""Scenes of the recorded observations: no evaluation's, and none that was trained on."""
COMPILE_LIMIT_S = 3600.0


@dataclass(kw_only=True)
class Row:
    """What was measured of one variant."""

    name: str
    variant: Variant
    compile_s: float = 0.0
    peak_mb: float = 0.0
    times: dict[str, list[float]] = field(default_factory=lambda: {s: [] for s in STAGES})
    identical: int = 0
    """Observations whose tokens are those of the first variant."""
    agreement: float = 1.0
    """Fraction of the tokens that are those of the first variant at the same place."""
    passes: list[int] = field(default_factory=list)
    memory: Memory = field(default_factory=Memory)
    """Of a robot of its own."""

    def add(self, chunk: ActionChunk) -> None:
        """Note the times of an inference."""
        for stage, values in self.times.items():
            values.append(getattr(chunk.stats, stage))
        self.passes.append(chunk.stats.target_passes)

    def median(self, stage: str) -> float:
        """Return the median of a stage, ms."""
        return float(np.median(self.times[stage]))


def parse_variant(text: str) -> Variant:
    """Return the variant that a command line names.

    Raises:
        ValueError: there is none of that name; or fields contradict each other.
    """
    if text == 'reference':
        return REFERENCE
    if text == 'default':
        return Variant()
    if text in LOSSLESS:
        return alone(text)
    return variant_with(text.split(','))


def measure(engine: Engine, rows: Sequence[Row], observations: Sequence[Observation], *,
            runs: int) -> None:
    """Compile all variants, compare tokens on all observations, then time interleaved runs."""
    for row in tqdm(rows, desc='compile', unit='variant'):
        began = time.perf_counter()
        before = engine.compilations
        engine.request(variant=row.variant)
        if not engine.wait(COMPILE_LIMIT_S) or engine.failure:
            raise SystemExit(f'{row.name}: {engine.failure or "still compiling"}')
        engine.infer(observations[0])
        row.compile_s = time.perf_counter() - began
        row.peak_mb = peak_mb(engine, before)
    _compare(engine, rows, observations)
    for run in tqdm(range(runs), desc='run', unit='run'):
        for row in rows:
            _take_turn(engine, row)
            row.add(engine.infer(observations[run % len(observations)]))


def _take_turn(engine: Engine, row: Row) -> None:
    """Have the next inference run a variant, which knows of its own inferences before only."""
    engine.request(variant=row.variant)
    engine.memory = row.memory


def peak_mb(engine: Engine, before: int) -> float:
    """Return what the variant that runs takes, MiB: its weights, and the scratch memory of the
    executable with the most of those compiled after the first `before`."""
    scratch = max((made.temporary_bytes for made in engine.compiler.log[before:]), default=0)
    return (tree_bytes(engine.params) + scratch) / MIB


def _compare(engine: Engine, rows: Sequence[Row], observations: Sequence[Observation]) -> None:
    expected: list[np.ndarray] = []
    for row in tqdm(rows, desc='tokens', unit='variant'):
        _take_turn(engine, row)
        found = [engine.infer(observation).token_ids for observation in observations]
        expected = expected or found
        row.identical = sum(map(np.array_equal, found, expected))
        row.agreement = float(np.mean(list(map(token_agreement, found, expected))))


def token_agreement(ids: np.ndarray, expected: np.ndarray) -> float:
    """Return the fraction of the places of the longer one at which two sequences have the same."""
    shorter = min(len(ids), len(expected))
    same = np.sum(np.asarray(ids)[:shorter] == np.asarray(expected)[:shorter])
    return float(same / max(len(ids), len(expected)))


def report(preset: str, rows: Sequence[Row], observations: int) -> str:
    """Return the table, and one line of JSON after it."""
    base = rows[0]
    lines = [f'{"variant":<28}{"total":>9}{"p95":>9}{"vision":>9}{"prefill":>9}{"decode":>9}'
             f'{"pass":>8}{"ratio":>8}{"tokens":>10}{"agree":>8}{"MiB":>8}{"compile":>9}']
    data = {}
    for row in rows:
        vision, prefill, decode, total = (row.median(stage) for stage in STAGES)
        p95 = float(np.percentile(row.times['total_ms'], 95))
        ratio = base.median('total_ms') / total
        each = decode / max(float(np.median(row.passes)), 1)
        lines.append(
            f'{row.name:<28}{total:9.1f}{p95:9.1f}{vision:9.1f}{prefill:9.1f}{decode:9.1f}'
            f'{each:8.2f}{ratio:7.2f}x{row.identical:>6}/{observations}{100 * row.agreement:7.1f}%'
            f'{row.peak_mb:8.0f}{row.compile_s:8.1f}s')
        data[row.name] = {
            'total_ms': total, 'p95_ms': p95, 'vision_ms': vision, 'prefill_ms': prefill,
            'decode_ms': decode, 'pass_ms': each, 'ratio': ratio,
            'decode_ratio': base.median('decode_ms') / decode,
            'tokens_identical': row.identical == observations,
            'token_agreement': row.agreement,
            'peak_mb': row.peak_mb, 'compile_s': row.compile_s}
    lines.append('milliseconds, medians; pass: one pass of the decoder; ratio: total of '
                 f'{base.name} over total; tokens: observations with the tokens of {base.name}; '
                 'agree: tokens that are the same at the same place')
    return '\n'.join([*lines, json.dumps({'preset': preset, 'variants': data})])


def recorded_observations(count: int) -> list[Observation]:
    """Return what the simulated robot saw while the disturbed expert drove it."""
    from ros_pi0_fast.sim.episodes import generate_episode

    seen: list[Observation] = []
    seed = RECORDED_SEED
    while len(seen) < count:
        seen += [state.observation for state in generate_episode(seed).states]
        seed += 1
    return seen[:count]


def load_policy_and_observations(
        preset: str, *, count: int, checkpoint: Path | None, prompt_tokens: int, tokens: int,
) -> tuple[Checkpoint, PolicyCodec, list[Observation], dict]:
    """Return a policy, observations for it, and how the engine decodes.

    Args:
        preset: 'tiny' is the policy of this package; others have random weights.
        count: Observations.
        checkpoint: Folder of another policy for the tabletop.
        prompt_tokens: Of each prompt, where weights are random.
        tokens: To decode there.

    Raises:
        ValueError: one of these does not fit the preset.
    """
    if preset == 'tiny':
        profile = RobotProfile.load(share_folder() / 'config' / 'robots' / 'tabletop.yaml')
        folder = checkpoint or share_folder() / 'checkpoints' / 'tabletop'
        return *load_policy(folder, profile), recorded_observations(count), {}
    loaded, codec = random_policy(preset)
    seen = random_observations(codec, count, prompt_tokens=prompt_tokens)
    return loaded, codec, seen, {'malformed': FIXED, 'max_decode_tokens': tokens}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--preset', default='tiny', choices=PRESETS)
    parser.add_argument('--checkpoint', type=Path, help='instead of the one of this package')
    parser.add_argument('--variants', nargs='+', metavar='VARIANT',
                        default=['reference', 'default', *LOSSLESS],
                        help='the first one is what the others are compared with')
    parser.add_argument('--runs', type=int, default=11, help='timed inferences a variant')
    parser.add_argument('--observations', type=int, default=20, help='to compare tokens on')
    parser.add_argument('--prompt-tokens', type=int, default=120,
                        help='of each prompt, where weights are random')
    parser.add_argument('--tokens', type=int, default=48, help='decoded, where weights are random')
    parser.add_argument('--compiler-option', action='append', default=[], metavar='NAME=VALUE',
                        help="XLA's, for all executables, such as "
                        'xla_cpu_prefer_vector_width=512')
    options = parser.parse_args(arguments)
    try:
        rows = [Row(name=name, variant=parse_variant(name)) for name in options.variants]
        checkpoint, codec, seen, how = load_policy_and_observations(
            options.preset, count=options.observations, checkpoint=options.checkpoint,
            prompt_tokens=options.prompt_tokens, tokens=options.tokens)
    except ValueError as error:
        parser.error(str(error))
    engine = Engine(
        checkpoint, codec, variant=rows[0].variant, kept_variants=None, **how,
        compiler_options=tuple((name, parse_value(value)) for name, _, value in (
            text.partition('=') for text in options.compiler_option)))
    measure(engine, rows, seen, runs=options.runs)
    print(report(options.preset, rows, len(seen)))


if __name__ == '__main__':
    main()
