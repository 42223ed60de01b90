#!/usr/bin/env bash
# Measure this package on a machine with a GPU: the device, its kernels, each optimization.
#
#   scripts/gpu_bench.sh [more options of ros_pi0_fast.evaluation.benchmark_gpu]
#
# Takes a few minutes on one H100, most of them for compiling. Environment: PYTHON (python3), OUT
# (out: the table as JSON, a trace, the log); see gpu_env.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/gpu_env.sh

# Weights are kept in several forms at once; nothing is taken before it is needed.
export XLA_PYTHON_CLIENT_PREALLOCATE=${XLA_PYTHON_CLIENT_PREALLOCATE:-false}

"$python" -c "
import jax
device = jax.devices()[0]
if device.platform != 'gpu':
    raise SystemExit(f'device: {device.platform}, expected a GPU that JAX can use')
print(f'{device.device_kind}, compute capability {device.compute_capability}, JAX {jax.__version__}')"

"$python" -m pytest -q test/accel/test_kernels.py test/accel/test_rows.py \
  test/accel/test_decoder_pass.py -p no:cacheprovider |
  tee "$out/kernels.txt"
"$python" -m ros_pi0_fast.evaluation.benchmark_gpu --json "$out/gpu_bench.json" \
  --trace "$out/trace" "$@" | tee "$out/gpu_bench.txt"
