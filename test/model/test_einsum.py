"""A weight of another type passes through the network by way of the seam."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ros_pi0_fast.model.einsum import multiply, rows


@flax.struct.dataclass
class Scaled:
    """A matrix as int8 and one scale; its leaves have other shapes than the weight."""

    value: jax.Array
    scale: jax.Array
    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)
    dtype = jnp.dtype('float32')

    @classmethod
    def of(cls, w: jax.Array) -> 'Scaled':
        scale = jnp.max(jnp.abs(w)) / 127
        return cls(value=jnp.round(w / scale).astype(jnp.int8).ravel(), scale=scale,
                   shape=w.shape)

    def plain(self) -> jax.Array:
        return self.value.astype(jnp.float32).reshape(self.shape) * self.scale


@multiply.register
def _(w: Scaled, eqn, x):
    return jnp.einsum(eqn, x, w.plain().astype(x.dtype))


@rows.register
def _(w: Scaled, ids):
    return w.plain()[ids]


MATRICES = {'kernel', 'w', 'gating_einsum', 'linear', 'input_embedding'}


def test_registered_weights_take_the_place_of_arrays(make):
    model, params = make()
    scaled, plain = (jax.tree_util.tree_map_with_path(
        lambda path, leaf, form=form: form(leaf) if path[-1].key in MATRICES else leaf, params)
        for form in (Scaled.of, lambda leaf: Scaled.of(leaf).plain()))
    images = {key: jnp.zeros((1, 13, 16, 3)) for key in model.config.camera_keys}

    @jax.jit
    def run(params):
        x = jnp.concatenate([model.embed_images(params, images),
                             model.embed_tokens(params, jnp.array([[4, 8]]))], axis=1)
        cache = model.init_cache(params, 1, 20)
        hidden, cache = model.prefill(params, x, jnp.array([14]), cache)
        hidden, _ = model.decode_step(params, jnp.array([[3]]), cache)
        return model.logits(params, hidden)

    np.testing.assert_array_equal(run(scaled), run(plain))


def test_a_missing_weight_is_named(make):
    model, params = make()
    del params['PaliGemma']['llm']['layers'][1]['mlp']['linear']
    with pytest.raises(KeyError, match=r'mlp/linear: not among the parameters; expected shape'):
        model.decode_step(params, jnp.array([[3]]), model.init_cache(params, 1, 4))
