"""Which implementation of attention is fastest for which shape: measured on this device, once."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.flash_attention import flash
from ros_pi0_fast.accel.kernels.cudnn_attention import cudnn, cudnn_refusal
from ros_pi0_fast.accel.kernels.device import Device
from ros_pi0_fast.accel.kernels.pallas_attention import pallas, pallas_refusal
from ros_pi0_fast.model.attention import Attend, Fresh, Visible, folded

REPEATS = 7
CALLS = 4
"""Calls a measurement, so that a layer's share of a whole pass is seen and not the dispatch."""


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """What attention is called with."""

    batch: int
    tokens: int
    slots: int
    """Keys, or slots of the cache."""
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    kind: str
    """'all': every key is seen, as in SigLIP; 'prefix': those of a packed prefix; 'cache': new
    tokens on a cache that is as full as it gets."""


CANDIDATES: Mapping[str, Attend] = {
    'folded': folded, 'flash': flash, 'cudnn': cudnn, 'pallas': pallas}


def refusal(name: str, device: Device, shape: AttentionShape) -> str:
    """Return why an implementation cannot run on a device for a shape, or ''."""
    if name == 'cudnn':
        return cudnn_refusal(device, head_dim=shape.head_dim, dtype=shape.dtype,
                             tokens=shape.tokens, kind=shape.kind)
    return pallas_refusal(device) if name == 'pallas' else ''


class AttentionChooser:
    """Measures candidates and remembers the fastest. May be used by several threads.

    Args:
        candidates: Implementations by name; the first one is taken where times are equal.
        device: To run on.
        options: Of XLA, those that the stages are compiled with: on a GPU what a candidate takes
            in a CUDA graph says nothing of what it takes kernel by kernel.
    """

    def __init__(self, candidates: Mapping[str, Attend] = CANDIDATES,
                 device: Device | None = None,
                 options: Mapping[str, bool | int | str] | None = None):
        self.candidates = dict(candidates)
        self._options = dict(options or {})
        self.refusals: dict[AttentionShape, dict[str, str]] = {}
        """Why a candidate was not measured, by shape and name."""
        self._device = device or Device.current()
        self.times: dict[AttentionShape, dict[str, float]] = {}
        """Milliseconds a call, by shape and name."""
        self._lock = threading.Lock()

    def choose(self, shape: AttentionShape) -> Attend:
        """Return the fastest implementation for a shape, measured if that is new."""
        with self._lock:
            if shape not in self.times:
                self.times[shape] = self._measure(shape)
            times = self.times[shape]
        return self.candidates[min(times, key=times.__getitem__)]

    def _measure(self, shape: AttentionShape) -> dict[str, float]:
        """Return the median milliseconds of interleaved calls of each candidate."""
        arguments = _arguments(shape)
        reasons = {name: refusal(name, self._device, shape) for name in self.candidates}
        self.refusals[shape] = {name: reason for name, reason in reasons.items() if reason}
        compiled = {}
        for name in [name for name, reason in reasons.items() if not reason]:
            try:
                compiled[name] = _repeated(self.candidates[name]).lower(*arguments).compile(
                    compiler_options=self._options or None)
            except (RuntimeError, ValueError, NotImplementedError) as error:
                # What a library or a compiler cannot do for a shape, it only says when asked.
                self.refusals[shape][name] = str(error).splitlines()[0]
        times: dict[str, list[float]] = {name: [] for name in compiled}
        for _ in range(REPEATS):
            for name, run in compiled.items():
                began = time.perf_counter()
                jax.block_until_ready(run(*arguments))
                times[name].append(1e3 * (time.perf_counter() - began) / CALLS)
        return {name: float(np.median(values[1:])) for name, values in times.items()}


def _repeated(attend: Attend) -> jax.stages.Wrapped:
    """Return a function that attends CALLS times, each on what the one before gave."""
    def run(q: jax.Array, k: jax.Array, v: jax.Array, visible: Visible | None,
            fresh: Fresh | None) -> jax.Array:
        for _ in range(CALLS):
            q = attend(q, k, v, visible, score_dtype=jnp.float32, fresh=fresh).astype(q.dtype)
        return q

    return jax.jit(run)


def _arguments(shape: AttentionShape) -> tuple:
    keys = jax.random.split(jax.random.key(0), 3)
    b, t, s, h = shape.batch, shape.tokens, shape.slots, shape.head_dim
    q = jax.random.normal(keys[0], (b, t, shape.heads, h)).astype(shape.dtype)
    k, v = (jax.random.normal(key, (b, s, shape.kv_heads, h)).astype(shape.dtype)
            for key in keys[1:])
    if shape.kind == 'all':
        return q, k, v, None, None
    if shape.kind == 'prefix':
        ends = jnp.full((b, t), s, jnp.int32)
        return q, k, v, Visible(end=ends, uniform=True), None
    slot = jnp.full((b,), s - t, jnp.int32)
    visible = Visible(end=slot[:, None] + jnp.arange(1, t + 1, dtype=jnp.int32),
                      start=jnp.zeros((b,), jnp.int32), uniform=t == 1)
    # As the decoder does: several new tokens are in the cache already.
    fresh = Fresh(k=k[:, :1], v=v[:, :1], slot=slot) if t == 1 else None
    return q, k, v, visible, fresh
