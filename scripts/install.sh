#!/usr/bin/env bash
# Install all that `make demo` and `make test` need: a virtual environment, this package, and, where no
# ROS 2 is sourced, its stand-in `embedded_ros`. Safe to run again. Usage: scripts/install.sh [VENV]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${PYTHON:-python3}

say() { printf '\033[1m[install]\033[0m %s\n' "$*"; }
fail() { printf '[install] error: %s\n' "$*" >&2; exit 1; }

need_apt() {  # need_apt WHY PACKAGE…: install when root, else print the exact command
  local why=$1; shift
  local command="apt-get install -y --no-install-recommends $*"
  if [ "$(id -u)" != 0 ]; then fail "$why. Run: sudo $command"; fi
  say "$why: $command"
  apt-get update -q >/dev/null || say 'apt-get update failed; trying with the lists that are here'
  DEBIAN_FRONTEND=noninteractive $command >/dev/null || fail "this failed: $command"
}

has_library() { ldconfig -p | grep -q "$1"; }

command -v "$python" >/dev/null || need_apt 'Python is missing' python3 python3-venv
"$python" - <<'PY' || fail "Python 3.10 to 3.13 is needed, $("$python" --version) found; set PYTHON=…"
import sys
sys.exit(not (3, 10) <= sys.version_info < (3, 14))
PY
"$python" -c 'import ensurepip, venv' 2>/dev/null || need_apt 'the venv module is missing' python3-venv
# opencv-python needs libgl1 and libglib2.0-0; MuJoCo renders headless through OSMesa (or EGL on a GPU).
missing=()
has_library libGL.so.1 || missing+=(libgl1)
has_library libgthread-2.0.so.0 || missing+=(libglib2.0-0)
has_library libOSMesa.so || missing+=(libosmesa6)
[ ${#missing[@]} = 0 ] || need_apt 'system libraries are missing' "${missing[@]}"

# A real rclpy is one that can be imported outside our environment (a sourced ROS 2).
real_ros=no
"$python" -c 'import rclpy' 2>/dev/null && real_ros=yes
if [ ! -x "$venv/bin/python" ]; then
  say "creating $venv"
  if [ $real_ros = yes ]; then "$python" -m venv --system-site-packages "$venv"; else "$python" -m venv "$venv"; fi
fi
touch "$venv/COLCON_IGNORE"

pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
say 'installing Python packages (about 600 MB; a minute or two)'
pip install --quiet --upgrade pip 'setuptools>=61,<80' wheel 2>&1 | grep -v '^WARNING: Location' || true
extras=sim,test
pip install --progress-bar on --no-build-isolation -e ".[$extras]" 2>&1 | grep -E --line-buffered '^(Collecting|Installing|Successfully|ERROR|error)' | sed -u 's/^Collecting/  collecting/'
pip check >/dev/null || pip check || fail 'the installed packages do not fit together'
if [ $real_ros = no ]; then
  say 'no ROS 2 found: installing its stand-in embedded_ros and colcon'
  pip install --quiet --no-build-isolation ./embedded_ros -r scripts/without-ros-requirements.txt 2>&1 | grep -v '^WARNING: Location' || true
  "$venv/bin/python" -m embedded_ros.interfaces ros_pi0_fast msg
fi
"$venv/bin/python" -c 'import jax, flax, mujoco, rclpy' || fail 'the installation is not complete'
touch "$venv/.installed"
say 'done'
