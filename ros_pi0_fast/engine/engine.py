"""From an observation to an action chunk."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.codec.fast import MalformedChunkError
from ros_pi0_fast.codec.policy_codec import EncodedObservation, PolicyCodec
from ros_pi0_fast.engine.compiler import Executables
from ros_pi0_fast.engine.stages import Stages
from ros_pi0_fast.engine.variant import Variant
from ros_pi0_fast.model.decode import GrammarTables
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.types import ActionChunk, InferenceStats, Observation
from ros_pi0_fast.weights.checkpoint import Checkpoint

MALFORMED = ('constrain', 'reject')
BUCKET = 32
"""Prompts are padded to a multiple of this many ids, or to max_token_len."""


class EngineError(ValueError):
    """The engine cannot be built as asked; the message names the parameter."""


class _Clock:
    """Milliseconds between laps, after the device is done."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()

    def lap(self, result: Any = None) -> float:
        """Wait for a result of the device and return the time since the last lap."""
        jax.block_until_ready(result)
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        return 1e3 * elapsed

    @property
    def total(self) -> float:
        """Time until the last lap."""
        return 1e3 * (self._last - self._start)


class Engine:
    """Runs one policy. One inference at a time: callers with several threads must take turns.

    Args:
        checkpoint: Weights and sizes. Its parameters may be given up by the caller afterwards.
        codec: Of the same checkpoint.
        variant: What is switched on.
        malformed: 'constrain': only ids are chosen from which a whole chunk comes. 'reject': the
            model decodes freely, as in openpi, and what is no chunk is flagged so.
        max_decode_tokens: Ids decoded at most; None: as many as a chunk may need, or 256 freely.

    Raises:
        EngineError: a parameter cannot be honoured.
    """

    def __init__(self, checkpoint: Checkpoint, codec: PolicyCodec, *,
                 variant: Variant | None = None, malformed: str = 'constrain',
                 max_decode_tokens: int | None = None):
        self.variant = variant or Variant()
        self._codec = codec
        self._model = Pi0Fast(checkpoint.config)
        params = jax.tree.map(jnp.asarray, checkpoint.params)
        self._params = self._model.unroll(params) if self.variant.unrolled_layers else params
        self._executables = Executables()
        self._max_decode_tokens = max_decode_tokens
        self._device_constants()
        self.malformed = malformed

    def _device_constants(self) -> None:
        """Put on the device, once, what every inference needs."""
        codec, grammar = self._codec, self._codec.grammar
        self._candidates = jnp.asarray(codec.fast_to_model(np.arange(codec.fast.vocab_size)))
        self._tables = GrammarTables(
            count=jnp.asarray(grammar.count), next_state=jnp.asarray(grammar.next_state),
            shortest=jnp.asarray(grammar.shortest))
        self._constant = jnp.asarray(codec.action_prefix_ids)
        self._heads = {'constrain': self._model.head(self._params, self._candidates),
                       'reject': self._model.head(self._params)}
        size = self._model.config.siglip.image_size
        absent = set(self._model.config.camera_keys) - set(codec.profile.cameras)
        self._black = jnp.zeros((self._model.config.siglip.num_tokens,
                                 self._model.config.gemma.width), self._model.dtype)
        if absent:
            picture = jnp.zeros((1, *size, 3), jnp.uint8)
            self._black = jax.jit(self._model.embed_image)(self._params, picture)[0]

    @property
    def compilations(self) -> int:
        """Executables compiled so far."""
        return self._executables.count

    @property
    def malformed(self) -> str:
        """'constrain' or 'reject'; takes effect with the next inference."""
        return self._malformed

    @malformed.setter
    def malformed(self, value: str) -> None:
        if value not in MALFORMED:
            raise EngineError(f'malformed: {value!r}, expected one of {", ".join(MALFORMED)}')
        self._stages = self._make_stages(constrained=value == 'constrain')
        self._malformed = value

    def _make_stages(self, *, constrained: bool) -> Stages:
        codec, config = self._codec, self._model.config
        needed = codec.grammar.max_ids if constrained else 256
        max_ids = needed if self._max_decode_tokens is None else min(
            needed, self._max_decode_tokens)
        fewest = int(codec.grammar.shortest[0, -1])
        if max_ids < fewest:
            raise EngineError(f'max_decode_tokens: {max_ids}, expected at least {fewest}, without '
                              f'which no chunk of {codec.profile.horizon} x '
                              f'{codec.profile.action_dim} can be complete')
        prefix = config.num_image_tokens + codec.profile.max_token_len
        return Stages(
            model=self._model, cameras=tuple(sorted(codec.profile.cameras)), max_ids=max_ids,
            capacity=prefix + len(codec.action_prefix_ids) + max_ids,
            eos_id=codec.text.eos_id, constrained=constrained)

    @property
    def buckets(self) -> tuple[int, ...]:
        """Lengths that prompts are padded to."""
        longest = self._codec.profile.max_token_len
        if not self.variant.packed_prompt:
            return (longest,)
        return (*range(BUCKET, longest, BUCKET), longest)

    def warm_up(self, progress: Callable[[str], None] = lambda text: None) -> None:
        """Compile what any inference will need, but for the resizing of pictures of unusual size.

        Args:
            progress: Called with a line before each step.
        """
        size = self._model.config.siglip.image_size
        pictures = {key: np.zeros((*size, 3), np.uint8) for key in self._codec.profile.cameras}
        for i, bucket in enumerate(self.buckets, 1):
            progress(f'compiling for prompts of up to {bucket} tokens '
                     f'({i} of {len(self.buckets)})')
            encoded = EncodedObservation(
                images=pictures, prompt_ids=np.ones(bucket, np.int32),
                normalized_state=np.zeros(self._codec.profile.state_dim, np.float32))
            self._generate(encoded, _Clock())

    def infer(self, observation: Observation) -> ActionChunk:
        """Answer an observation.

        Returns:
            A chunk; not valid, without actions and with a reason, if the model's answer is none.

        Raises:
            ObservationError: the observation does not fit the robot profile.
        """
        clock = _Clock()
        encoded = self._codec.encode(observation)
        preprocess_ms = clock.lap()
        ids, stats = self._generate(encoded, clock)
        actions, reason = self._actions(ids, encoded)
        stats = replace(stats, preprocess_ms=preprocess_ms, postprocess_ms=clock.lap(),
                        total_ms=clock.total)
        return ActionChunk(actions=actions, valid=not reason, reason=reason, token_ids=ids,
                           stamp_ns=observation.stamp_ns, stats=stats)

    def _actions(self, ids: np.ndarray, encoded: EncodedObservation) -> tuple[np.ndarray, str]:
        """Decode ids; return actions in robot units and '', or none and the reason."""
        nothing = np.zeros((0, self._codec.profile.action_dim), np.float32)
        try:
            actions = self._codec.decode(ids, encoded)
        except MalformedChunkError as error:
            return nothing, f'malformed: {error}'
        if not np.isfinite(actions).all():
            return nothing, 'not finite: the actions have NaN or infinity in them'
        return actions, ''

    def _generate(self, encoded: EncodedObservation, clock: _Clock,
                  ) -> tuple[np.ndarray, InferenceStats]:
        """Run the device's stages; return the model ids and what they cost."""
        stages, compiled = self._stages, self._executables.get
        images = tuple(encoded.images[key] for key in stages.cameras)
        shapes = tuple(image.shape for image in images)
        seen = compiled(('resize', shapes), stages.resize, images)(images)
        seen = compiled('vision', stages.vision, self._params, seen)(self._params, seen)
        vision_ms = clock.lap(seen)

        length = len(encoded.prompt_ids)
        bucket = next(size for size in self.buckets if size >= length)
        prompt = np.zeros(bucket, np.int32)
        prompt[:length] = encoded.prompt_ids
        arguments = (self._params, seen, self._black, prompt, np.int32(length))
        hidden, cache = compiled(('prefill', stages, bucket), stages.prefill, *arguments)(
            *arguments)
        prefill_ms = clock.lap(hidden)

        arguments = (self._params, self._heads[self._malformed], self._candidates, self._tables,
                     self._constant, hidden, cache)
        ids, count, steps, _ = compiled(('decode', stages), stages.decode, *arguments,
                                        donate=(6,))(*arguments)
        decode_ms = clock.lap(ids)
        ids, count, steps = jax.device_get((ids, count, steps))
        ids = ids[:count]
        constant = self._codec.action_prefix_ids if stages.constrained else ids[:0]
        return np.concatenate([constant, ids]), InferenceStats(
            variant=self.variant.name, vision_ms=vision_ms, prefill_ms=prefill_ms,
            decode_ms=decode_ms, prompt_tokens=length,
            prefix_tokens=self._model.config.num_image_tokens + length,
            generated_tokens=len(constant) + int(count),
            target_passes=int(steps) - 1 + bool(len(constant)))
