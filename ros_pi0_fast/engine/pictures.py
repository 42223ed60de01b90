"""From the cameras' pictures, of any sizes, to those that the model takes."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.codec.policy_codec import EncodedObservation
from ros_pi0_fast.codec.resize import resize_with_pad
from ros_pi0_fast.engine.compiler import Share
from ros_pi0_fast.engine.stages import Resize


class Pictures:
    """Resizes pictures.

    Args:
        wanted: Keys of the cameras whose pictures the model is given.
        there: Keys of those that the robot has, sorted; the others are black.
        resize: The stage.
        compiler: Of the device's stages.
        on_device: Off: Pillow on the host does it, to the same pixels.
    """

    def __init__(self, wanted: tuple[str, ...], there: tuple[str, ...], resize: Resize,
                 compiler: Share, *, on_device: bool):
        self._wanted, self._there = wanted, there
        self._resize, self._compiler, self._on_device = resize, compiler, on_device

    def compile(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Compile the resizing of pictures of these shapes, one a camera of the robot, sorted."""
        if self._on_device and not self._fit(shapes):
            images = tuple(jax.ShapeDtypeStruct(shape, jnp.uint8)
                           for shape in self._with_black(shapes))
            self._compiler.get((self._resize, tuple(image.shape for image in images)),
                               self._resize, images)

    def _fit(self, shapes: Iterable[tuple[int, ...]]) -> bool:
        """Tell whether all pictures have the model's size already."""
        return all(shape[:2] == self._resize.size for shape in shapes)

    def _with_black(self, shapes: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
        """Return the shape of each picture that is encoded, black ones at the model's size."""
        present = dict(zip(self._there, shapes, strict=True))
        return [present.get(key, (*self._resize.size, 3)) for key in self._wanted]

    def __call__(self, encoded: EncodedObservation) -> np.ndarray | jax.Array:
        """Return uint8 [cameras, h, w, 3].

        Pictures of a size that nothing was compiled for are resized on the host, so that no camera
        can make an inference wait for the compiler.
        """
        black = np.zeros((*self._resize.size, 3), np.uint8)
        images = tuple(encoded.images.get(key, black) for key in self._wanted)
        if self._on_device and not self._fit(image.shape for image in images):
            found = self._compiler.find((self._resize, tuple(image.shape for image in images)))
            if found is not None:
                return found(images)
        return np.stack([resize_with_pad(image, *self._resize.size) for image in images])
