#!/usr/bin/env bash
# Train the drafters of a policy on a machine with a GPU: data, the policy's answers, training.
#
#   scripts/train_drafters_gpu.sh [options of ros_pi0_fast.training.draft]
#
# Environment: PYTHON (python3), WORKERS (all cores), WORK (runs/draft: scenes and state), OUT (out:
# the drafters). Wheels in .whl/ are used for packages that the machine lacks.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
work=${WORK:-runs/draft}
out=${OUT:-out}
mkdir -p "$work" "$out"

if compgen -G '.whl/*.whl' >/dev/null; then
  site=$PWD/build/site
  if [ ! -d "$site" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
      --target "$site" .whl/*.whl
  fi
  export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONUNBUFFERED=1 MUJOCO_GL=${MUJOCO_GL:-egl}
# Pictures are rendered on the same GPU, so not all of its memory may go to JAX.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.75}
# Trying all tilings of Triton for the products of so small a model takes longer than to train it.
export XLA_FLAGS="--xla_gpu_enable_triton_gemm=false ${XLA_FLAGS:-}"
# One thread a process: the simulations are the parallel part.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

"$python" -m ros_pi0_fast.training.draft --work "$work" --out "$out/drafters" \
  --workers "${WORKERS:-$(nproc)}" "$@"
