"""What a stage is given of the parameters: one tower's, in few arrays, and just as they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ros_pi0_fast.engine.towers import IMAGES, LANGUAGE, SMALL, Tower
from ros_pi0_fast.model.config import get_config
from ros_pi0_fast.model.pi0_fast import Pi0Fast


@pytest.mark.parametrize('name', [IMAGES, LANGUAGE])
def test_a_stage_is_given_one_tower_as_it_was_in_fewer_arrays(name):
    model = Pi0Fast(get_config('tiny'))
    params = jax.jit(lambda key: model.unroll(model.init(key)))(jax.random.key(0))
    params['PaliGemma']['img']['head']['bias'] = jnp.arange(192, dtype=jnp.bfloat16)
    tower = Tower.of(params, name)

    class Whole:
        tower = name

        def __call__(self, params, factor):
            return jax.tree.map(lambda leaf: leaf * factor, params)

    expected = {'PaliGemma': {name: params['PaliGemma'][name]}}
    found = jax.jit(tower.fed_to(Whole()))(tower.arrays, 1)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    leaves = jax.tree.leaves(expected)
    large = [leaf for leaf in leaves if leaf.nbytes > SMALL]
    assert len(tower.arrays) == (len(large) + 2 if name == IMAGES else len(leaves))
    assert all(any(array is leaf for array in tower.arrays) for leaf in large)  # Not copied.
