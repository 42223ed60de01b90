"""Camera messages to pictures: uint8 RGB [h, w, 3].

Duck-typed on the messages' attributes, so that bags are converted by the same code as live
topics. cv_bridge does it where it imports and works; where it is missing, or was built for
another NumPy (as with Jazzy's binaries and NumPy 2), the encodings below are decoded here.
"""

from __future__ import annotations

import functools
import io
import logging
from typing import Any

import cv2
import numpy as np
from PIL import Image as PillowImage

_CHANNELS = {'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1, '8UC1': 1, '8UC3': 3,
             'rgb16': 3, 'bgr16': 3, 'mono16': 1}
_TO_RGB = {'bgr8': cv2.COLOR_BGR2RGB, 'rgba8': cv2.COLOR_RGBA2RGB, 'bgra8': cv2.COLOR_BGRA2RGB,
           'mono8': cv2.COLOR_GRAY2RGB, '8UC1': cv2.COLOR_GRAY2RGB,
           'bgr16': cv2.COLOR_BGR2RGB, 'mono16': cv2.COLOR_GRAY2RGB,
           # OpenCV's order: what cv_bridge takes an image without colour semantics to be.
           '8UC3': cv2.COLOR_BGR2RGB}
MAX_PIXELS = 64_000_000
COMPRESSED_FORMATS = ('JPEG', 'PNG')
"""Nothing else reaches a decoder: what comes over the network is not to choose the parser."""
_JPEG_END, _JPEG_TAIL = b'\xff\xd9', 4096
"""A JPEG's last marker, and how many bytes of padding a camera may put behind it, about."""


class ConversionError(ValueError):
    """A camera message is no picture; the message names the field, found and expected."""


@functools.cache
def _bridge() -> Any | None:
    """Return a CvBridge that works, or None and one warning."""
    try:
        from cv_bridge import CvBridge
        bridge = CvBridge()
        probe = bridge.cv2_to_imgmsg(np.zeros((2, 2, 3), np.uint8), 'rgb8')
        bridge.imgmsg_to_cv2(probe, 'rgb8')
    except Exception as error:  # Whatever a broken binary raises, the answer is the same.
        logging.getLogger(__name__).warning(
            'cv_bridge cannot be used (%s: %s); pictures are decoded without it',
            type(error).__name__, error)
        return None
    return bridge


def image_to_rgb(message: Any) -> np.ndarray:
    """Convert a sensor_msgs/Image.

    Returns:
        uint8 RGB [height, width, 3]; 16 bits are scaled to 8

    Raises:
        ConversionError: unknown encoding, no pixels, or data of the wrong size.
    """
    height, width, step = int(message.height), int(message.width), int(message.step)
    encoding = message.encoding
    if encoding not in _CHANNELS:
        raise ConversionError(f'encoding: found {encoding!r}, expected one of '
                              f'{", ".join(_CHANNELS)}')
    if not 0 < height * width <= MAX_PIXELS:
        raise ConversionError(f'height x width: found {height} x {width}, expected 1 to '
                              f'{MAX_PIXELS} pixels')
    wide = encoding.endswith('16')
    row = width * _CHANNELS[encoding] * (1 + wide)
    if step < row:
        raise ConversionError(f'step: found {step}, expected at least {row} bytes for {width} '
                              f'pixels of {encoding}')
    data = np.frombuffer(message.data, np.uint8)
    if data.size != height * step:
        raise ConversionError(f'data: found {data.size} bytes, expected {height * step} '
                              f'(height {height} x step {step})')
    bridge = _bridge()
    if bridge is not None and encoding in ('rgb8', 'bgr8', 'mono8') and step == row:
        return np.ascontiguousarray(bridge.imgmsg_to_cv2(message, 'rgb8'))
    pixels = np.ascontiguousarray(data.reshape(height, step)[:, :row])
    if wide:  # Only here does the order of bytes mean anything.
        pixels = pixels.view('>u2' if message.is_bigendian else '<u2')
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    pixels = pixels.reshape(height, width, -1)
    return cv2.cvtColor(pixels, _TO_RGB[encoding]) if encoding in _TO_RGB else pixels


def compressed_to_rgb(message: Any) -> np.ndarray:
    """Convert a sensor_msgs/CompressedImage (JPEG or PNG).

    Returns:
        uint8 RGB [h, w, 3]

    Raises:
        ConversionError: the data is no whole picture, or a picture of too many pixels.
    """
    data = np.frombuffer(message.data, np.uint8)
    _check_header(data, message.format)
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise _no_picture(data, message.format) from error
    if pixels is None:
        raise _no_picture(data, message.format)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _check_header(data: np.ndarray, claimed: str) -> None:
    """Refuse by the header alone what must not be decoded: a few bytes can claim gigabytes."""
    try:
        with PillowImage.open(io.BytesIO(data), formats=COMPRESSED_FORMATS) as picture:
            (width, height), kind = picture.size, picture.format
    except (OSError, SyntaxError, ValueError) as error:  # What Pillow says of broken headers.
        raise _no_picture(data, claimed) from error
    except PillowImage.DecompressionBombError as error:
        raise ConversionError('data: found a picture too large to be opened, expected at most '
                              f'{MAX_PIXELS} pixels') from error
    if width * height > MAX_PIXELS:
        raise ConversionError(f'data: found a picture of {height} x {width}, expected at most '
                              f'{MAX_PIXELS} pixels')
    # Decoders fill what is missing of a JPEG with grey. Its data cannot contain the end marker.
    if kind == 'JPEG' and _JPEG_END not in data[-_JPEG_TAIL:].tobytes():
        raise ConversionError(f'data: found {data.size} bytes of a JPEG that is cut off, expected '
                              'its end marker')


def _no_picture(data: np.ndarray, claimed: str) -> ConversionError:
    return ConversionError(f'data: found {data.size} bytes of format {claimed!r} that are no '
                           'picture, expected JPEG or PNG')


def to_rgb(message: Any, transport: str) -> np.ndarray:
    """Convert a camera message by the profile's transport: 'raw' or 'compressed'."""
    return compressed_to_rgb(message) if transport == 'compressed' else image_to_rgb(message)


def stamp_ns(message: Any) -> int:
    """Return the header's stamp, nanoseconds."""
    stamp = message.header.stamp
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)
