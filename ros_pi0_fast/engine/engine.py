"""From an observation to an action chunk, by whichever variant is asked for."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from ros_pi0_fast.accel.attention_choice import AttentionChooser
from ros_pi0_fast.accel.quantized_checkpoint import tree_bytes
from ros_pi0_fast.codec.fast import MalformedChunkError
from ros_pi0_fast.codec.policy_codec import EncodedObservation, PolicyCodec
from ros_pi0_fast.engine.choice import FIXED, Choice
from ros_pi0_fast.engine.compiler import Compiler, CompilerOptions
from ros_pi0_fast.engine.parameters import Form, ParameterStore
from ros_pi0_fast.engine.program import Clock, Program
from ros_pi0_fast.engine.pruning import PolicyPruner, PruningMemory
from ros_pi0_fast.engine.speculation import Speculation
from ros_pi0_fast.engine.variant import Variant
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.types import ActionChunk, Observation
from ros_pi0_fast.weights.checkpoint import Checkpoint

COMPILE_THREAD = 'compile'
COMPILE_NICENESS = 15


@dataclass
class Past:
    """What an engine has seen and answered so far, of one robot."""

    pruning: PruningMemory = field(default_factory=PruningMemory)
    chunk: tuple[str, ActionChunk] | None = None
    """The last one, if it was valid, and the instruction that it answered."""


class Engine:
    """Runs one policy. One inference at a time: callers with several threads must take turns.
    What was seen before counts, with pruning or a drafter: see `past`.

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

    Raises:
        EngineError, MemoryLimitError, VariantError: a parameter cannot be honoured.
        PruningError: the checkpoint's pruner is not for it.
    """

    def __init__(self, checkpoint: Checkpoint, codec: PolicyCodec, *,
                 variant: Variant | None = None, malformed: str = 'constrain',
                 max_decode_tokens: int | None = None, memory_limit_mb: float = 0,
                 compiler_options: CompilerOptions = ()):
        self._codec = codec
        self.model = Pi0Fast(checkpoint.config)
        self._compiler = Compiler(compiler_options)
        self.attention = AttentionChooser()
        """Knows which attention was measured to be the fastest for which shape."""
        self._store = ParameterStore(self.model, checkpoint, limit_mb=memory_limit_mb)
        self._pruning = PolicyPruner.load(checkpoint.folder, checkpoint.config, tuple(
            key in codec.profile.cameras for key in checkpoint.config.camera_keys))
        self.past = Past()
        """Of the robot whose observations come; another one here goes on with another robot."""
        self._speculation = Speculation.load(checkpoint.folder, self.model, codec)
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
            self._thread = threading.Thread(target=self._compile_wanted, daemon=True,
                                            name=COMPILE_THREAD)
            self._thread.start()

    def check(self, variant: Variant) -> None:
        """Check that a variant could run beside what runs now.

        Raises:
            MemoryLimitError: there would be no room for its weights.
            VariantError: the checkpoint has no such weights, or no such drafter.
        """
        self._speculation.check(variant)
        self._store.check(Form.of(variant), frozenset({self._active.form}))

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is compiled in the background; tell whether that came in time."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        return self._thread is None

    def _compile_wanted(self) -> None:
        """Compile what is wanted, until that is there. Runs in a thread of its own."""
        _yield_to_inference()
        while True:
            with self._lock:
                wanted = self._wanted
                if wanted in self._programs:
                    self._thread = None
                    return
            try:
                program = self._make(wanted)
                program.warm_up()
                for shapes in tuple(self._seen_shapes):
                    program.pictures.compile(shapes)
            except Exception as error:  # Whatever it is, the robot keeps what runs.
                self._give_up(wanted, f'{type(error).__name__}: {error}')
            else:
                with self._lock:
                    self._programs[wanted] = program

    def _give_up(self, wanted: Choice, reason: str) -> None:
        with self._lock:
            if self._wanted == wanted:
                self._wanted = self._active.choice
                self.failure = f'{wanted.variant.name}: {reason}'

    def _make(self, choice: Choice) -> Program:
        with self._lock:
            kept = {program.form for program in self._programs.values()}
            in_use = frozenset({self._active.form}) if self._programs else frozenset()
        program = Program(choice, self.model, self._codec, self._store, self._compiler,
                          self.attention, self._pruning, self._speculation, in_use=in_use,
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
        clock = Clock()
        program = self._swap()
        encoded = self._codec.encode(observation)
        drafter = program.decoding.drafter(self._chunk_before(observation), observation)
        preprocess_ms = clock.lap()
        ids, stats = program.run(encoded, clock, self.past.pruning, observation.instruction,
                                 drafter)
        self._notice_shapes(encoded, program)
        actions, reason = self._actions(ids, encoded, program)
        stats = replace(stats, preprocess_ms=preprocess_ms, postprocess_ms=clock.lap(),
                        total_ms=clock.total)
        chunk = ActionChunk(actions=actions, valid=not reason, reason=reason, token_ids=ids,
                            stamp_ns=observation.stamp_ns, stats=stats)
        self.past.chunk = (observation.instruction, chunk) if chunk.valid else None
        return chunk

    def _chunk_before(self, observation: Observation) -> ActionChunk | None:
        """Return the last chunk, if it was for the same instruction."""
        if self.past.chunk is None or self.past.chunk[0] != observation.instruction:
            return None
        return self.past.chunk[1]

    def _swap(self) -> Program:
        """Return the program to run: the one that is wanted as soon as it is there."""
        with self._lock:
            self._active = self._programs.get(self._wanted, self._active)
            return self._active

    def _notice_shapes(self, encoded: EncodedObservation, program: Program) -> None:
        """Have the resizing of pictures of a new size compiled, for inferences to come."""
        shapes = tuple(encoded.images[key].shape for key in sorted(encoded.images))
        if shapes not in self._seen_shapes:
            self._seen_shapes.add(shapes)

            def compile_resize() -> None:
                _yield_to_inference()
                program.pictures.compile(shapes)

            threading.Thread(target=compile_resize, daemon=True, name=COMPILE_THREAD).start()

    def _actions(self, ids: np.ndarray, encoded: EncodedObservation, program: Program,
                 ) -> tuple[np.ndarray, str]:
        """Decode ids; return actions in robot units and '', or none and the reason."""
        nothing = np.zeros((0, self._codec.profile.action_dim), np.float32)
        if program.choice.malformed == FIXED:
            return nothing, 'fixed: a given number of ids, for measuring only'
        try:
            actions = self._codec.decode(ids, encoded)
        except MalformedChunkError as error:
            return nothing, f'malformed: {error}'
        if not np.isfinite(actions).all():
            return nothing, 'not finite: the actions have NaN or infinity in them'
        return actions, ''


def _yield_to_inference() -> None:
    """Let this thread and those that it starts compute when nothing else does (Linux only)."""
    if hasattr(os, 'setpriority'):
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), COMPILE_NICENESS)
