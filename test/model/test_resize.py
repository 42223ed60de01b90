"""The resize in the graph is the one on the host, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ros_pi0_fast.codec.resize import resize_with_pad as on_host
from ros_pi0_fast.model.resize import resize_with_pad


@pytest.mark.parametrize('size,new_size', [
    ((120, 160), (56, 56)), ((160, 120), (56, 56)), ((64, 64), (64, 64)), ((37, 53), (64, 64)),
    ((63, 65), (64, 64)), ((64, 48), (64, 64)), ((90, 60), (48, 64)), ((1, 3), (16, 16)),
])
def test_equal_to_pillow(size, new_size):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, *size, 3)).astype(np.uint8)
    images[1] = np.where(images[1] > 127, 255, 0)
    actual = jax.jit(resize_with_pad, static_argnums=(1, 2))(images, *new_size)
    expected = np.stack([on_host(image, *new_size) for image in images])
    assert actual.dtype == jnp.uint8
    np.testing.assert_array_equal(actual, expected)


def test_tall_pictures_differ_by_a_level_at_most():
    """Pillow 13 takes the height of these first, Pillow 12 (and openpi's) the width."""
    image = np.random.default_rng(0).integers(0, 256, (90, 30, 3)).astype(np.uint8)
    actual = np.asarray(resize_with_pad(image, 48, 64)).astype(int)
    assert np.abs(actual - on_host(image, 48, 64)).max() <= 1


def test_what_cannot_be_resized_is_refused():
    with pytest.raises(TypeError, match='images: float32, expected uint8'):
        resize_with_pad(jnp.zeros((8, 8, 3)), 4, 4)
    with pytest.raises(ValueError, match='images: 1 x 100 pixels, too narrow for 8 x 8'):
        resize_with_pad(jnp.zeros((1, 100, 3), jnp.uint8), 8, 8)
