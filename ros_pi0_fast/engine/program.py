"""One variant of one policy, ready to run: its stages, its weights, its executables."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.attention_choice import AttentionChooser, AttentionShape
from ros_pi0_fast.accel.drafters import Drafter
from ros_pi0_fast.accel.kernels.few_tokens import FewTokensBlock
from ros_pi0_fast.accel.matrices import Matrices
from ros_pi0_fast.accel.pruning import PruningState, Ranking
from ros_pi0_fast.accel.quantized_cache import QuantizedLayerCache
from ros_pi0_fast.codec.policy_codec import EncodedObservation, PolicyCodec
from ros_pi0_fast.engine.choice import Choice
from ros_pi0_fast.engine.compiler import Share
from ros_pi0_fast.engine.decoding import Decoding
from ros_pi0_fast.engine.parameters import Form, ParameterStore
from ros_pi0_fast.engine.pictures import Pictures
from ros_pi0_fast.engine.pruning import (
    Listen,
    PolicyPruner,
    PrunedPrefill,
    PruningMemory,
    kept_by_camera,
)
from ros_pi0_fast.engine.speculation import Speculation
from ros_pi0_fast.engine.stages import Decoded, Prefill, Resize, Vision, Vocabulary
from ros_pi0_fast.engine.towers import IMAGES, LANGUAGE, Stage, Tower
from ros_pi0_fast.model.attention import folded, reference
from ros_pi0_fast.model.cache import KVCache, LayerCache
from ros_pi0_fast.model.decode import GrammarTables
from ros_pi0_fast.model.gemma import Block
from ros_pi0_fast.model.pi0_fast import HEAD_EQUATION, Pi0Fast
from ros_pi0_fast.types import InferenceStats

CACHES = {'none': LayerCache, 'int8': QuantizedLayerCache}
BUCKET = 32
"""Prompts are padded to a multiple of this many ids, or to max_token_len."""
CALIBRATIONS = 3
"""How often each number of guessed ids is measured at the start."""


class Clock:
    """Milliseconds between laps, after the device is done."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()

    def lap(self, result: Any = None) -> float:
        """Wait for a result of the device, if any, and return the time since the last lap."""
        jax.block_until_ready(result)
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        return 1e3 * elapsed

    @property
    def total(self) -> float:
        """Time until the last lap."""
        return 1e3 * (self._last - self._start)


class Program:
    """Runs one choice. Stages are compiled by `warm_up`, or when they are first needed.

    Args:
        choice: What to run.
        model: The network.
        codec: Of the same checkpoint.
        store: Its weights.
        compiler: This program's share; what is next is shared with other programs.
        chooser: Knows which attention is the fastest.
        pruning: How image tokens are pruned where the variant asks for it.
        speculation: Knows the drafters.
        max_decode_tokens: Ids decoded at most; None: as many as a chunk may need, or FREE_IDS.
        in_use: Forms of weights that must be kept.

    Raises:
        EngineError: max_decode_tokens is too small for a chunk.
        MemoryLimitError: there is no room for the weights.
        VariantError: the checkpoint lacks what the variant needs.
    """

    def __init__(self, choice: Choice, model: Pi0Fast, codec: PolicyCodec, store: ParameterStore,
                 compiler: Share, chooser: AttentionChooser, pruning: PolicyPruner,
                 speculation: Speculation, *,
                 max_decode_tokens: int | None = None, in_use: frozenset[Form] = frozenset()):
        self.choice = choice
        self.form = store.form_of(choice.variant)
        model = replace(
            model, attend=folded if choice.variant.folded_attention else reference,
            layer_cache=CACHES[choice.variant.quantized_cache],
            block=FewTokensBlock if store.by_rows else Block)
        self._codec, self._model, self._compiler = codec, model, compiler
        self._pruning, self._pruner = pruning, pruning.of(choice.variant)
        self.pictures = Pictures(self._cameras, tuple(sorted(codec.profile.cameras)),
                                 Resize(size=model.config.siglip.image_size), compiler,
                                 on_device=choice.variant.device_resize)
        self._vision = Vision(model=model)
        self.decoding = Decoding(choice, model, codec, speculation, limit=max_decode_tokens)
        self._prefill = self._make_prefill()
        if choice.variant.flash_attention:
            self._choose_attention(chooser)
        self.params = store.get(self.form, in_use)
        self._towers = {name: Tower.of(self.params, name) for name in (IMAGES, LANGUAGE)}
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
        longest = self._image_tokens + self.buckets[-1]
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
        self.decoding.choose_attention(
            lambda tokens: chooser.choose(replace(decode, tokens=tokens)))

    @property
    def _image_tokens(self) -> int:
        """The most that are prefilled."""
        config = self._model.config
        there = len(self._codec.profile.cameras) * config.siglip.num_tokens
        return config.num_image_tokens if self._pruner is None else self._pruner.counts(there)[-1]

    def _make_prefill(self) -> Prefill | PrunedPrefill:
        codec, config, variant = self._codec, self._model.config, self.choice.variant
        constants = len(codec.action_prefix_ids) + len(codec.end_ids)
        cameras = self._cameras
        fields = {
            'model': self._model, 'stacked_cache': not variant.in_place_cache,
            'capacity': (self._image_tokens + codec.profile.max_token_len + constants
                         + self.decoding.slots)}
        if self._pruner is not None:
            rows = tuple(map(cameras.index, sorted(codec.profile.cameras)))
            return PrunedPrefill(pruner=self._pruner, rows=rows, **fields)
        rows = tuple(cameras.index(key) if key in cameras else -1 for key in config.camera_keys)
        return Prefill(packed=variant.packed_prefix, rows=rows, **fields)

    def _make_vocabulary(self) -> Vocabulary:
        codec, grammar = self._codec, self._codec.grammar
        candidates = jnp.asarray(codec.fast_to_model(np.arange(codec.fast.vocab_size)), jnp.int32)
        cut = self.choice.variant.cut_head and self.choice.malformed != 'reject'
        head = self._model.head(self.params, candidates) if cut else None
        if (self.choice.variant.matrix_weights and isinstance(head, jax.Array)
                and self._model.block is Block):
            # Else a CPU transposes it in every pass.
            head = Matrices.of(head, HEAD_EQUATION)
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
            self.pictures.compile(tuple(pictures[key].shape for key in sorted(pictures)))
            encoded = EncodedObservation(
                images=pictures, prompt_ids=np.ones(bucket, np.int32),
                normalized_state=np.zeros(self._codec.profile.state_dim, np.float32))
            # Decoding does not depend on the bucket.
            for length in self.decoding.lengths if i == 1 else self.decoding.lengths[:1]:
                self.try_out(encoded, length)
        if len(self.decoding.lengths) > 1:
            for length in CALIBRATIONS * self.decoding.lengths:
                self.decoding.calibrate(length, self.try_out(encoded, length))

    def try_out(self, encoded: EncodedObservation, length: int) -> InferenceStats:
        """Run an inference that is none; return what it cost."""
        return self.run(encoded, Clock(), PruningMemory(), '', self.decoding.drafter(), length)[1]

    def run(self, encoded: EncodedObservation, clock: Clock, memory: PruningMemory,
            instruction: str, drafter: Drafter | None, length: int | None = None,
            ) -> tuple[np.ndarray, InferenceStats]:
        """Run the device's stages; return the model ids and what they cost.

        Args:
            encoded: The model's inputs.
            clock: Of the inference.
            memory: Of the frames before; it is brought up to date.
            instruction: As it was given; another one makes what is remembered void.
            drafter: See Decoding.drafter.
            length: Ids to guess for a pass; None: what pays, taking note of what it cost.
        """
        guessed = self.decoding.choose() if length is None else length
        at_once = self.choice.variant.one_round_trip
        times = {}

        def lap(stage: str, result: Any) -> None:
            times[stage] = clock.lap(result)

        seen = self._call(self._vision, self.pictures(encoded))
        if not at_once:
            lap('vision_ms', seen)
        tokens = len(encoded.prompt_ids)
        prompt = np.zeros(next(size for size in self.buckets if size >= tokens), np.int32)
        prompt[:tokens] = encoded.prompt_ids
        hidden, cache, ranking = self._prefix(seen, prompt, tokens, memory, instruction)
        if not at_once:
            lap('prefill_ms', hidden)
        decoded, cache = self._call(
            self.decoding.stages[guessed], self.vocabulary, hidden, cache,
            *self.decoding.arguments(drafter, guessed), donate=(3,))
        kept = None if ranking is None else (ranking.rank, ranking.count)
        for array in jax.tree.leaves((decoded, kept)):  # On its way as soon as it is there.
            array.copy_to_host_async()
        if ranking is not None:  # While the device decodes, and before anybody waits for it.
            memory.state = self._listen(ranking, decoded, cache, tokens)
        del cache  # To give up so many buffers takes the host a while, which it has now.
        if at_once:  # Waited for in turn, so that each stage's time is known nevertheless.
            lap('vision_ms', seen)
            lap('prefill_ms', hidden)
        # Read while the chunk is decoded.
        kept = kept_by_camera(jax.device_get(kept), self._codec.profile.cameras,
                              self._model.config.siglip.grid)
        decoded = jax.device_get(decoded)
        lap('decode_ms', None)
        ids, stats = self._finish(decoded, tokens, kept, times)
        return ids, self.decoding.note(stats, guessed, int(decoded.proposed),
                                       int(decoded.accepted), learn=length is None)

    def _prefix(self, seen: jax.Array, prompt: np.ndarray, length: int, memory: PruningMemory,
                instruction: str) -> tuple[jax.Array, KVCache, Ranking | None]:
        """Run the prefix through the decoder; return its output, its cache, and what is kept."""
        if self._pruner is None:
            memory.forget()
            return *self._call(self._prefill, seen, self._black, prompt, np.int32(length)), None
        state = memory.take(self._pruner, self._prefill.tokens, instruction)
        # What is remembered stays where it is: a CUDA graph must be told of buffers that moved.
        prefix = self._call(self._prefill, self._pruning.weights, seen, prompt, np.int32(length),
                            *state, donate=(5,))
        return prefix.hidden, prefix.cache, prefix.ranking

    def _listen(self, ranking: Ranking, decoded: Decoded, cache: KVCache,
                length: int) -> PruningState:
        """Return what pruning remembers after a chunk."""
        if not self._pruner.scorer.by_history:
            return ranking.state
        return self._call(Listen(model=self._model, pruner=self._pruner), decoded, cache,
                          np.int32(length + self._fed), ranking.replace(state=None),
                          ranking.state, donate=(5,))

    def _call(self, stage: Stage, *arguments: Any,
              donate: tuple[int, ...] = ()) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        key = (stage, self.form, structure, tuple(leaf.shape for leaf in leaves))
        tower = self._towers[stage.tower]
        compiled = self._compiler.get(key, tower.fed_to(stage), tower.arrays, *arguments,
                                      donate=donate)
        return compiled(tower.arrays, *arguments)

    @property
    def _fed(self) -> int:
        """Ids that the decoder is given in one pass before it chooses any."""
        constant = self.choice.malformed == 'constrain' and self.choice.variant.constant_prefix
        return len(self._codec.action_prefix_ids) if constant else 0

    def _finish(self, decoded: Decoded, length: int, kept: dict[str, np.ndarray],
                times: dict[str, float]) -> tuple[np.ndarray, InferenceStats]:
        """Cut the ids to those of the chunk; say what was done."""
        codec, ids, fed = self._codec, decoded.ids[:decoded.count], self._fed
        if self.choice.malformed == 'constrain':
            if fed:
                ids = np.concatenate([codec.action_prefix_ids, ids])
            if not self.choice.variant.early_stop:
                ids = ids[:-len(codec.end_ids)]
        stats = InferenceStats(
            variant=self.choice.variant.name, prompt_tokens=length,
            prefix_tokens=length + (self._image_tokens if self._pruner is None else sum(
                int(mask.sum()) for mask in kept.values())), kept=kept,
            generated_tokens=fed + int(decoded.count),
            target_passes=int(decoded.passes) - 1 + bool(fed))
        return ids, replace(stats, **times)
