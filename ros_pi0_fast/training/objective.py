"""Next-token loss on augmented pictures: what the policy is trained with."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ros_pi0_fast.accel.quantization import Scheme, fake_quantized
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.training.augment import AugmentConfig, augment
from ros_pi0_fast.training.data import IMAGE, TOKEN_ARRAYS
from ros_pi0_fast.training.loop import Batch, LossFunction
from ros_pi0_fast.training.pointing import (
    POINTER,
    pointing_layer,
    pointing_loss,
    without_pointer,
)


def next_token_loss(model: Pi0Fast, config: AugmentConfig | None, *, unroll: bool = False,
                    pointing: float = 0.0, scheme: Scheme | None = None) -> LossFunction:
    """Return the mean over examples of openpi's compute_loss.

    The loss takes the arrays of `data.encode_frames`: a picture is encoded once for all of its
    orders. Cameras that the robot lacks are black, as the FAST policies see them.

    Args:
        model: the network; `model.remat` chooses gradient checkpointing, `model.config.dtype` the
            precision of activations.
        config: how pictures are changed; None leaves them as they are.
        unroll: compile layers one by one instead of scanning over them.
        pointing: weight of the loss of pointing, whose weights are beside the policy's then; needs
            unrolled layers.
        scheme: quantization to train for; needs unrolled layers.

    Raises:
        ValueError: if pointing or quantization is asked for without unrolled layers.
    """
    if (pointing or scheme) and not unroll:
        raise ValueError('unroll: false, expected true with pointing and with quantization')

    def loss(params: Any, arrays: Batch, rng: jax.Array) -> tuple[jax.Array, dict]:
        batch = model_batch(model, arrays, rng, config)
        weights = model.unroll(without_pointer(params)) if unroll else params
        if scheme is not None:
            weights = fake_quantized(model, weights, scheme)
        each, middle = model.loss_and_middle(weights, batch,
                                             pointing_layer(model) if pointing else None)
        metrics = {'worst_example': jnp.max(each), 'token_loss': jnp.mean(each)}
        if not pointing:
            return jnp.mean(each), metrics
        places = arrays['places'].reshape(-1, *arrays['places'].shape[2:])
        lost, right = pointing_loss(model, params[POINTER], middle, places)
        return (jnp.mean(each) + pointing * lost,
                metrics | {'pointing_loss': lost, 'pointing_right': right})

    return loss


def model_batch(model: Pi0Fast, arrays: Batch, rng: jax.Array,
                config: AugmentConfig | None) -> dict[str, Any]:
    """Return what Pi0Fast.loss takes for arrays of `data.encode_frames`."""
    batch: dict[str, Any] = {name: array.reshape(-1, array.shape[-1])
                             for name, array in arrays.items() if name in TOKEN_ARRAYS}
    return {**batch, 'images': _pictures(model, arrays, rng, config)}


def _pictures(model: Pi0Fast, arrays: Batch, rng: jax.Array,
              config: AugmentConfig | None) -> dict[str, jax.Array]:
    """Return float pictures [b, h, w, 3] in [-1, 1] for every camera of the model."""
    pictures = {}
    for index, key in enumerate(model.config.camera_keys):
        if IMAGE + key not in arrays:
            shape = (len(arrays['tokens']), *model.config.siglip.image_size, 3)
            pictures[key] = jnp.full(shape, -1.0)
            continue
        pixels = arrays[IMAGE + key]
        if config is not None:
            pixels = augment(pixels, jax.random.fold_in(rng, index), config)
        pictures[key] = pixels / 255.0 * 2.0 - 1.0
    return pictures
