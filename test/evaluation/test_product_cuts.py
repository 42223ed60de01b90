"""Cuts of products that are tried on a GPU: all of them right, those chosen among them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ros_pi0_fast.accel.kernels.device import jax_refusal
from ros_pi0_fast.accel.kernels.few_product import Halves, Tile, few_product
from ros_pi0_fast.accel.kernels.rows import Rows
from ros_pi0_fast.evaluation import product_cuts
from ros_pi0_fast.evaluation.product_cuts import KINDS, PRODUCTS, candidates

pytestmark = pytest.mark.skipif(bool(jax_refusal()), reason=jax_refusal())


def parts_of(kind, shapes):
    return [Rows.of(KINDS[kind](jax.random.normal(jax.random.key(i), shape)))
            for i, shape in enumerate(shapes)]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', PRODUCTS)
def test_what_is_chosen_is_measured_too_and_lowers_for_cuda(kind, name):
    parts, gated = jax.eval_shape(lambda: parts_of(kind, PRODUCTS[name])), name == 'gated'
    chosen, tried = Tile.of(parts[0], gated), list(candidates(parts, gated))
    assert chosen in tried and len(tried) == len(set(tried)) >= 8
    for tokens in (1, 4):
        x = jax.ShapeDtypeStruct((tokens, PRODUCTS[name][0][0]), jnp.bfloat16)
        x = x if kind == 'bfloat16' else jax.eval_shape(Halves.of, x)
        product = jax.jit(lambda parts, x: few_product(parts, x, gate=gated))
        lowered = product.trace(parts, x).lower(lowering_platforms=('cuda',))
        outputs = sum(o for _, o in PRODUCTS[name]) // (1 + gated)
        assert lowered.out_info.shape == (tokens, outputs)


@pytest.mark.parametrize('kind', KINDS)
def test_every_one_gives_the_product(kind):
    parts = parts_of(kind, [(1024, 2048)])
    x = jax.random.normal(jax.random.key(9), (2, 1024)).astype(jnp.bfloat16)
    given = x if kind == 'bfloat16' else Halves.of(x)
    tried = {(tile.outputs, tile.inputs, tile.splits): tile for tile in candidates(parts, False)}
    found = [np.asarray(few_product(parts, given, tile=tile, interpret=True), np.float32)
             for tile in tried.values()]
    assert len(found) >= 4
    for other in found[1:]:
        assert np.linalg.norm(other - found[0]) < 4e-3 * np.linalg.norm(found[0])


def test_a_machine_without_gpu_is_told(capsys):
    if jax.devices()[0].platform == 'gpu':
        product_cuts.main(['--kinds', 'int8', '--products', 'out', '--tokens', '1'])
        assert 'GB/s' in capsys.readouterr().out
        return
    with pytest.raises(SystemExit):
        product_cuts.main([])
    assert 'expected a GPU that JAX can use' in capsys.readouterr().err
