"""The sweep of cuts of a product: what is chosen is among what is measured, and it lowers."""

import jax
import jax.numpy as jnp
import pytest

from ros_pi0_fast.accel.kernels.matvec import Cut, few_product
from ros_pi0_fast.accel.kernels.rows import Rows
from ros_pi0_fast.evaluation import product_cuts
from ros_pi0_fast.evaluation.product_cuts import KINDS, PRODUCTS, candidates


def shapes_of(kind, name):
    return jax.eval_shape(lambda: tuple(
        Rows.of(KINDS[kind](jnp.zeros(shape))) for shape in PRODUCTS[name]))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', PRODUCTS)
def test_what_is_chosen_is_measured_too_and_lowers_for_cuda(kind, name):
    parts, gated = shapes_of(kind, name), name == 'gated'
    for tokens in (1, 4):
        chosen, tried = Cut.of(parts, tokens, gated), set(candidates(parts, tokens, gated))
        assert chosen in tried and len(tried) >= 8
        x = jax.ShapeDtypeStruct((tokens, PRODUCTS[name][0][0]), jnp.bfloat16)
        product = jax.jit(lambda parts, x: few_product(parts, x, gated=gated))
        lowered = product.trace(parts, x).lower(lowering_platforms=('cuda',))
        outputs = sum(o for _, o in PRODUCTS[name]) // (1 + gated)
        assert lowered.out_info.shape == (tokens, outputs)


def test_a_machine_without_gpu_is_told(capsys):
    if jax.devices()[0].platform == 'gpu':
        product_cuts.main(['--kinds', 'int8', '--products', 'out', '--tokens', '1'])
        assert 'GB/s' in capsys.readouterr().out
        return
    with pytest.raises(SystemExit):
        product_cuts.main([])
    assert 'expected a GPU that JAX can use' in capsys.readouterr().err
