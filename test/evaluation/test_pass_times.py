"""Times of passes, which need a GPU; that what is timed can be compiled for one does not."""

import jax
import jax.numpy as jnp
import pytest

from ros_pi0_fast.accel.kernels.device import jax_refusal
from ros_pi0_fast.accel.kernels.few_tokens import FewTokensBlock
from ros_pi0_fast.evaluation import pass_times
from ros_pi0_fast.evaluation.pass_times import loop, random_layer
from ros_pi0_fast.model.attention import folded
from ros_pi0_fast.model.cache import LayerCache
from ros_pi0_fast.model.config import get_config

CONFIG = get_config('full').gemma


@pytest.mark.skipif(bool(jax_refusal()), reason=jax_refusal())
@pytest.mark.parametrize('kind', ['bfloat16', 'int4'])
def test_a_loop_of_passes_lowers_for_cuda(kind):
    layer = jax.eval_shape(lambda: random_layer(kind, CONFIG, jax.random.key(0)))
    slots = jax.ShapeDtypeStruct((1, pass_times.SLOTS, 1, CONFIG.head_dim), jnp.bfloat16)
    x = jax.ShapeDtypeStruct((1, 3, CONFIG.width), jnp.bfloat16)
    block = FewTokensBlock(CONFIG, folded, together=False)
    lowered = jax.jit(loop(block)).trace(
        (layer,) * 2, (LayerCache(k=slots, v=slots),) * 2, x).lower(lowering_platforms=('cuda',))
    assert lowered.out_info.shape == x.shape and '__gpu$xla.gpu.triton' in lowered.as_text()


def test_without_a_gpu_it_says_so(capsys):
    with pytest.raises(SystemExit):
        pass_times.main(['--kinds', 'int8'])
    assert 'device: cpu, expected a GPU' in capsys.readouterr().err
