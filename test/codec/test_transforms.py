import numpy as np
import pytest

from ros_pi0_fast.codec.resize import resize_with_pad, resized_shape
from ros_pi0_fast.codec.transforms import pad_to, parse_image, to_absolute, to_delta


def test_delta_and_back():
    actions = np.arange(6, dtype=np.float32).reshape(2, 3)
    state = np.array([10.0, 20.0, 30.0, 40.0], np.float32)
    deltas = to_delta(actions, state, [True, False, True])
    np.testing.assert_array_equal(deltas, [[-10, 1, -28], [-7, 4, -25]])
    assert deltas.dtype == np.float32
    np.testing.assert_array_equal(to_absolute(deltas, state, [True, False, True]), actions)
    np.testing.assert_array_equal(actions, np.arange(6).reshape(2, 3))


def test_a_state_shorter_than_the_actions():
    actions = np.ones((1, 3))
    np.testing.assert_array_equal(
        to_delta(actions, np.array([5.0]), [True, False, False]), [[-4, 1, 1]])


def test_parse_image():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    assert parse_image(image) is image
    np.testing.assert_array_equal(parse_image(np.moveaxis(image, -1, 0)), image)
    # Truncated, not rounded: 0.999 * 255 = 254.7.
    assert parse_image(np.full((2, 2, 3), 0.999, np.float32)).max() == 254
    for wrong in (np.zeros((4, 6), np.uint8), np.zeros((4, 6, 4), np.uint8),
                  np.zeros((4, 6, 3), np.int64)):
        with pytest.raises(ValueError, match='expected uint8 or float'):
            parse_image(wrong)


def test_pad_to():
    padded = pad_to(np.array([5, 6], np.int32), 4)
    assert padded.tolist() == [5, 6, 0, 0]
    assert padded.dtype == np.int32


def test_resize_equals_openpi(golden):
    examples = np.load(golden / 'policy_libero/examples.npz')
    compared = 0
    for example in (0, 2):
        for camera, key in (('image', 'base_0_rgb'), ('wrist_image', 'left_wrist_0_rgb')):
            found = resize_with_pad(examples[f'{example}/obs/observation/{camera}'], 224, 224)
            np.testing.assert_array_equal(found, examples[f'{example}/model_in/image/{key}'])
            compared += 1
    assert compared == 4


@pytest.mark.parametrize(('shape', 'expected'), [
    ((480, 640), (168, 224, 28, 0)), ((640, 480), (224, 168, 0, 28)),
    ((100, 333), (67, 224, 78, 0)), ((64, 64), (224, 224, 0, 0)), ((224, 224), (224, 224, 0, 0))])
def test_bars(shape, expected):
    assert resized_shape(*shape, 224, 224) == expected
    image = np.full((*shape, 3), 255, np.uint8)
    result = resize_with_pad(image, 224, 224)
    height, width, top, left = expected
    inside = np.zeros((224, 224), bool)
    inside[top:top + height, left:left + width] = True
    np.testing.assert_array_equal(result == 255, np.repeat(inside[..., None], 3, axis=2))
    assert (result[~inside] == 0).all()


def test_right_size_is_left_alone():
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    assert resize_with_pad(image, 48, 64) is image


@pytest.mark.parametrize(('image', 'message'), [
    (np.zeros((4, 4, 3), np.float32), r'found float32 \[4, 4, 3\], expected uint8 \[h, w, 3\]'),
    (np.zeros((4, 4), np.uint8), r'found uint8 \[4, 4\], expected'),
    (np.zeros((0, 4, 3), np.uint8), r'found uint8 \[0, 4, 3\], expected'),
    (np.zeros((1, 4000, 3), np.uint8), r'found \[1, 4000, 3\], too narrow for 64 x 64'),
])
def test_refused_images(image, message):
    with pytest.raises(ValueError, match=message):
        resize_with_pad(image, 64, 64)
