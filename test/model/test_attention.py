"""Implementations of attention give what the reference gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ros_pi0_fast.model.attention import Fresh, Visible, folded, reference, write_slots

ROUNDING = 5e-6
"""Same products in float32, summed in another order."""


def arrays(t, s, *, b=2, n=4, m=1, h=16, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return (jax.random.normal(keys[0], (b, t, n, h)), jax.random.normal(keys[1], (b, s, m, h)),
            jax.random.normal(keys[2], (b, s, m, h)))


VISIBLE = {
    'all': lambda t, s: None,
    'prefix': lambda t, s: Visible(end=jnp.broadcast_to(jnp.array([[5], [s]]), (2, t)),
                                   uniform=True),
    'causal': lambda t, s: Visible(end=jnp.array([[3], [7]]) + jnp.arange(1, t + 1),
                                   start=jnp.array([0, 2])),
    'dense': lambda t, s: Visible(dense=jnp.arange(s)[None, None] % 3 <= jnp.arange(t)[:, None])}


@pytest.mark.parametrize('kv_heads', [1, 2, 4])
@pytest.mark.parametrize('visible', VISIBLE)
def test_folded_heads_are_the_reference(visible, kv_heads):
    t, s = (12, 12) if visible in ('all', 'prefix') else (4, 12)
    seen = VISIBLE[visible](t, s)
    q, k, v = arrays(t, s, m=kv_heads)
    expected = reference(q, k, v, seen)
    np.testing.assert_allclose(folded(q, k, v, seen), expected, atol=ROUNDING)
    assert np.std(expected) > 0.05


@pytest.mark.parametrize('t', [1, 3])
@pytest.mark.parametrize('kv_heads', [1, 2])
def test_what_is_not_yet_in_the_cache_counts(kv_heads, t):
    q, k, v = arrays(t, 12, m=kv_heads)
    _, fresh_k, fresh_v = arrays(t, t, m=kv_heads, seed=1)
    slot = jnp.array([4, 7])
    seen = Visible(end=slot[:, None] + jnp.arange(1, t + 1), start=jnp.array([0, 2]),
                   uniform=t == 1)
    fresh = Fresh(k=fresh_k, v=fresh_v, slot=slot)
    written = (write_slots(k, fresh_k, slot), write_slots(v, fresh_v, slot))
    expected = reference(q, *written, seen)
    np.testing.assert_array_equal(reference(q, k, v, seen, fresh=fresh), expected)
    np.testing.assert_allclose(folded(q, k, v, seen, fresh=fresh), expected, atol=ROUNDING)


def test_gradients_are_the_reference_s():
    q, k, v = arrays(6, 6)
    seen = VISIBLE['prefix'](6, 6)

    def gradients(attend):
        return jax.grad(lambda *x: jnp.sum(jnp.sin(attend(*x, seen))), argnums=(0, 1, 2))(q, k, v)

    for actual, expected in zip(gradients(folded), gradients(reference), strict=True):
        np.testing.assert_allclose(actual, expected, atol=10 * ROUNDING)
