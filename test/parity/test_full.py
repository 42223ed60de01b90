"""The run of `--full`, on a model that a test can afford."""

import jax
import jax.numpy as jnp
import pytest

from ros_pi0_fast.evaluation.parity_full import random_params, run_full


def test_a_model_is_built_and_run(capfd):
    rows = list(run_full('tiny'))
    assert [row.passed for row in rows] == [True] * 3
    assert 'GiB in bfloat16' in rows[0].note
    assert '4 tokens after 128 of images and 16 of a prompt' in rows[1].note
    assert 'peak memory' in rows[2].note
    assert 'random weights: 100%' in capfd.readouterr().err


def test_weights_are_normal_numbers_of_the_right_shape():
    shapes = {'a': {'kernel': jax.ShapeDtypeStruct((3, 400, 50), jnp.float32)},
              'b': jax.ShapeDtypeStruct((7,), jnp.float32)}
    params = random_params(shapes)
    assert params['a']['kernel'].dtype == params['b'].dtype == jnp.bfloat16
    assert params['a']['kernel'].shape == (3, 400, 50)
    assert float(params['a']['kernel'].astype(jnp.float32).std()) == pytest.approx(0.05, rel=0.02)
