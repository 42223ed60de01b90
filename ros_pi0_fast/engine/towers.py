"""A tower's parameters as executables are given them.

A call costs the host some microseconds for each array that it hands over, read or not, and as long
again for finding it in a tree: a thousand arrays take longer than SigLIP does on a large GPU. So a
stage is given the arrays of the one tower that it reads, flat, and SigLIP's hundreds of vectors
together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.model.layers import Params

IMAGES, LANGUAGE = 'img', 'llm'
"""The towers, by their names below PaliGemma."""
SMALL = 2 ** 15
"""Bytes of an array of the image tower up to which it is handed over with others. Not so of the
decoder: its kernels take whole arrays, which slices would be copied to in every pass."""


class Stage(Protocol):
    """What takes parameters first, of one tower only."""

    tower: ClassVar[str]
    """IMAGES or LANGUAGE."""

    def __call__(self, params: Params, *arguments: Any) -> Any:
        """Run it."""
        ...


@dataclass(frozen=True)
class _Place:
    """Where an array of the tree is."""

    index: int
    """Of the array that holds it."""
    first: int | None = None
    """Where it begins in that one; None: it is that one."""
    shape: tuple[int, ...] = ()

    def of(self, arrays: tuple[jax.Array, ...]) -> jax.Array:
        """Return it."""
        array = arrays[self.index]
        if self.first is None:
            return array
        return array[self.first:self.first + int(np.prod(self.shape))].reshape(self.shape)


@dataclass(frozen=True)
class Tower:
    """The parameters of one tower."""

    arrays: tuple[jax.Array, ...]
    """Large ones as the tree has them, then a vector of the small ones for each of their dtypes.
    """
    places: tuple[_Place, ...]
    """Of the tree's leaves, in their order."""
    structure: jax.tree_util.PyTreeDef

    @classmethod
    def of(cls, params: Params, name: str) -> Tower:
        """Take a tower's parameters from a tree of all."""
        leaves, structure = jax.tree.flatten({'PaliGemma': {name: params['PaliGemma'][name]}})
        small = [name == IMAGES and leaf.nbytes <= SMALL for leaf in leaves]
        arrays = [leaf for leaf, packed in zip(leaves, small, strict=True) if not packed]
        dtypes = list(dict.fromkeys(
            leaf.dtype for leaf, packed in zip(leaves, small, strict=True) if packed))
        vectors: list[list[np.ndarray]] = [[] for _ in dtypes]
        places, whole = [], 0
        for leaf, packed in zip(leaves, small, strict=True):
            if packed:
                which = dtypes.index(leaf.dtype)
                places.append(_Place(len(arrays) + which, sum(map(len, vectors[which])),
                                     leaf.shape))
                vectors[which].append(np.asarray(leaf).ravel())
            else:
                places.append(_Place(whole))
                whole += 1
        return cls((*arrays, *(jnp.asarray(np.concatenate(parts)) for parts in vectors)),
                   tuple(places), structure)

    def fed_to(self, stage: Stage) -> Callable[..., Any]:
        """Return a stage that takes `arrays` in the place of the tree."""
        places, structure = self.places, self.structure

        def fed(arrays: tuple[jax.Array, ...], *arguments: Any) -> Any:
            leaves = [place.of(arrays) for place in places]
            return stage(jax.tree.unflatten(structure, leaves), *arguments)

        fed.__name__ = type(stage).__name__.lower()  # Which a profiler shows.
        return fed
