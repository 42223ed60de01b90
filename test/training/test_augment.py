import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ros_pi0_fast.training.augment import AugmentConfig, augment

COLOURS = {'red': (200, 30, 30), 'green': (30, 160, 50), 'blue': (40, 60, 200),
           'yellow': (220, 200, 40)}
OFF = AugmentConfig(shift_pixels=0, brightness=0, contrast=0, channel_gain=0, noise=0)


def nearest_colour(pixel: np.ndarray) -> str:
    """Name by direction in RGB, so that brightness does not matter."""
    unit = pixel / np.linalg.norm(pixel)
    return max(COLOURS, key=lambda name: unit @ np.asarray(COLOURS[name])
               / np.linalg.norm(COLOURS[name]))


def test_switched_off_changes_nothing() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(augment(jnp.asarray(images), jax.random.key(0), OFF), images)


def test_each_image_gets_its_own_draw_and_range_holds() -> None:
    images = jnp.full((4, 8, 8, 3), 250, jnp.uint8)
    out = np.asarray(augment(images, jax.random.key(1), AugmentConfig(brightness=0.5)))
    assert len({float(image.mean()) for image in out}) == 4
    assert out.min() >= 0 and out.max() <= 255


def test_shift_moves_a_dot_by_at_most_the_limit_and_reaches_it() -> None:
    images = np.zeros((64, 9, 9, 3), np.uint8)
    images[:, 4, 4] = 255
    config = AugmentConfig(shift_pixels=2, brightness=0, contrast=0, channel_gain=0, noise=0)
    out = np.asarray(augment(jnp.asarray(images), jax.random.key(2), config))
    places = np.argwhere(out[..., 0] > 128)[:, 1:]
    assert len(places) == 64
    assert set(np.unique(places)) == {2, 3, 4, 5, 6}


def test_no_colour_turns_into_another() -> None:
    for name, colour in COLOURS.items():
        images = np.full((256, 6, 6, 3), 110, np.uint8)
        images[:, 2:4, 2:4] = colour
        out = np.asarray(augment(jnp.asarray(images), jax.random.key(3), AugmentConfig()))
        # One pixel in, so that a shift never leaves the patch.
        middle = out[:, 2:4, 2:4].reshape(256, 4, 3)
        inside = middle[np.arange(256), np.linalg.norm(
            middle - np.asarray(colour), axis=-1).argmin(axis=1)]
        assert {nearest_colour(pixel) for pixel in inside} == {name}


def test_wrong_type_is_refused() -> None:
    with pytest.raises(ValueError, match='float32'):
        augment(jnp.zeros((1, 4, 4, 3)), jax.random.key(0), AugmentConfig())
    with pytest.raises(ValueError, match=r'brightness is 1\.5'):
        AugmentConfig(brightness=1.5)
