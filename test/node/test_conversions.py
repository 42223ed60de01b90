"""Camera messages become RGB pictures, or are refused in words."""

import struct
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from ros_pi0_fast.node.conversions import (
    ConversionError,
    compressed_to_rgb,
    image_to_rgb,
    stamp_ns,
    to_rgb,
)


def image(pixels, kind, padding=0, **changes):
    """Build a message as sensor_msgs/Image, `padding` bytes after each row."""
    rows = pixels.reshape(len(pixels), -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    fields = {'height': len(pixels), 'width': pixels.shape[1], 'encoding': kind,
              'step': padded.shape[1], 'data': padded.tobytes(), 'is_bigendian': 0}
    return SimpleNamespace(**{**fields, **changes})


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize('padding', [0, 3])
@pytest.mark.parametrize(('encoding', 'channels'), [
    ('rgb8', [0, 1, 2]), ('bgr8', [2, 1, 0]), ('8UC3', [2, 1, 0])])
def test_three_channels(rgb, encoding, channels, padding):
    message = image(np.ascontiguousarray(rgb[..., channels]), encoding, padding)
    np.testing.assert_array_equal(image_to_rgb(message), rgb)


@pytest.mark.parametrize(('encoding', 'channels'), [('rgba8', [0, 1, 2]), ('bgra8', [2, 1, 0])])
def test_alpha_is_dropped(rgb, encoding, channels):
    alpha = np.full((*rgb.shape[:2], 1), 7, np.uint8)
    message = image(np.concatenate([rgb[..., channels], alpha], axis=2), encoding)
    np.testing.assert_array_equal(image_to_rgb(message), rgb)


@pytest.mark.parametrize('encoding', ['mono8', '8UC1'])
def test_grey_fills_all_channels(rgb, encoding):
    grey = np.ascontiguousarray(rgb[..., :1])
    np.testing.assert_array_equal(image_to_rgb(image(grey, encoding)), np.repeat(grey, 3, axis=2))


@pytest.mark.parametrize(('is_bigendian', 'dtype'), [(1, '>u2'), (0, '<u2')])
@pytest.mark.parametrize(('encoding', 'channels'), [
    ('rgb16', [0, 1, 2]), ('bgr16', [2, 1, 0]), ('mono16', [0])])
def test_sixteen_bits_in_either_order_of_bytes(rgb, encoding, channels, is_bigendian, dtype):
    wide = (rgb[..., channels].astype(np.uint32) * 257).astype(dtype)
    rows = wide.reshape(len(rgb), -1).view(np.uint8)
    message = image(rows, encoding, padding=4, width=rgb.shape[1], is_bigendian=is_bigendian)
    np.testing.assert_array_equal(
        image_to_rgb(message), rgb if len(channels) == 3 else np.repeat(rgb[..., :1], 3, axis=2))


@pytest.mark.parametrize('encoding', ['rgb8', 'mono8', 'rgba8'])
def test_the_order_of_bytes_means_nothing_to_a_byte(rgb, encoding):
    pixels = np.resize(rgb, (5, 7, {'rgb8': 3, 'mono8': 1, 'rgba8': 4}[encoding]))
    np.testing.assert_array_equal(image_to_rgb(image(pixels, encoding, is_bigendian=1)),
                                  image_to_rgb(image(pixels, encoding, is_bigendian=0)))


@pytest.mark.parametrize(('changes', 'words'), [
    ({'encoding': 'yuv422'}, "encoding: found 'yuv422', expected one of rgb8, "),
    ({'data': b'123'}, r'data: found 3 bytes, expected 105 \(height 5 x step 21\)'),
    ({'step': 20}, 'step: found 20, expected at least 21 bytes'),
    ({'height': 0}, 'height x width: found 0 x 7'),
    ({'width': 10**9}, 'height x width: found 5 x 1000000000')])
def test_broken_images_are_named(rgb, changes, words):
    with pytest.raises(ConversionError, match=words):
        image_to_rgb(image(rgb, 'rgb8', **changes))


def test_compressed_images(rgb):
    data = cv2.imencode('.png', rgb[..., ::-1])[1].tobytes()
    message = SimpleNamespace(format='png', data=data)
    np.testing.assert_array_equal(compressed_to_rgb(message), rgb)
    np.testing.assert_array_equal(to_rgb(message, 'compressed'), rgb)
    jpeg = cv2.imencode('.jpg', np.full((8, 8, 3), 200, np.uint8))[1].tobytes()
    assert np.abs(compressed_to_rgb(SimpleNamespace(format='jpeg', data=jpeg)) - 200.0).max() < 3


def png_that_claims(width, height):
    """Build a PNG of a few bytes whose header claims a picture of any size."""
    def chunk(kind, data):
        return (struct.pack('>I', len(data)) + kind + data
                + struct.pack('>I', zlib.crc32(kind + data)))
    return (b'\x89PNG\r\n\x1a\n'
            + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(bytes(100))) + chunk(b'IEND', b''))


@pytest.mark.parametrize('size', [(9000, 9000), (20_000, 20_000), (100_000, 100_000)])
def test_a_few_bytes_that_claim_gigabytes_are_refused_unopened(size):
    with pytest.raises(ConversionError, match='expected at most 64000000 pixels'):
        compressed_to_rgb(SimpleNamespace(format='png', data=png_that_claims(*size)))


@pytest.mark.parametrize('kind', ['.jpg', '.png'])
@pytest.mark.parametrize('kept', [0.1, 0.5, 0.99])
def test_pictures_cut_off_are_refused(kind, kept):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = cv2.imencode(kind, noise)[1].tobytes()
    assert compressed_to_rgb(SimpleNamespace(format=kind, data=data)).shape == (64, 64, 3)
    with pytest.raises(ConversionError, match=r'cut off|no picture'):
        compressed_to_rgb(SimpleNamespace(format=kind, data=data[:int(kept * len(data))]))


def test_padding_behind_a_jpeg_does_no_harm(rgb):
    data = cv2.imencode('.jpg', rgb)[1].tobytes() + bytes(500)
    assert compressed_to_rgb(SimpleNamespace(format='jpeg', data=data)).shape == rgb.shape


@pytest.mark.parametrize('kind', ['.bmp', '.tiff'])
def test_other_formats_reach_no_decoder(rgb, kind):
    data = cv2.imencode(kind, rgb)[1].tobytes()
    with pytest.raises(ConversionError, match='no picture, expected JPEG or PNG'):
        compressed_to_rgb(SimpleNamespace(format='jpeg', data=data))


@pytest.mark.parametrize('data', [b'', b'no picture at all'])
def test_broken_compressed_images_are_named(data):
    with pytest.raises(ConversionError, match="of format 'jpeg' that are no picture"):
        compressed_to_rgb(SimpleNamespace(format='jpeg', data=data))


def test_stamps_are_nanoseconds():
    stamp = SimpleNamespace(sec=3, nanosec=5)
    assert stamp_ns(SimpleNamespace(header=SimpleNamespace(stamp=stamp))) == 3_000_000_005
