"""The variants that a bag is replayed with, each as if it alone ran on the robot."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ros_pi0_fast.engine.answer import Memory
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.parameters import MemoryLimitError
from ros_pi0_fast.engine.variant import Variant, VariantError
from ros_pi0_fast.evaluation.benchmark import COMPILE_LIMIT_S, parse_variant, peak_mb
from ros_pi0_fast.types import ActionChunk, Observation

REFERENCE_NAME = 'reference'
NAMED = {
    'engine': Variant(),
    'int8': Variant(quantized_weights='int8'),
    'int4': Variant(quantized_weights='int4'),
    'pruned50': Variant(pruning=True, keep_ratio=0.5),
    'pruned25': Variant(pruning=True, keep_ratio=0.25),
    'speculative': Variant(speculative=True),
    'all': Variant(quantized_weights='int4', quantized_cache='int8', pruning=True,
                   keep_ratio=0.5, speculative=True)}
"""Beside the benchmark's names."""
DEFAULT = (REFERENCE_NAME, *NAMED)


def parse_variants(words: Iterable[str]) -> dict[str, Variant]:
    """Return the variants that a command line names, the reference first.

    Args:
        words: Each has names with commas between them; `field=value,field=value` is one name.

    Raises:
        ValueError: there is no such variant; or its fields contradict each other.
    """
    names = [REFERENCE_NAME]
    for word in words:
        fields: list[str] = []
        for part in [*word.split(','), '']:
            if '=' in part:
                fields.append(part.strip())
                continue
            names += [name for name in (','.join(fields), part.strip()) if name]
            fields = []
    found = {}
    for name in dict.fromkeys(names):
        try:
            found[name] = NAMED[name] if name in NAMED else parse_variant(name)
        except ValueError as error:
            raise ValueError(f'--variants {name}: {error}; there are {REFERENCE_NAME}, '
                             f'{", ".join(NAMED)}, and field=value,…') from error
    return found


@dataclass(kw_only=True)
class Runner:
    """One variant, ready to run."""

    name: str
    variant: Variant
    peak_mb: float = 0.0
    """Weights and scratch, MiB."""
    compile_s: float = 0.0
    memory: Memory = field(default_factory=Memory)


class Runners:
    """Runs variants in turn on one engine, each with a past of its own.

    Args:
        engine: Shared.
        variants: By name, in the order in which they are reported.
    """

    def __init__(self, engine: Engine, variants: dict[str, Variant]):
        self.failed: dict[str, str] = {}
        """Why variants cannot run, by name."""
        self.ready: dict[str, Runner] = {}
        self._engine, self._variants = engine, variants

    def prepare(self, observation: Observation,
                progress: Callable[[Sequence[str]], Iterable[str]]) -> None:
        """Compile all, and run each once on an observation, whose pictures have their size.

        Args:
            observation: The first one.
            progress: Yields the names that it is given, as long as this is to go on.
        """
        for name in progress(list(self._variants)):
            runner = Runner(name=name, variant=self._variants[name])
            reason = self._compile(runner, observation)
            if reason:
                self.failed[name] = reason
            else:
                self.ready[name] = runner

    def _compile(self, runner: Runner, observation: Observation) -> str:
        """Return why it cannot run, or ''."""
        engine, began, before = self._engine, time.perf_counter(), self._engine.compilations
        try:
            engine.check(runner.variant)
        except (VariantError, MemoryLimitError) as error:
            return str(error)
        engine.request(variant=runner.variant)
        if runner.variant == engine.variant:  # Nothing runs before, for which it would compile.
            engine.warm_up()
        if not engine.wait(COMPILE_LIMIT_S) or engine.failure:
            return engine.failure or f'not compiled after {COMPILE_LIMIT_S:g} s'
        engine.memory = Memory()
        engine.infer(observation)
        runner.compile_s = time.perf_counter() - began
        runner.peak_mb = peak_mb(engine, before)
        return ''

    def run(self, observation: Observation, turn: int) -> Iterator[tuple[str, ActionChunk, int]]:
        """Yield each variant's name, its chunk, and how many executables had to be compiled for
        it, so that its times mean nothing.

        Args:
            observation: The next one of the robot.
            turn: Which variant begins: another one each time, so that no one always follows the
                same one.

        Raises:
            ObservationError: it does not fit the robot.
        """
        names = list(self.ready)
        turn %= len(names)
        for name in names[turn:] + names[:turn]:
            runner, before = self.ready[name], self._engine.compilations
            self._engine.request(variant=runner.variant)
            self._engine.memory = runner.memory
            chunk = self._engine.infer(observation)
            yield name, chunk, sum(made.thread == threading.current_thread().name
                                   for made in self._engine.compiler.log[before:])
