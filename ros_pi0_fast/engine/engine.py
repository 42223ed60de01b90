"""From an observation to an action chunk, by whichever variant is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import jax

from ros_pi0_fast.accel.attention_choice import AttentionChooser
from ros_pi0_fast.accel.quantized_checkpoint import tree_bytes
from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.engine.answer import Memory, answer
from ros_pi0_fast.engine.background import in_background, wait_for
from ros_pi0_fast.engine.choice import Choice
from ros_pi0_fast.engine.compiler import Compiler, CompilerOptions
from ros_pi0_fast.engine.memory import return_free_memory
from ros_pi0_fast.engine.parameters import ParameterStore
from ros_pi0_fast.engine.program import Program
from ros_pi0_fast.engine.pruning import PolicyPruner
from ros_pi0_fast.engine.speculation import Speculation
from ros_pi0_fast.engine.variant import Variant
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.types import ActionChunk, Observation
from ros_pi0_fast.weights.checkpoint import Checkpoint

KEPT_SHAPES = 8
"""Sizes of pictures that resizing on the device is compiled for."""
KEPT_VARIANTS = 6
"""See Engine; what a node keeps."""


class Engine:
    """Runs one policy. One inference at a time: callers with several threads must take turns.
    What was seen before counts, with pruning or a drafter: see `memory`.

    What is asked for by `request` is compiled in a thread of its own, while what ran before goes
    on; the swap is between two inferences. Should it fail, what ran before stays.

    Args:
        checkpoint: Weights and sizes.
        codec: Of the same checkpoint.
        variant: What is switched on.
        malformed: 'constrain': only ids are chosen from which a whole chunk comes. 'reject': the
            model decodes freely, as in openpi, and what is no chunk is flagged so. FIXED: for
            measuring only, and never a chunk.
        max_decode_tokens: Ids decoded at most; None: as many as a chunk may need, or 256 freely.
        memory_limit_mb: Most that the weights of all variants in use may take, MiB; 0: no limit.
        compiler_options: Of XLA, for every executable.
        speculation: Knows the drafters; None: those of the checkpoint's folder.
        pruning: How image tokens are pruned; None: by the checkpoint's pruner.
        kept_variants: How many stay compiled, those that ran last; None: all of them.

    Raises:
        EngineError, MemoryLimitError, VariantError: a parameter cannot be honoured.
        PruningError: the checkpoint's pruner is not for it.
    """

    def __init__(self, checkpoint: Checkpoint, codec: PolicyCodec, *,
                 variant: Variant | None = None, malformed: str = 'constrain',
                 max_decode_tokens: int | None = None, memory_limit_mb: float = 0,
                 compiler_options: CompilerOptions = (),
                 kept_variants: int | None = KEPT_VARIANTS,
                 speculation: Speculation | None = None, pruning: PolicyPruner | None = None):
        self._codec = codec
        self._kept_variants = kept_variants
        self.model = Pi0Fast(checkpoint.config)
        self._compiler = Compiler(compiler_options)
        self.attention = AttentionChooser(options=self._compiler.options)
        """Knows which attention was measured to be the fastest for which shape."""
        self._store = ParameterStore(self.model, checkpoint, limit_mb=memory_limit_mb)
        self._pruning = pruning or PolicyPruner.load(
            checkpoint.folder, checkpoint.config, codec.profile.cameras)
        self.memory = Memory()
        """Of the robot whose observations come; another one here goes on with another robot."""
        self._speculation = speculation or Speculation.load(checkpoint.folder, self.model, codec)
        self._forgetting = self._running = False
        self._inferences = 0
        self._max_decode_tokens = max_decode_tokens
        self._lock = threading.Lock()
        self._programs: dict[Choice, Program] = {}
        self._wanted = Choice(variant=variant or Variant(), malformed=malformed)
        self._active = self._make(self._wanted)
        self._programs[self._wanted] = self._active
        self._thread: threading.Thread | None = None
        self._seen_shapes: set[tuple] = set()
        self.failure = ''
        """Why what was asked for last cannot run; empty when it can."""

    # --- what runs -----------------------------------------------------------------------

    @property
    def variant(self) -> Variant:
        """The variant that the next inference runs, if nothing is swapped in before."""
        return self._active.choice.variant

    @property
    def malformed(self) -> str:
        """What the next inference does about malformed chunks: 'constrain' or 'reject'."""
        return self._active.choice.malformed

    @property
    def pending(self) -> Variant | None:
        """The variant that is being compiled; None when there is none."""
        with self._lock:
            waiting = self._wanted not in self._programs
            return self._wanted.variant if waiting else None

    @property
    def compiler(self) -> Compiler:
        """Knows what was compiled, by whom, and for how long."""
        return self._compiler

    @property
    def compilations(self) -> int:
        """Executables compiled so far."""
        return len(self._compiler.log)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of all variants that are kept."""
        return self._store.bytes

    @property
    def params(self) -> Params:
        """The weights of the variant that runs."""
        return self._active.params

    @property
    def head_bytes(self) -> int:
        """Bytes of the output head that the variant that runs reads for each token."""
        head = self._active.vocabulary.head
        return tree_bytes(self.model.head(self.params) if head is None else head)

    @property
    def drafters(self) -> tuple[str, ...]:
        """What can guess with this checkpoint."""
        return self._speculation.names

    @property
    def buckets(self) -> tuple[int, ...]:
        """Lengths that prompts are padded to."""
        return self._active.buckets

    def request(self, *, variant: Variant | None = None, malformed: str | None = None) -> None:
        """Ask for another variant, or another answer to malformed chunks. Returns at once.

        Args:
            variant: None for the one that was asked for last; and so the next.
            malformed: See Engine.

        Raises:
            EngineError: there is no such answer.
        """
        with self._lock:
            self._wanted = Choice(variant=variant or self._wanted.variant,
                                  malformed=malformed or self._wanted.malformed)
            self.failure = ''
            if self._wanted in self._programs or self._thread is not None:
                return
            self._thread = in_background(self._compile_wanted)

    def use(self, variant: Variant) -> None:
        """Have the next inference run a variant, whatever is compiled: to measure it.

        Unlike `request` this makes the weights at once, and compiles only what an inference turns
        out to need, while it waits.

        Raises:
            MemoryLimitError, VariantError: see check.
        """
        choice = Choice(variant=variant, malformed=self._wanted.malformed)
        program = self._programs.get(choice) or self._make(choice)
        with self._lock:
            self._programs.setdefault(choice, program)
            self._wanted = choice

    def check(self, variant: Variant) -> None:
        """Check that a variant could run beside what runs now.

        Raises:
            MemoryLimitError: there would be no room for its weights.
            VariantError: the checkpoint has no such weights, or no such drafter.
        """
        self._speculation.check(variant)
        self._store.check(self._store.form_of(variant), frozenset({self._active.form}))

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is compiled in the background; tell whether that came in time."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        return self._thread is None

    def _compile_wanted(self) -> None:
        """Compile what is wanted, until that is there. Runs in a thread of its own."""
        while True:
            with self._lock:
                wanted = self._wanted
                if wanted in self._programs:
                    self._thread = None
                    return
            try:
                self._prepare(wanted)
            except Exception as error:  # Whatever it is, the robot keeps what runs.
                self._give_up(wanted, f'{type(error).__name__}: {error}')

    def _prepare(self, choice: Choice) -> Program:
        """Return the program of a choice, compiled."""
        with self._lock:
            program = self._programs.get(choice)
        if program is not None:
            return program
        program = self._make(choice)
        program.warm_up()
        for shapes in tuple(self._seen_shapes):
            program.pictures.compile(shapes)
        with self._lock:
            self._programs[choice] = program
            idle = [each for each in self._programs
                    if each not in (choice, self._wanted, self._active.choice)]
            kept = self._kept_variants or len(self._programs)
            too_many = idle[:max(0, len(self._programs) - kept)]
            for each in too_many:
                del self._programs[each]
        if too_many:
            self._compiler.sweep()
            jax.clear_caches()  # Of traces; what is compiled ahead of time stays.
        return_free_memory()
        return program

    def _give_up(self, wanted: Choice, reason: str) -> None:
        with self._lock:
            if self._wanted == wanted:
                self._wanted = self._active.choice
                self.failure = f'{wanted.variant.name}: {reason}'

    def _make(self, choice: Choice) -> Program:
        with self._lock:
            kept = {program.form for program in self._programs.values()}
            in_use = frozenset({self._active.form}) if self._programs else frozenset()
        program = Program(
            choice, self.model, self._codec, self._store, self._compiler.share(), self.attention,
            self._pruning, self._speculation, in_use=in_use,
            max_decode_tokens=self._max_decode_tokens)
        self._forget(kept - self._store.forms)
        return program

    def _forget(self, forms: set) -> None:
        """Drop the programs whose weights were given up."""
        with self._lock:
            for choice, program in list(self._programs.items()):
                if program.form in forms:
                    del self._programs[choice]

    # --- inference -----------------------------------------------------------------------

    def warm_up(self, progress: Callable[[str], None] = lambda text: None) -> None:
        """Compile what any inference of this variant will need.

        Args:
            progress: Called with a line before each step.
        """
        self._active.warm_up(progress)

    def infer(self, observation: Observation) -> ActionChunk:
        """Answer an observation.

        Returns:
            A chunk; not valid, without actions and with a reason, if the model's answer is none.

        Raises:
            ObservationError: the observation does not fit the robot profile.
        """
        program = self._swap()
        self._running = True
        try:
            chunk = answer(program, self._codec, observation, self.memory)
        finally:
            self._running = False
            self._inferences += 1
        self._notice_shapes(observation, program)
        return chunk

    def forget(self) -> None:
        """Let the next inference know nothing of those before: neither what was pruned nor the
        chunk before. May be called by any thread, also during an inference.
        """
        self._forgetting = True

    def measure(self, variant: Variant, observations: Sequence[Observation], *,
                first: int = 0) -> list[float]:
        """Time a variant on observations, beside the inferences that go on; compile it before.

        Inferences that another one ran into do not count, where there are enough without them.
        The variant should not be the one that runs.

        Args:
            variant: Which.
            observations: Those of one robot, in order.
            first: The first that is timed; those before only warm up.

        Returns:
            Milliseconds of each inference.

        Raises:
            EngineError, MemoryLimitError, VariantError: it cannot run.
            ObservationError: an observation does not fit the robot profile.
        """
        self.check(variant)
        choice = Choice(variant=variant, malformed=self.malformed)
        program = wait_for(lambda: self._prepare(choice))
        memory, alone, crowded = Memory(), [], []
        for index, observation in enumerate(observations):
            count = self._inferences
            chunk = answer(program, self._codec, observation, memory)
            undisturbed = self._inferences == count and not self._running
            if index >= first:
                (alone if undisturbed else crowded).append(chunk.stats.total_ms)
        return alone if len(alone) >= len(crowded) else alone + crowded

    def _swap(self) -> Program:
        """Return the program to run: the one that is wanted as soon as it is there."""
        if self._forgetting:
            self._forgetting = False
            self.memory = Memory()
        with self._lock:
            self._active = self._programs.get(self._wanted, self._active)
            choice = self._active.choice
            self._programs[choice] = self._programs.pop(choice, self._active)  # The last to go.
            return self._active

    def _notice_shapes(self, observation: Observation, program: Program) -> None:
        """Have the resizing of pictures of a new size compiled, for inferences to come.

        Not of ever new sizes: then Pillow on the host resizes them.
        """
        shapes = tuple(observation.images[key].shape for key in sorted(observation.images))
        if shapes not in self._seen_shapes and len(self._seen_shapes) < KEPT_SHAPES:
            self._seen_shapes.add(shapes)
            in_background(lambda: program.pictures.compile(shapes))
