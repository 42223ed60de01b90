"""One variant of one policy, ready to run: its stages, its weights, its executables."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.attention_choice import AttentionChooser, AttentionShape
from ros_pi0_fast.accel.draft_length import DraftLength
from ros_pi0_fast.accel.drafters import Drafter
from ros_pi0_fast.accel.quantized_cache import QuantizedLayerCache
from ros_pi0_fast.codec.policy_codec import EncodedObservation, PolicyCodec
from ros_pi0_fast.codec.resize import resize_with_pad
from ros_pi0_fast.engine.compiler import Compiler
from ros_pi0_fast.engine.parameters import Form, ParameterStore
from ros_pi0_fast.engine.speculation import Speculation, draft_lengths
from ros_pi0_fast.engine.stages import Decode, Prefill, Resize, Speculate, Vision, Vocabulary
from ros_pi0_fast.engine.variant import Variant
from ros_pi0_fast.model.attention import folded, reference
from ros_pi0_fast.model.cache import LayerCache
from ros_pi0_fast.model.decode import GrammarTables
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.types import ActionChunk, InferenceStats, Observation

CACHES = {'none': LayerCache, 'int8': QuantizedLayerCache}
MALFORMED = ('constrain', 'reject')
FIXED = 'fixed'
"""Decode a given number of FAST ids, whatever they mean: for measuring with random weights."""
BUCKET = 32
"""Prompts are padded to a multiple of this many ids, or to max_token_len."""
CALIBRATIONS = 3
"""How often each number of guessed ids is measured at the start."""
FREE_IDS = 256
"""Most ids that are decoded freely, as in openpi."""


class EngineError(ValueError):
    """The engine cannot be built or run as asked; the message names the parameter."""


class Clock:
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


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is asked of the engine."""

    variant: Variant
    malformed: str
    """'constrain', 'reject', or FIXED."""


class Program:
    """Runs one choice. Stages are compiled by `warm_up`, or when they are first needed.

    Args:
        choice: What to run.
        model: The network.
        codec: Of the same checkpoint.
        store: Its weights.
        compiler: Shared with other programs, and so the next.
        chooser: Knows which attention is the fastest.
        speculation: Knows the drafters.
        max_decode_tokens: Ids decoded at most; None: as many as a chunk may need, or FREE_IDS.
        in_use: Forms of weights that must be kept.

    Raises:
        EngineError: max_decode_tokens is too small for a chunk.
        MemoryLimitError: there is no room for the weights.
        VariantError: the checkpoint lacks what the variant needs.
    """

    def __init__(self, choice: Choice, model: Pi0Fast, codec: PolicyCodec, store: ParameterStore,
                 compiler: Compiler, chooser: AttentionChooser, speculation: Speculation, *,
                 max_decode_tokens: int | None = None, in_use: frozenset[Form] = frozenset()):
        self.choice = choice
        self.form = Form.of(choice.variant)
        model = replace(
            model, attend=folded if choice.variant.folded_attention else reference,
            layer_cache=CACHES[choice.variant.quantized_cache])
        self._codec, self._model, self._compiler = codec, model, compiler
        speculation.check(choice.variant)
        self._speculation = speculation
        self._relaxation = speculation.relaxation(choice.variant)
        self._resize = Resize(size=model.config.siglip.image_size)
        self._vision = Vision(model=model)
        self._lengths = DraftLength(draft_lengths(choice.variant, choice.malformed))
        self._decoders = self._make_decoders(max_decode_tokens)
        self._prefill = self._make_prefill()
        if choice.variant.flash_attention:
            self._choose_attention(chooser)
        self.params = store.get(self.form, in_use)
        self.vocabulary = self._make_vocabulary()
        self._black = self._encode_black()

    # --- what is static ------------------------------------------------------------------

    @property
    def _cameras(self) -> tuple[str, ...]:
        """Keys of the cameras whose pictures are encoded in every inference."""
        if self.choice.variant.black_camera_cache:
            return tuple(sorted(self._codec.profile.cameras))
        return self._model.config.camera_keys

    @property
    def buckets(self) -> tuple[int, ...]:
        """Lengths that prompts are padded to."""
        longest = self._codec.profile.max_token_len
        if not self.choice.variant.packed_prefix:
            return (longest,)
        return (*range(BUCKET, longest, BUCKET), longest)

    def _choose_attention(self, chooser: AttentionChooser) -> None:
        """Give each stage the attention that is fastest for its shapes."""
        config, dtype = self._model.config, self._model.dtype.name
        gemma, siglip = config.gemma, config.siglip
        longest = config.num_image_tokens + self.buckets[-1]
        decoder = {'batch': 1, 'heads': gemma.num_heads, 'kv_heads': gemma.num_kv_heads,
                   'head_dim': gemma.head_dim, 'dtype': dtype}
        vision = AttentionShape(
            batch=len(self._cameras), tokens=siglip.num_tokens, slots=siglip.num_tokens,
            heads=siglip.num_heads, kv_heads=siglip.num_heads, head_dim=siglip.head_dim,
            dtype=dtype, kind='all')
        prefill = AttentionShape(tokens=longest, slots=longest, kind='prefix', **decoder)
        decode = AttentionShape(tokens=1, slots=self._prefill.capacity, kind='cache', **decoder)

        def chosen(stage: Any, shape: AttentionShape) -> Any:
            return replace(stage, model=replace(self._model, attend=chooser.choose(shape)))

        self._vision = chosen(self._vision, vision)
        self._prefill = chosen(self._prefill, prefill)
        verify = replace(decode, tokens=1 + max(self._decoders))
        self._decoders = {length: chosen(stage, verify if length else decode)
                          for length, stage in self._decoders.items()}

    def _make_decoders(self, limit: int | None) -> dict[int, Decode]:
        """Return what decodes, by the number of ids that are guessed for a pass."""
        codec, malformed, variant = self._codec, self.choice.malformed, self.choice.variant
        needed = FREE_IDS if malformed == 'reject' else codec.grammar.max_ids
        most = needed if limit is None or malformed == FIXED else min(needed, limit)
        if malformed == FIXED:
            most = limit or needed
        fewest = int(codec.grammar.shortest[0, -1])
        if most < fewest and malformed != FIXED:
            raise EngineError(f'max_decode_tokens: {most}, expected at least {fewest}, without '
                              f'which no chunk of {codec.profile.horizon} x '
                              f'{codec.profile.action_dim} can be complete')
        fields = {'model': self._model, 'max_ids': most, 'eos_id': codec.text.eos_id,
                  'malformed': malformed, 'constant_prefix': variant.constant_prefix,
                  'early_stop': variant.early_stop}
        return {length: Speculate(draft_length=length, **fields) if length else Decode(**fields)
                for length in self._lengths.lengths}

    def _make_prefill(self) -> Prefill:
        codec, config, variant = self._codec, self._model.config, self.choice.variant
        constants = len(codec.action_prefix_ids) + len(codec.end_ids)
        cameras = self._cameras
        return Prefill(
            model=self._model, packed=variant.packed_prefix,
            stacked_cache=not variant.in_place_cache,
            rows=tuple(cameras.index(key) if key in cameras else -1
                       for key in config.camera_keys),
            capacity=(config.num_image_tokens + codec.profile.max_token_len + constants
                      + self._max_ids + max(self._decoders)))

    @property
    def _max_ids(self) -> int:
        return next(iter(self._decoders.values())).max_ids

    def _make_vocabulary(self) -> Vocabulary:
        codec, grammar = self._codec, self._codec.grammar
        candidates = jnp.asarray(codec.fast_to_model(np.arange(codec.fast.vocab_size)), jnp.int32)
        cut = self.choice.variant.cut_head and self.choice.malformed != 'reject'
        head = self._model.head(self.params, candidates) if cut else None
        return Vocabulary(
            candidates=candidates, head=head,
            grammar=GrammarTables(count=jnp.asarray(grammar.count),
                                  next_state=jnp.asarray(grammar.next_state),
                                  shortest=jnp.asarray(grammar.shortest)),
            before=jnp.asarray(codec.action_prefix_ids), after=jnp.asarray(codec.end_ids))

    def _encode_black(self) -> jax.Array:
        """Return the tokens of a black picture, or as many zeros where none is needed."""
        config = self._model.config
        if -1 not in self._prefill.rows:
            return jnp.zeros((config.siglip.num_tokens, config.gemma.width), self._model.dtype)
        picture = jnp.zeros((1, *config.siglip.image_size, 3), jnp.uint8)
        return self._call(self._vision, picture)[0]

    # --- running -------------------------------------------------------------------------

    def warm_up(self, progress: Callable[[str], None] = lambda text: None) -> None:
        """Compile and run all that an inference may need, but for pictures of unusual sizes.

        Args:
            progress: Called with a line before each step.
        """
        size = self._model.config.siglip.image_size
        pictures = {key: np.zeros((*size, 3), np.uint8) for key in self._codec.profile.cameras}
        for i, bucket in enumerate(self.buckets, 1):
            progress(f'compiling {self.choice.variant.name} for prompts of up to {bucket} tokens '
                     f'({i} of {len(self.buckets)})')
            self.compile_resize(tuple(pictures[key].shape for key in sorted(pictures)))
            encoded = EncodedObservation(
                images=pictures, prompt_ids=np.ones(bucket, np.int32),
                normalized_state=np.zeros(self._codec.profile.state_dim, np.float32))
            # Decoding does not depend on the bucket.
            for length in self._decoders if i == 1 else list(self._decoders)[:1]:
                self.run(encoded, Clock(), self.drafter(), length)
        if len(self._decoders) > 1:
            self._measure(encoded)

    def _measure(self, encoded: EncodedObservation) -> None:
        """Measure what a pass costs, with each number of guessed ids in turn."""
        for length in CALIBRATIONS * list(self._decoders):
            _, stats = self.run(encoded, Clock(), self.drafter(), length)
            self._lengths.calibrate(length, stats.decode_ms / max(1, stats.target_passes))

    def drafter(self, chunk: ActionChunk | None = None, observation: Observation | None = None,
                ) -> Drafter | None:
        """Return what guesses in the next inference: see Speculation.drafter; None for nothing."""
        if not max(self._decoders):
            return None
        return self._speculation.drafter(self.choice.variant, chunk, observation)

    def compile_resize(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Compile the resizing of pictures of these shapes, one a camera of the robot, sorted."""
        if self.choice.variant.device_resize:
            images = tuple(jax.ShapeDtypeStruct(shape, jnp.uint8)
                           for shape in self._with_black(list(shapes)))
            self._compiler.get((self._resize, tuple(image.shape for image in images)),
                               self._resize, images)

    def _with_black(self, shapes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Return the shape of each picture that is encoded, black ones at the model's size."""
        present = dict(zip(sorted(self._codec.profile.cameras), shapes, strict=True))
        return [present.get(key, (*self._resize.size, 3)) for key in self._cameras]

    def _pictures(self, encoded: EncodedObservation) -> np.ndarray | jax.Array:
        """Return uint8 [cameras, h, w, 3].

        Pictures of a size that nothing was compiled for are resized on the host, to the same
        pixels, so that no camera can make an inference wait for the compiler.
        """
        black = np.zeros((*self._resize.size, 3), np.uint8)
        images = tuple(encoded.images.get(key, black) for key in self._cameras)
        if self.choice.variant.device_resize:
            found = self._compiler.find((self._resize, tuple(image.shape for image in images)))
            if found is not None:
                return found(images)
        return np.stack([resize_with_pad(image, *self._resize.size) for image in images])

    def run(self, encoded: EncodedObservation, clock: Clock, drafter: Drafter | None,
            length: int | None = None) -> tuple[np.ndarray, InferenceStats]:
        """Run the device's stages; return the model ids and what they cost.

        Args:
            encoded: The model's inputs.
            clock: Of the inference.
            drafter: What `drafter` returned.
            length: Ids to guess for a pass; None: what pays, and take note of what it cost.
        """
        drafted = self._lengths.choose() if length is None else length
        at_once = self.choice.variant.one_round_trip
        times = {}

        def lap(stage: str, result: Any) -> None:
            times[stage] = clock.lap(result)

        seen = self._call(self._vision, self._pictures(encoded))
        if not at_once:
            lap('vision_ms', seen)
        tokens = len(encoded.prompt_ids)
        prompt = np.zeros(next(size for size in self.buckets if size >= tokens), np.int32)
        prompt[:tokens] = encoded.prompt_ids
        hidden, cache = self._call(self._prefill, seen, self._black, prompt, np.int32(tokens))
        if not at_once:
            lap('prefill_ms', hidden)
        guessed = (drafter, self._relaxation) if drafted else ()
        *result, _ = self._call(self._decoders[drafted], self.vocabulary, hidden, cache, *guessed,
                                donate=(3,))
        if at_once:  # Waited for in turn, so that each stage's time is known nevertheless.
            lap('vision_ms', seen)
            lap('prefill_ms', hidden)
        lap('decode_ms', result)
        ids, stats = self._finish(*jax.device_get(result)[:3], tokens, times)
        if drafted:
            proposed, accepted = map(int, result[3:])
            stats = replace(stats, draft_length=drafted, drafted_tokens=proposed,
                            accepted_tokens=accepted)
        if length is None:
            self._lengths.record(drafted, passes=max(1, stats.target_passes),
                                 accepted=stats.accepted_tokens, ms=stats.decode_ms)
        return ids, replace(stats, acceptance=self._lengths.acceptance if guessed else 0.0)

    def _call(self, stage: Callable[..., Any], *arguments: Any,
              donate: tuple[int, ...] = ()) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        key = (stage, self.form, structure, tuple(leaf.shape for leaf in leaves))
        compiled = self._compiler.get(key, stage, self.params, *arguments, donate=donate)
        return compiled(self.params, *arguments)

    def _finish(self, ids: np.ndarray, count: np.ndarray, steps: np.ndarray, length: int,
                times: dict[str, float]) -> tuple[np.ndarray, InferenceStats]:
        """Cut the ids to those of the chunk; say what was done."""
        codec, ids = self._codec, ids[:count]
        fed = 0
        if self.choice.malformed == 'constrain':
            if self.choice.variant.constant_prefix:
                fed = len(codec.action_prefix_ids)
                ids = np.concatenate([codec.action_prefix_ids, ids])
            if not self.choice.variant.early_stop:
                ids = ids[:-len(codec.end_ids)]
        stats = InferenceStats(
            variant=self.choice.variant.name, prompt_tokens=length,
            prefix_tokens=self._model.config.num_image_tokens + length,
            generated_tokens=fed + int(count), target_passes=int(steps) - 1 + bool(fed))
        return ids, replace(stats, **times)
