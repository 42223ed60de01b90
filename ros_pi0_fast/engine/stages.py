"""The stages of an inference as pure functions: resize, vision, prefill, decode.

Each is a frozen value with what is static about it, and so the key under which it is compiled:
variants that agree about a stage share its executable. A batch of one throughout. Between the
stages arrays stay on the device. Those that take parameters name the tower that they read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.drafters import Drafter
from ros_pi0_fast.accel.relaxation import Relaxation
from ros_pi0_fast.accel.speculative import SpeculativeOptions, speculate
from ros_pi0_fast.engine.towers import IMAGES, LANGUAGE
from ros_pi0_fast.model import masks
from ros_pi0_fast.model.cache import KVCache
from ros_pi0_fast.model.decode import DecodeOptions, Forced, GrammarTables, greedy
from ros_pi0_fast.model.einsum import Weight
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.model.resize import resize_with_pad


@dataclass(frozen=True, kw_only=True)
class Resize:
    """Brings pictures of any sizes to the model's."""

    size: tuple[int, int]

    def __call__(self, images: tuple[jax.Array, ...]) -> jax.Array:
        """Resize pictures uint8 [h, w, 3]: [cameras, height, width, 3]."""
        with jax.named_scope('resize'):
            return jnp.stack([resize_with_pad(image, *self.size) for image in images])


@dataclass(frozen=True, kw_only=True)
class Vision:
    """Turns pictures into tokens."""

    tower: ClassVar[str] = IMAGES
    model: Pi0Fast

    def __call__(self, params: Params, images: jax.Array) -> jax.Array:
        """Encode pictures uint8 [cameras, h, w, 3]: [cameras, n, d]."""
        with jax.named_scope('vision'):
            return self.model.embed_image(params, images)


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """Runs the prefix through the decoder."""

    tower: ClassVar[str] = LANGUAGE
    model: Pi0Fast
    rows: tuple[int, ...]
    """For each camera of the model, its row among the encoded pictures; -1: it is black."""
    capacity: int
    """Slots of the key-value cache."""
    packed: bool
    """Off: as openpi does it, right-aligned and under a dense mask."""
    stacked_cache: bool

    def __call__(self, params: Params, seen: jax.Array, black: jax.Array, prompt: jax.Array,
                 prompt_length: jax.Array) -> tuple[jax.Array, KVCache]:
        """Prefill.

        Args:
            params: Parameters.
            seen: [cameras, n, d]: tokens of the pictures that were encoded.
            black: [n, d]: tokens of a black picture.
            prompt: int32 [bucket].
            prompt_length: int32 []: ids of it that count.

        Returns:
            The output [1, 1, d] at the last token, and the filled cache.
        """
        model = self.model
        images = jnp.concatenate([black if row < 0 else seen[row] for row in self.rows])
        embeddings = jnp.concatenate([images, model.embed_tokens(params, prompt[None])[0]])[None]
        cache = model.init_cache(params, 1, self.capacity, stacked=self.stacked_cache)
        length = images.shape[0] + prompt_length
        if self.packed:
            return model.prefill(params, embeddings, length[None], cache, last_only=True)
        exists = jnp.arange(embeddings.shape[1])[None] < length
        aligned = masks.right_align(embeddings, exists, jnp.zeros_like(exists, jnp.int32))
        hidden, cache = model.prefill_aligned(params, *aligned, cache)
        return hidden[:, -1:], cache


@flax.struct.dataclass
class Vocabulary:
    """What decoding knows of the ids."""

    candidates: jax.Array
    """int32 [n]: model ids of the FAST ids."""
    head: Weight | None
    """The output head's rows of the candidates; None where all rows are used."""
    grammar: GrammarTables
    before: jax.Array
    """int32: model ids of 'Action: '."""
    after: jax.Array
    """int32: model ids of '|' and EOS."""


@flax.struct.dataclass
class Decoded:
    """What decoding has to tell, in one array: each one costs the host a copy of its own."""

    numbers: jax.Array | np.ndarray
    """int32 [4 + most]: the fields below, then the ids."""

    @classmethod
    def of(cls, ids: jax.Array, count: jax.Array, passes: jax.Array,
           proposed: jax.typing.ArrayLike = 0, accepted: jax.typing.ArrayLike = 0) -> Decoded:
        """Join them."""
        return cls(jnp.concatenate([jnp.stack(
            [jnp.asarray(number, jnp.int32) for number in (count, passes, proposed, accepted)]),
            ids]))

    @property
    def count(self) -> jax.Array | np.ndarray:
        """int32 []: how many ids count."""
        return self.numbers[0]

    @property
    def passes(self) -> jax.Array | np.ndarray:
        """int32 []: of the decoder, that of the prefill included."""
        return self.numbers[1]

    @property
    def proposed(self) -> jax.Array | np.ndarray:
        """int32 []: ids that were guessed for places that there were."""
        return self.numbers[2]

    @property
    def accepted(self) -> jax.Array | np.ndarray:
        """int32 []: how many of those were right."""
        return self.numbers[3]

    @property
    def ids(self) -> jax.Array | np.ndarray:
        """int32 [most]"""
        return self.numbers[4:]


@dataclass(frozen=True, kw_only=True)
class Decode:
    """Chooses ids until the chunk is complete, or EOS, or a limit."""

    tower: ClassVar[str] = LANGUAGE
    model: Pi0Fast
    max_ids: int
    """Most ids to choose."""
    eos_id: int
    malformed: str
    """See engine.MALFORMED."""
    constant_prefix: bool
    early_stop: bool

    def __call__(self, params: Params, vocabulary: Vocabulary, hidden: jax.Array, cache: KVCache,
                 ) -> tuple[Decoded, KVCache]:
        """Decode.

        Args:
            params: Parameters.
            vocabulary: What is known of the ids.
            hidden: [1, 1, d]: output at the prefix's last token.
            cache: Of the prefix; its buffers are taken over.

        Returns:
            What was decoded, and the cache (which is returned so that its buffers can be the ones
            of the argument).
        """
        arguments = self._arguments(params, vocabulary)
        if self._constant:
            hidden, cache = self.model.decode_step(params, vocabulary.before[None], cache)
            hidden = hidden[:, -1:]
            arguments['forced'] = arguments['forced'].replace(before=vocabulary.before[:0])
        state = greedy(self.model, params, hidden, cache,
                       options=DecodeOptions(max_ids=self.max_ids, eos_id=self._eos), **arguments)
        return Decoded.of(state.tokens[0], state.length[0], state.step), state.cache

    @property
    def _eos(self) -> int | None:
        return self.eos_id if self.malformed == 'reject' else None

    @property
    def _constant(self) -> bool:
        """Tell whether 'Action: ' goes through the decoder in one pass, and is no result."""
        return self.constant_prefix and self.malformed == 'constrain'

    def _arguments(self, params: Params, vocabulary: Vocabulary) -> dict[str, Any]:
        """Return how to decode."""
        arguments: dict[str, Any] = {}
        if self.malformed != 'reject':
            head = vocabulary.head
            arguments = {'candidates': vocabulary.candidates,
                         'head': self.model.head(params) if head is None else head}
        if self.malformed == 'constrain':
            arguments['grammar'] = vocabulary.grammar
            after = vocabulary.after
            arguments['forced'] = Forced(before=vocabulary.before,
                                         after=after[:0] if self.early_stop else after)
        return arguments


@dataclass(frozen=True, kw_only=True)
class Speculate(Decode):
    """Chooses the same ids in fewer passes."""

    draft_length: int
    """Ids that are guessed for each pass."""

    def __call__(self, params: Params, vocabulary: Vocabulary, hidden: jax.Array, cache: KVCache,
                 drafter: Drafter, relaxation: Relaxation | None) -> tuple[Decoded, KVCache]:
        """Decode: see Decode.

        Args:
            params: Parameters.
            vocabulary: What is known of the ids.
            hidden: See Decode.
            cache: See Decode.
            drafter: What guesses.
            relaxation: Of what is accepted; None for exact acceptance.
        """
        done = speculate(
            self.model, params, hidden, cache, drafter=drafter, relaxation=relaxation,
            options=SpeculativeOptions(max_ids=self.max_ids, eos_id=self._eos,
                                       draft_length=self.draft_length),
            **self._arguments(params, vocabulary))
        constant = len(vocabulary.before) if self._constant else 0
        return Decoded.of(
            done.tokens[0, constant:], done.length[0] - constant,
            done.step - int(self._constant), done.proposed, done.accepted), done.cache
