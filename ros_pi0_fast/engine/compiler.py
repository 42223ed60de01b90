"""Executables compiled ahead of time, counted, and kept by what is static about them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import jax


class Executables:
    """Compiles a function once for each key. Not for several threads."""

    def __init__(self) -> None:
        self._compiled: dict[Hashable, jax.stages.Compiled] = {}

    @property
    def count(self) -> int:
        """How many were compiled so far."""
        return len(self._compiled)

    def get(self, key: Hashable, function: Callable[..., Any], *arguments: Any,
            donate: tuple[int, ...] = ()) -> jax.stages.Compiled:
        """Return the executable of a key, compiled for arguments of these shapes if it is new.

        Args:
            key: What is static: the stage and its sizes.
            function: Pure, of arrays.
            arguments: Arrays, or shapes (jax.ShapeDtypeStruct).
            donate: Which arguments' buffers the result may take over.
        """
        if key not in self._compiled:
            self._compiled[key] = jax.jit(
                function, donate_argnums=donate).lower(*arguments).compile()
        return self._compiled[key]
