"""What is said of a trace; of a GPU's kernels only where there is one."""

import jax
import jax.numpy as jnp
import pytest

from ros_pi0_fast.evaluation.trace_report import TRACED, kernels_of, trace_file, trace_report


@pytest.mark.skipif(not hasattr(jax.profiler, 'ProfileData'),
                    reason=f'JAX {jax.__version__} cannot read traces')
def test_a_trace_of_a_product(tmp_path):
    def twice(x):
        return x @ x + x

    compiled = jax.jit(twice).lower(jnp.ones((256, 256))).compile()
    x = jnp.ones((256, 256))
    with jax.profiler.trace(str(tmp_path)):
        jax.block_until_ready(compiled(x))
    found = kernels_of(trace_file(tmp_path))
    report = trace_report(trace_file(tmp_path)).splitlines()
    assert all(f'x {word}' in report[0] for word in TRACED)
    host = report[report.index('host:') + 1:]
    assert host and all(' us ' in line for line in host)
    if jax.devices()[0].platform == 'gpu':
        assert {kernel.function for kernel in found} == {'twice'}
        assert all(kernel.end_us > kernel.start_us for kernel in found)
        assert report[1].startswith('twice: ')
    else:
        assert not found
