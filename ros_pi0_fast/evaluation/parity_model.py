"""The network, run on the inputs that openpi's was run on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.evaluation.parity_report import FolderError, Row, entry
from ros_pi0_fast.model import masks
from ros_pi0_fast.model.cache import KVCache
from ros_pi0_fast.model.config import config_from_params
from ros_pi0_fast.model.decode import greedy
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast

# Those of the golden data's README. The reference's own noise, compiled or not, is 1.2e-5.
SIGLIP, EMBEDDINGS, LOGITS, CACHE, LOSS, GRADIENT = 2e-5, 1e-4, 1e-4, 1e-4, 1e-5, 1e-3
# A gradient this much smaller than the largest is zero but for rounding (SigLIP's key biases: a
# constant added to all scores of a query changes nothing).
VANISHING = 1e-6
# Where the reference's two best logits are closer than this, either id is right.
TIE = 1e-3
EOS_ID = 1


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the reference was given, one batch."""

    images: dict[str, jax.Array]
    image_masks: dict[str, jax.Array]
    tokens: jax.Array
    token_mask: jax.Array
    ar_mask: jax.Array
    loss_mask: jax.Array

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray], path: Path) -> Inputs:
        """Take the inputs out of a variant's arrays.

        Raises:
            FolderError: one is missing.
        """
        cameras = sorted(name.removeprefix('in/image/') for name in arrays
                         if name.startswith('in/image/'))
        if not cameras:
            raise FolderError(f'{path}: no in/image/…')

        def get(name: str) -> jax.Array:
            return jnp.asarray(entry(arrays, f'in/{name}', path))

        return cls(images={key: get(f'image/{key}') for key in cameras},
                   image_masks={key: get(f'image_mask/{key}') for key in cameras},
                   tokens=get('tokenized_prompt'), token_mask=get('tokenized_prompt_mask'),
                   ar_mask=get('token_ar_mask'), loss_mask=get('token_loss_mask'))

    @property
    def batch(self) -> dict[str, Any]:
        """As Pi0Fast.loss takes it."""
        return {'images': self.images, 'image_masks': self.image_masks, 'tokens': self.tokens,
                'token_mask': self.token_mask, 'ar_mask': self.ar_mask,
                'loss_mask': self.loss_mask}

    @property
    def all_cameras(self) -> bool:
        """Tell whether no camera is masked out."""
        return all(bool(mask.all()) for mask in self.image_masks.values())

    @property
    def bidirectional(self) -> bool:
        """Tell whether no token of the prefix is causal."""
        return not bool((self.ar_mask * self.token_mask).any())


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """A prefix after the decoder has run over it."""

    embeddings: jax.Array
    mask: jax.Array
    aligned_mask: jax.Array
    hidden: jax.Array
    logits: jax.Array
    cache: KVCache


def model_for(params: Params, inputs: Inputs, dtype: str) -> Pi0Fast:
    """Return the network that parameters and inputs are for."""
    image = next(iter(inputs.images.values()))
    return Pi0Fast(config_from_params(
        params, action_dim=1, action_horizon=1, max_token_len=inputs.tokens.shape[1],
        camera_keys=tuple(inputs.images), image_size=image.shape[1:3], dtype=dtype))


embed_image = jax.jit(Pi0Fast.embed_image, static_argnums=0)
embed_tokens = jax.jit(Pi0Fast.embed_tokens, static_argnums=0)
project = jax.jit(Pi0Fast.logits, static_argnums=0)
prefill_aligned = jax.jit(Pi0Fast.prefill_aligned, static_argnums=0)
prefill_packed = jax.jit(partial(Pi0Fast.prefill, last_only=True), static_argnums=0)
loss = jax.jit(Pi0Fast.loss, static_argnums=0)
decode = jax.jit(greedy, static_argnums=0, static_argnames='options')


@partial(jax.jit, static_argnums=0)
def gradients(model: Pi0Fast, params: Params, batch: dict[str, Any]) -> Params:
    """Return the gradient of the batch's mean loss."""
    return jax.grad(lambda params: jnp.mean(model.loss(params, batch)))(params)


@partial(jax.jit, static_argnums=0)
def teacher_forced(model: Pi0Fast, params: Params, tokens: jax.Array, cache: KVCache,
                   ) -> tuple[jax.Array, KVCache]:
    """Feed tokens [b, t] one by one; return the logits after each, [b, t, vocabulary]."""
    def step(cache: KVCache, ids: jax.Array) -> tuple[KVCache, jax.Array]:
        hidden, cache = model.decode_step(params, ids[:, None], cache)
        return cache, model.logits(params, hidden[:, 0])

    cache, logits = jax.lax.scan(step, cache, tokens.T)
    return logits.swapaxes(0, 1), cache


def embed(model: Pi0Fast, params: Params, inputs: Inputs) -> tuple[jax.Array, dict]:
    """Return the prefix embeddings, and those of each camera."""
    cameras = {key: embed_image(model, params, inputs.images[key])
               for key in model.config.camera_keys}
    text = embed_tokens(model, params, inputs.tokens)
    return jnp.concatenate([*cameras.values(), text], axis=1), cameras


def run_prefix(model: Pi0Fast, params: Params, inputs: Inputs, embeddings: jax.Array,
               capacity: int) -> Prefix:
    """Run a prefix as openpi does: right-aligned, under a dense mask."""
    count = model.config.siglip.num_tokens
    exists = [jnp.repeat(inputs.image_masks[key][:, None], count, axis=1)
              for key in model.config.camera_keys]
    mask = jnp.concatenate([*exists, inputs.token_mask], axis=1)
    before = mask.shape[1] - inputs.tokens.shape[1]
    ar_mask = jnp.pad(inputs.ar_mask, ((0, 0), (before, 0)))
    x, aligned, ar_mask = masks.right_align(embeddings, mask, ar_mask)
    cache = model.init_cache(params, len(x), capacity)
    hidden, cache = prefill_aligned(model, params, x, aligned, ar_mask, cache)
    return Prefix(embeddings=x, mask=mask, aligned_mask=aligned, hidden=hidden, cache=cache,
                  logits=project(model, params, hidden[:, -1]))


def tokens_row(name: str, actual: Any, expected: np.ndarray, logits: np.ndarray, *,
               eos_id: int | None = EOS_ID) -> Row:
    """Compare chosen ids up to each row's EOS; where logits all but tie, either id will do.

    Args:
        name: Of the quantity.
        actual: Int [b, t]: ours.
        expected: Int [b, t]: the reference's.
        logits: Float [b, t, vocabulary]: the reference's, of which its ids are the largest.
        eos_id: Where a row ends: openpi goes on until all rows end at once. None compares all.
    """
    actual, expected = np.asarray(actual), np.asarray(expected).astype(np.int64)
    wrong = ties = 0
    for ours, theirs, row in zip(actual, expected, logits, strict=True):
        ends = np.flatnonzero(theirs == eos_id) if eos_id is not None else ()
        length = int(ends[0]) + 1 if len(ends) else len(theirs)
        differing = np.flatnonzero(ours[:length] != theirs[:length])
        if len(differing):
            at = differing[0]
            if abs(row[at, theirs[at]] - row[at, ours[at]]) > TIE:
                wrong += len(differing)
            else:
                ties += 1
    note = f'{ties} of {len(expected)} rows part at a tie' if ties else ''
    return Row(name=name, error=wrong, tolerance=0.0, note=note)
