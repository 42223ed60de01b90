"""Merging low-rank updates (arXiv:2106.09685) into the weights, as openpi applies them.

Two of its quirks decide the outcome (openpi's models/lora.py):
- The einsum of attn_vec drops the head index between the factors, so that the update of head n is
  A[n] · Σₘ B[m], not A[n] · B[n].
- The feed-forward update is not scaled by alpha / rank; the attention updates are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ros_pi0_fast.weights.layout import LORA


def merge(name: str, w: np.ndarray, a: np.ndarray, b: np.ndarray, scaling: float) -> np.ndarray:
    """Add the low-rank update of a weight to it, layer by layer, in place if that is possible.

    Args:
        name: Of the weight: 'PaliGemma/llm/layers/…'.
        w: [layers, ..., m, n]
        a: [layers, ..., m, rank]
        b: [layers, ..., rank, n]
        scaling: alpha / rank of the attention updates.

    Returns:
        The merged weight, of the shape and dtype of w; the sum is taken in float32.
    """
    if '/mlp/' in name:
        scaling = 1.0
    w = w if w.flags.writeable else w.copy()
    for layer, first, second in zip(w, a, b, strict=True):
        second = second.astype(np.float32)
        if name.endswith('attn_vec_einsum/w'):
            second = second.sum(axis=0)
        update = np.matmul(first.astype(np.float32), second)
        layer[...] = (layer.astype(np.float32) + np.float32(scaling) * update).astype(w.dtype)
    return w


def factors(name: str) -> tuple[str, str]:
    """Return the names of the two factors of a weight's update.

    Raises:
        KeyError: openpi never updates that weight.
    """
    return LORA[name]


def factor_names() -> Iterator[str]:
    """Return the names of all factors there can be."""
    return (factor for pair in LORA.values() for factor in pair)
