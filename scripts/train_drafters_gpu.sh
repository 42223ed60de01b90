#!/usr/bin/env bash
# Train the drafters of a policy on a machine with a GPU: data, the policy's answers, training.
#
#   scripts/train_drafters_gpu.sh [options of ros_pi0_fast.training.draft]
#
# Environment: PYTHON (python3), WORKERS (all cores), WORK (runs/draft: scenes and state), OUT (out:
# the drafters); see gpu_env.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/gpu_env.sh
simulate_here 0.75
without_autotuning
work=${WORK:-runs/draft}
mkdir -p "$work"

"$python" -m ros_pi0_fast.training.draft --work "$work" --out "$out/drafters" \
  --workers "${WORKERS:-$(nproc)}" "$@"
