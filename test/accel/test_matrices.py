"""Weights stored as matrices: the same numbers, in fewer bytes moved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ros_pi0_fast.accel.equations import find_equations
from ros_pi0_fast.accel.matrices import EquationError, Form, Matrices, to_matrices
from ros_pi0_fast.model.config import get_config
from ros_pi0_fast.model.einsum import einsum
from ros_pi0_fast.model.pi0_fast import Pi0Fast


@pytest.fixture(scope='module')
def model():
    return Pi0Fast(get_config('tiny'))


@pytest.fixture(scope='module')
def params(model):
    shapes = jax.eval_shape(lambda key: model.unroll(model.init(key)), jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(np.zeros(leaf.shape, leaf.dtype)), shapes)


@pytest.mark.parametrize(('eqn', 'x', 'w', 'parts'), [
    ('btd,ndh->btnh', (2, 3, 8), (4, 8, 5), 1), ('bsd,ckdh->cbskh', (2, 3, 8), (2, 3, 8, 5), 2),
    ('btnh,nhd->btd', (2, 3, 4, 5), (4, 5, 8), 1), ('btd,cdf->cbtf', (2, 3, 8), (2, 8, 6), 2),
    ('bnd,df->bnf', (2, 3, 8), (8, 6), 1)])
def test_a_product_is_the_einsum(eqn, x, w, parts):
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (x, w))
    stored = Matrices.of(w, eqn)
    assert len(stored.parts) == parts and all(part.ndim == 2 for part in stored.parts)
    np.testing.assert_allclose(einsum(eqn, x, stored), jnp.einsum(eqn, x, w), rtol=1e-5,
                               atol=1e-5)


def test_another_equation_than_the_one_stored_for_is_refused():
    stored = Matrices.of(jnp.ones((8, 6)), 'bnd,df->bnf')
    with pytest.raises(EquationError, match='bnf,df->bnd, expected bnd,df->bnf'):
        einsum('bnf,df->bnd', jnp.ones((1, 1, 6)), stored)


def test_what_is_no_matrix_product_is_refused():
    assert not Form.fits('brpcqe,pqed->brcd')
    with pytest.raises(EquationError, match='brpcqe,pqed->brcd'):
        Form.of('brpcqe,pqed->brcd')


def test_every_weight_that_is_multiplied_is_found(model, params):
    equations = find_equations(model, params)
    layer = {path[4:]: eqn for path, eqn in equations.items()
             if path[:4] == ('PaliGemma', 'llm', 'layers', 0)}
    assert layer == {
        ('attn', 'q_einsum', 'w'): 'btd,ndh->btnh', ('attn', 'kv_einsum', 'w'): 'bsd,ckdh->cbskh',
        ('attn', 'attn_vec_einsum', 'w'): 'btnh,nhd->btd',
        ('mlp', 'gating_einsum'): 'btd,cdf->cbtf', ('mlp', 'linear'): 'btf,fd->btd'}
    config = model.config
    assert len(equations) == 5 * config.gemma.depth + 6 * config.siglip.depth + 2


def test_all_but_the_patches_become_matrices_and_the_rest_is_shared(model, params):
    stored = to_matrices(model, params)
    image = stored['PaliGemma']['img']
    assert isinstance(image['head']['kernel'], Matrices)
    assert not isinstance(image['embedding']['kernel'], Matrices)
    table = stored['PaliGemma']['llm']['embedder']['input_embedding']
    assert table is params['PaliGemma']['llm']['embedder']['input_embedding']
    size = sum(leaf.size for leaf in jax.tree.leaves(stored))
    assert size == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_no_weight_is_rearranged_in_a_decoding_step(model, params):
    """As openpi stores them, the compiled step has copies as large as weights; not in jax 0.6."""
    def largest_scratch(weights):
        cache = model.init_cache(weights, 1, 16)
        ids = jnp.zeros((1, 1), jnp.int32)
        step = jax.jit(model.decode_step, donate_argnums=2).lower(weights, ids, cache).compile()
        return step.memory_analysis().temp_size_in_bytes

    config = model.config.gemma
    gating = 2 * config.width * config.mlp_dim * 4
    if jax.__version_info__ >= (0, 10):
        assert largest_scratch(params) >= gating
    assert largest_scratch(to_matrices(model, params)) < gating / 4
