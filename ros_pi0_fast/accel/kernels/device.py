"""What a kernel must know of the device that it is to run on."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jax.experimental.pallas import triton as plgpu

OLDEST_JAX = '0.7.2'
"""That has all of Pallas that kernels are written in."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device's kind."""

    platform: str
    """'cpu', 'gpu', …"""
    capability: float = 0.0
    """Compute capability of an NVIDIA GPU, such as 8.9; 0 elsewhere."""
    multiprocessors: int = 0
    """Of an NVIDIA GPU; 0 elsewhere."""

    @classmethod
    def current(cls) -> Device:
        """Return the one that JAX uses."""
        device = jax.devices()[0]
        capability = str(getattr(device, 'compute_capability', None) or 0)
        number = float(capability) if capability.replace('.', '', 1).isdigit() else 0.0
        return cls(platform=device.platform, capability=number,
                   multiprocessors=int(getattr(device, 'core_count', None) or 0))


def jax_refusal() -> str:
    """Return why kernels of this package cannot be built with this JAX, or ''."""
    if hasattr(plgpu, 'load') and hasattr(plgpu, 'CompilerParams'):
        return ''
    return f'JAX {jax.__version__}, expected at least {OLDEST_JAX}'
