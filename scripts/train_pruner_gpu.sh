#!/usr/bin/env bash
# Train the shipped pruner on a machine with a GPU, or its ablations, and measure them there.
#
#   scripts/train_pruner_gpu.sh train              # the pruner, with the policy's decoder
#   scripts/train_pruner_gpu.sh ablations          # it and the ablations, the decoder left alone
#   scripts/train_pruner_gpu.sh success            # all methods, with the decoder that learned
#   scripts/train_pruner_gpu.sh success_frozen     # all methods and ablations without it
#
# Environment: PYTHON (python3), WORK (runs/pruner: state, some GB), OUT (out: results to take away),
# CONFIG (tabletop), EPISODES (100, of each task for each row of the tables); see gpu_env.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/gpu_env.sh
simulate_here 0.6
without_autotuning

episodes=${EPISODES:-100}
config=${CONFIG:-tabletop}
work=${WORK:-runs/pruner}
mkdir -p "$work"

train() {  # train NAME MEMORY [FIELD=VALUE…]
  local name=$1 memory=$2 set=(); shift 2
  for change in "$@"; do set+=(--set "$change"); done
  XLA_PYTHON_CLIENT_MEM_FRACTION=$memory "$python" -m ros_pi0_fast.training.pruner \
    --config "$config" --shards "$work/shards" --work "$work/$name" --out "$out/$name" \
    "${set[@]}" >"$out/train_$name.txt"
  tail -n 2 "$out/train_$name.txt"
}

# Many processes share the GPU, and figures are to be those of a CPU: products in full float32.
measure() {  # measure NAME METHOD 'KEEP…' [FIELD=VALUE…]: success with the pruner NAME
  local name=$1 method=$2 keep=$3 set=(); shift 3
  for change in "$@"; do set+=(--set "$change"); done
  local label=$name-$method-$keep${*:+-$*}
  # shellcheck disable=SC2086
  JAX_DEFAULT_MATMUL_PRECISION=highest XLA_PYTHON_CLIENT_MEM_FRACTION=0.03 "$python" \
    -m ros_pi0_fast.evaluation.pruning --methods "$method" --keep $keep --episodes "$episodes" \
    --pruner "$out/$name" "${set[@]}" --json "$out/success_${label//[^a-z0-9_]/_}.json" \
    | sed "s/^/$name: /"
}

finish() {  # wait for all jobs; end with an error if one of them did
  local job failed=0
  for job in $(jobs -p); do wait "$job" || failed=1; done
  [ $failed = 0 ] || { echo 'a run failed: see its output above' >&2; exit 1; }
}

ablations=(no_semantics:scorer.semantics=false no_space:scorer.space=false
           no_distillation:terms.distillation=0.0 no_curriculum:stages=1
           no_sparsity:terms.sparsity=0.0)
case ${1:-train} in
  train) train pruner 0.6 ;;
  ablations)  # One process fills the shards and asks the policy; the others read what it has written.
    alone=(finetune=false terms.whole=0 terms.fewest=0.2 terms.counted=false scorer.head_dim=16
           scorer.hidden=64 frames=20000 loop.steps=1500 loop.batch_size=64 loop.ema_decay=0.99)
    train frozen 0.3 "${alone[@]}"
    for each in "${ablations[@]}"; do train "${each%%:*}" 0.13 "${alone[@]}" "${each#*:}" & done ;;
  success)
    for keep in 0.5 0.375 0.25; do
      for method in ours uniform attention random; do measure pruner $method $keep & done
    done
    measure pruner ours 0.5 adaptive=true &
    measure pruner ours 0.25 original_positions=false & ;;
  success_frozen)
    for method in ours uniform attention random free; do
      measure frozen $method '0.5 0.375 0.25' &
    done
    for each in "${ablations[@]}"; do measure "${each%%:*}" ours 0.375 & done
    measure frozen ours 0.375 memory=0.0 & ;;
  *) echo "$1: expected train, ablations, success or success_frozen" >&2; exit 2 ;;
esac
finish
