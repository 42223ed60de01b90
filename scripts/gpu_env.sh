# Sourced by the scripts for a machine with a GPU, from the root of the repository.
#
# Sets `python` (PYTHON, or python3) and `out` (OUT, or out), a folder for results. Wheels in .whl/
# are used for packages that the machine lacks; nothing is downloaded.
python=${PYTHON:-python3}
out=${OUT:-out}
mkdir -p "$out"

if compgen -G '.whl/*.whl' >/dev/null; then
  site=$PWD/build/site
  if [ ! -d "$site" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
      --target "$site" .whl/*.whl
  fi
  export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

simulate_here() {  # simulate_here FRACTION: of the GPU's memory for JAX; pictures are rendered there, too
  export MUJOCO_GL=${MUJOCO_GL:-egl}
  export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-$1}
  # One thread a process: the simulations are the parallel part.
  export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
}

without_autotuning() {  # Trying Triton's tilings for so small a model takes longer than to train it.
  export XLA_FLAGS="--xla_gpu_enable_triton_gemm=false ${XLA_FLAGS:-}"
}
