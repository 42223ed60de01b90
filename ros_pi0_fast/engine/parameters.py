"""A checkpoint's weights on the device, in the forms that variants want them in."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.matrices import to_matrices
from ros_pi0_fast.engine.variant import Variant
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast

MIB = 2 ** 20


class MemoryLimitError(ValueError):
    """A variant would need more memory than allowed; the message says how much."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """How weights are stored."""

    unrolled: bool
    matrices: bool

    @classmethod
    def of(cls, variant: Variant) -> Form:
        """Return the form that a variant runs on."""
        return cls(unrolled=variant.unrolled_layers, matrices=variant.matrix_weights)


def tree_bytes(tree: Any) -> int:
    """Return the bytes of a tree's arrays, or of what would have such shapes."""
    return sum(int(np.prod(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
               for leaf in jax.tree.leaves(tree))


class ParameterStore:
    """Makes forms of one checkpoint's weights and keeps those in use. May be used by threads.

    Variants of the same form share its arrays. A form that no variant in use has is given up when
    another one needs its memory.

    Args:
        model: The network.
        params: The checkpoint's, stacked, on the host.
        limit_mb: Memory that all forms together may take, MiB; 0 for no limit.
    """

    def __init__(self, model: Pi0Fast, params: Mapping[str, Any], *, limit_mb: float = 0):
        self.limit_mb = limit_mb
        self._model = model
        self._source = params
        self._forms: dict[Form, Params] = {}
        self._sizes: dict[Form, int] = {}
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Bytes of all forms that are kept."""
        with self._lock:
            return sum(map(tree_bytes, self._forms.values()))

    @property
    def forms(self) -> set[Form]:
        """Forms that are kept."""
        with self._lock:
            return set(self._forms)

    def get(self, form: Form, in_use: frozenset[Form] = frozenset()) -> Params:
        """Return the weights in a form, made if they are not there.

        Args:
            form: Which.
            in_use: Forms that must be kept.

        Raises:
            MemoryLimitError: there is no room for it beside those in use.
        """
        self.check(form, in_use)
        with self._lock:
            if form not in self._forms:
                self._make_room(form, in_use)
                self._forms[form] = self._convert(form, self._source)
            return self._forms[form]

    def check(self, form: Form, in_use: frozenset[Form]) -> None:
        """Check that there is room for a form beside those in use.

        Raises:
            MemoryLimitError: there is not.
        """
        if not self.limit_mb:
            return
        with self._lock:
            used = sum(tree_bytes(self._forms[kept]) for kept in in_use - {form}
                       if kept in self._forms)
        needed = self._bytes_of(form)
        if needed + used > self.limit_mb * MIB:
            raise MemoryLimitError(
                f'memory_limit_mb: {self.limit_mb:g}, expected at least '
                f'{(needed + used) / MIB:.1f}: {needed / MIB:.1f} for the weights of this variant '
                f'beside the {used / MIB:.1f} in use')

    def _bytes_of(self, form: Form) -> int:
        if form not in self._sizes:
            self._sizes[form] = tree_bytes(jax.eval_shape(
                lambda params: self._convert(form, params), self._source))
        return self._sizes[form]

    def _make_room(self, form: Form, in_use: frozenset[Form]) -> None:
        """Give forms up that are not in use, the oldest first, until there is room."""
        for idle in [kept for kept in self._forms if kept not in in_use]:
            kept = sum(map(tree_bytes, self._forms.values()))
            if not self.limit_mb or self._bytes_of(form) + kept <= self.limit_mb * MIB:
                return
            del self._forms[idle]

    def _convert(self, form: Form, params: Mapping[str, Any]) -> Params:
        params = jax.tree.map(jnp.asarray, params)
        if form.unrolled:
            params = self._model.unroll(params)
        return to_matrices(self._model, params) if form.matrices else params
