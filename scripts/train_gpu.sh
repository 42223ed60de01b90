#!/usr/bin/env bash
# Train one of the shipped policies on a machine with a GPU, and measure it there.
#
#   scripts/train_gpu.sh [MINUTES] [more options of ros_pi0_fast.training.policy]
#
# Stops cleanly after MINUTES (default 9); the same command goes on. When training is done, it
# measures success on 100 unseen scenes a task. Environment: PYTHON (python3), WORKERS (all cores),
# WORK (runs/tabletop: the run's state, tens of GB), OUT (out: results to take away); see gpu_env.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/gpu_env.sh
simulate_here 0.7

minutes=${1:-9}
shift || true
workers=${WORKERS:-$(nproc)}
config=${CONFIG:-tabletop}
work=${WORK:-runs/$config}
mkdir -p "$work"

export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/$work/compiled}
case $work in /*) export JAX_COMPILATION_CACHE_DIR=$work/compiled ;; esac
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=1

"$python" - <<'PY'
import time

import jax
from ros_pi0_fast.sim.tabletop import Tabletop

table = Tabletop(0)
table.observe()
began = time.monotonic()
for _ in range(100):
    mean = table.observe().images['base_0_rgb'].mean()
print(f'{jax.devices()}; an observation takes {10 * (time.monotonic() - began):.2f} ms to render, '
      f'mean pixel {mean:.1f}')
PY

checkpoint=$work/checkpoint
"$python" -m ros_pi0_fast.training.policy --config "$config" --work "$work" --out "$checkpoint" \
  --workers "$workers" --minutes "$minutes" "$@"

tar czf "$out/$config.tar.gz" -C "$work" --transform "s,^checkpoint,$config," checkpoint
cp "$checkpoint/curve.png" "$checkpoint/training.json" "$work/metrics.jsonl" "$out/"

if grep -q '"finished": true' "$checkpoint/training.json"; then
  for latency in 0 2; do
    echo "success with a latency of $latency control steps:"
    "$python" -m ros_pi0_fast.evaluation.success --checkpoint "$checkpoint" --episodes 100 \
      --seed 0 --latency-steps "$latency" --swap-instruction --workers "$workers" --slots 4 \
      --json "$out/success_latency$latency.json"
  done
fi
