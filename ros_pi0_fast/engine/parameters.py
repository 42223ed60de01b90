"""A checkpoint's weights on the device, in the forms that variants want them in."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ros_pi0_fast.accel.kernels.by_rows import rows_refusal, to_rows
from ros_pi0_fast.accel.kernels.device import Device
from ros_pi0_fast.accel.matrices import to_matrices
from ros_pi0_fast.accel.quantization import Scheme, quantize_params
from ros_pi0_fast.accel.quantized_checkpoint import tree_bytes
from ros_pi0_fast.engine.variant import Variant, VariantError
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.weights.checkpoint import Checkpoint

MIB = 2 ** 20


class MemoryLimitError(ValueError):
    """A variant would need more memory than allowed; the message says how much."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """How weights are stored."""

    unrolled: bool
    matrices: bool
    quantized: str = 'none'
    """'none', 'int8' or 'int4'."""
    pruned: bool = False
    """With the decoder that learned to do without image tokens that are pruned."""


class ParameterStore:
    """Makes forms of one checkpoint's weights and keeps those in use. May be used by threads.

    Variants of the same form share its arrays. A form that no variant in use has is given up when
    another one needs its memory.

    Args:
        model: The network.
        checkpoint: Its weights, stacked, on the host; and those that are stored quantized, which
            are used as they are.
        limit_mb: Memory that all forms together may take, MiB; 0 for no limit.
    """

    def __init__(self, model: Pi0Fast, checkpoint: Checkpoint, *, limit_mb: float = 0):
        self.limit_mb = limit_mb
        self.by_rows = not rows_refusal(Device.current(), model.dtype.name)
        """Matrices are stored by outputs, for kernels of a GPU."""
        self._model = model
        self._checkpoint = checkpoint
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

    def form_of(self, variant: Variant) -> Form:
        """Return the form that a variant runs on."""
        return Form(unrolled=variant.unrolled_layers, matrices=variant.matrix_weights,
                    quantized=variant.quantized_weights,
                    pruned=variant.prunes and self._checkpoint.pruned_decoder is not None)

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
            if form in self._forms:
                return self._forms[form]
            self._make_room(form, in_use)
        # Not under the lock, for which an inference that reports `bytes` would have to wait.
        made = jax.tree.map(jnp.asarray, self._make(form))
        with self._lock:
            return self._forms.setdefault(form, made)

    def check(self, form: Form, in_use: frozenset[Form]) -> None:
        """Check that there is room for a form beside those in use.

        Raises:
            MemoryLimitError: there is not.
            VariantError: the checkpoint has no weights from which it could be made.
        """
        stored = self._checkpoint.quantized
        if self._checkpoint.params is None and form.quantized not in stored:
            raise VariantError(
                f'quantization.weights: {form.quantized}, expected {" or ".join(stored)}, as '
                f'{self._checkpoint.folder} has no other weights')
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
            self._sizes[form] = tree_bytes(jax.eval_shape(lambda: self._make(form)))
        return self._sizes[form]

    def _make_room(self, form: Form, in_use: frozenset[Form]) -> None:
        """Give forms up that are not in use, the oldest first, until there is room."""
        for idle in [kept for kept in self._forms if kept not in in_use]:
            kept = sum(map(tree_bytes, self._forms.values()))
            if not self.limit_mb or self._bytes_of(form) + kept <= self.limit_mb * MIB:
                return
            del self._forms[idle]

    def _make(self, form: Form) -> Params:
        """Return the weights in a form. May be traced."""
        made = self._make_matrices(form)
        return to_rows(made) if form.matrices and self.by_rows else made

    def _make_matrices(self, form: Form) -> Params:
        if form.quantized in self._checkpoint.quantized and not form.pruned:
            return self._checkpoint.quantized[form.quantized]
        params = self._checkpoint.params
        if form.pruned:
            params = {'PaliGemma': {**params['PaliGemma'],
                                    'llm': self._checkpoint.pruned_decoder}}
        if form.quantized != 'none':  # Leaf by leaf, so that there is no wide copy of them all.
            return quantize_params(self._model, params, Scheme(weights=form.quantized))
        params = jax.tree.map(jnp.asarray, params)
        if form.unrolled:
            params = self._model.unroll(params)
        return to_matrices(self._model, params) if form.matrices else params
