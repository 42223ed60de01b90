#!/usr/bin/env bash
# Train the shipped pruner on a machine with a GPU, with its ablations, and measure them all there.
#
#   scripts/train_pruner_gpu.sh [EPISODES]
#
# EPISODES (default 100) of each task for each row of the tables; 0 trains only. Environment: PYTHON
# (python3), WORK (runs/pruner: state, some GB), OUT (out: results to take away), CONFIG (tabletop).
set -euo pipefail
cd "$(dirname "$0")/.."

episodes=${1:-100}
python=${PYTHON:-python3}
config=${CONFIG:-tabletop}
work=${WORK:-runs/pruner}
out=${OUT:-out}
mkdir -p "$work" "$out"
export PYTHONUNBUFFERED=1 MUJOCO_GL=${MUJOCO_GL:-egl} OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
# Many processes share the GPU, and figures are to be those of a CPU: products in full float32.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.05}

train() {  # train NAME [FIELD=VALUE…]
  local name=$1 set=(); shift
  for change in "$@"; do set+=(--set "$change"); done
  XLA_PYTHON_CLIENT_MEM_FRACTION=0.13 "$python" -m ros_pi0_fast.training.pruner --config "$config" --shards "$work/shards" \
    --work "$work/$name" --out "$out/$name" "${set[@]}" >"$out/train_$name.txt"
  tail -n 2 "$out/train_$name.txt"
}

measure() {  # measure NAME METHOD 'KEEP…' [FIELD=VALUE…]: success with the pruner NAME
  local name=$1 method=$2 keep=$3 set=(); shift 3
  for change in "$@"; do set+=(--set "$change"); done
  local label=$method-$name${*:+-$*}
  # shellcheck disable=SC2086
  JAX_DEFAULT_MATMUL_PRECISION=highest "$python" -m ros_pi0_fast.evaluation.pruning \
    --methods "$method" --keep $keep --episodes "$episodes" --pruner "$out/$name" "${set[@]}" \
    --json "$out/success_${label//[^a-z0-9_]/_}.json" | sed "s/^/$label: /"
}

finish() {  # wait for all jobs; end with an error if one of them did
  local job failed=0
  for job in $(jobs -p); do wait "$job" || failed=1; done
  [ $failed = 0 ] || { echo 'a run failed: see its output above' >&2; exit 1; }
}

# One process fills the shards and asks the policy; the ablations read what it has written.
train pruner
ablations=(no_semantics:scorer.semantics=false no_space:scorer.space=false
           no_distillation:terms.distillation=0.0 no_curriculum:stages=1
           no_sparsity:terms.sparsity=0.0)
for each in "${ablations[@]}"; do train "${each%%:*}" "${each#*:}" & done
if [ "$episodes" -gt 0 ]; then
  measure pruner ours '1.0 0.5' & measure pruner ours '0.375 0.25' &
  measure pruner ours 0.5 adaptive=true &
fi
finish
[ "$episodes" -gt 0 ] || exit 0
for method in uniform random attention free; do
  measure pruner $method '0.5 0.375 0.25' &
done
measure pruner ours '0.375 0.25' memory=0.0 &
measure pruner ours '0.5 0.25' original_positions=false &
for each in "${ablations[@]}"; do measure "${each%%:*}" ours '0.375 0.25' & done
finish
