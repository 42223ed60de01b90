"""What guessing ids brings, by drafter: ids a pass, passes a chunk, time of decoding.

    python -m ros_pi0_fast.evaluation.speculation --episodes 40

The simulated robot is driven by the policy without speculation and plans every --execute control
steps. Each observation goes to all variants, one after another, and what is compared are medians.
Each variant has an engine of its own, and so a chunk before of its own. A variant is 'off', or
'drafter/length[/tolerance]', where length 0 is as many guesses as pays.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.engine.variant import Variant
from ros_pi0_fast.evaluation.closed_loop import LoopSettings, run_episodes
from ros_pi0_fast.evaluation.success import CHECKPOINT, PROFILE, evaluation_episodes
from ros_pi0_fast.sim.tabletop import Tabletop
from ros_pi0_fast.types import ActionChunk, Observation

OFF = 'off'


@dataclass(kw_only=True)
class Row:
    """What was measured of one variant."""

    name: str
    engine: Engine
    constant: int
    """Ids of 'Action: ', which are not chosen."""
    ids: list[int] = field(default_factory=list)
    """Of each chunk, those that were chosen."""
    passes: list[int] = field(default_factory=list)
    """Of the target, of each chunk; that over 'Action: ' chooses the first id."""
    decode_ms: list[float] = field(default_factory=list)
    identical: int = 0
    """Chunks with the ids of the first variant."""
    changed: list[np.ndarray] = field(default_factory=list)
    """Of each chunk, by dimension: the mean difference of its actions from the first variant's."""
    lengths: list[int] = field(default_factory=list)
    """Ids guessed for each pass, of each chunk."""

    def summary(self, base: Row) -> dict[str, float | int | list[float]]:
        """Return the numbers, compared with the first variant's."""
        return {
            'chunks': len(self.ids), 'identical': self.identical,
            'ids_a_pass': sum(self.ids) / sum(self.passes),
            'passes': float(np.mean(self.passes)), 'decode_ms': float(np.median(self.decode_ms)),
            'ratio': float(np.median(base.decode_ms) / np.median(self.decode_ms)),
            'draft_length': float(np.mean(self.lengths)),
            'changed': np.mean(self.changed, axis=0).round(5).tolist()}


def parse_variant(text: str) -> Variant:
    """Return the variant that a command line names.

    Raises:
        ValueError: it names none.
    """
    if text == OFF:
        return Variant()
    drafter, *rest = text.split('/')
    if not 1 <= len(rest) <= 2:
        raise ValueError(f'{text!r}: expected {OFF!r} or drafter/length[/tolerance]')
    return Variant(speculative=True, drafter=drafter, draft_length=int(rest[0]),
                   tolerance=float(rest[1]) if rest[1:] else 0.0)


def measure(rows: Sequence[Row], observation: Observation) -> ActionChunk:
    """Answer an observation with all variants; return the first one's chunk."""
    chunks = [row.engine.infer(observation) for row in rows]
    for row, chunk in zip(rows, chunks, strict=True):
        stats = chunk.stats
        row.ids.append(stats.generated_tokens - row.constant)
        row.passes.append(stats.target_passes)
        row.lengths.append(stats.draft_length)
        row.decode_ms.append(stats.decode_ms)
        row.identical += np.array_equal(chunk.token_ids, chunks[0].token_ids)
        row.changed.append(np.abs(chunk.actions - chunks[0].actions).mean(axis=0))
    return chunks[0]


def drive(rows: Sequence[Row], episodes: int, *, seed: int, execute: int) -> None:
    """Drive episodes of all tasks with the first variant; measure all of them on the way."""
    planned = evaluation_episodes(episodes, seed, latency=0)
    planner = run_episodes(planned, LoopSettings(execute=execute, slots=1), [Tabletop()], [], [])
    observations = next(planner)
    with tqdm(desc='chunks', unit='chunk') as bar:
        while True:
            chunks = [measure(rows, observation) for observation in observations]
            bar.update()
            try:
                observations = planner.send(chunks)
            except StopIteration:
                return


def report(rows: Sequence[Row]) -> str:
    """Return the table, and one line of JSON after it."""
    lines = [f'{"variant":<28}{"ids/pass":>9}{"passes":>8}{"decode":>9}{"ratio":>7}{"length":>8}'
             f'{"identical":>12}{"changed":>10}']
    found = {}
    for row in rows:
        each = found[row.name] = row.summary(rows[0])
        lines.append(
            f'{row.name:<28}{each["ids_a_pass"]:9.2f}{each["passes"]:8.1f}'
            f'{each["decode_ms"]:9.2f}{each["ratio"]:6.2f}x{each["draft_length"]:8.1f}'
            f'{each["identical"]:>7}/{each["chunks"]}{max(each["changed"]):10.4f}')
    lines.append(f'passes: of the target, a chunk; decode: ms, medians; ratio: of {rows[0].name} '
                 'to it; length: guesses a pass, mean; changed: of the actions, the mean '
                 'difference, of the joint with the largest')
    return '\n'.join([*lines, json.dumps(found)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--checkpoint', type=Path, default=CHECKPOINT)
    parser.add_argument('--profile', type=Path, default=PROFILE)
    parser.add_argument('--episodes', type=int, default=12, help='of each task')
    parser.add_argument('--seed', type=int, default=1, help='which scenes: see success')
    parser.add_argument('--execute', type=int, default=5, help='control steps between two plans')
    parser.add_argument('--variants', nargs='+', metavar='VARIANT',
                        default=[OFF, 'head/4', 'previous_chunk/4', 'ngram/2'])
    options = parser.parse_args(arguments)
    try:
        variants = [parse_variant(text) for text in options.variants]
        policy, codec = load_policy(options.checkpoint, RobotProfile.load(options.profile))
        constant = len(codec.action_prefix_ids)
        rows = [Row(name=name, engine=Engine(policy, codec, variant=variant), constant=constant)
                for name, variant in zip(options.variants, variants, strict=True)]
    except ValueError as error:
        parser.error(str(error))
    for row, variant in zip(tqdm(rows, desc='compile', unit='variant'), variants, strict=True):
        if variant.speculative and not variant.draft_length:
            row.engine.warm_up()  # Measures what lengths cost; others compile on the way.
    drive(rows, options.episodes, seed=options.seed, execute=options.execute)
    print(report(rows))


if __name__ == '__main__':
    main()
