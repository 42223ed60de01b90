# prints which EGL setup renders; sets it
try() { timeout 25 env OMP_NUM_THREADS=1 MUJOCO_GL=egl python3 - <<'P'
import time,sys
t=time.time()
from ros_pi0_fast.sim.tabletop import Tabletop
table=Tabletop(0); table.observe()
b=time.time()
for _ in range(50): m=table.observe().images['base_0_rgb'].mean()
e=(time.time()-b)/50*1e3
print(f'start {b-t:.1f} s, {e:.2f} ms an observation, mean {m:.1f}',flush=True)
sys.exit(e>30)
P
}
J=/usr/local/nvidia/share/glvnd/egl_vendor.d/10_nvidia.json
ls $J; ldconfig -p | grep -E 'libEGL|libOSMesa' 
if try; then echo plain works
else for f in $ROOT/.gl/*.deb; do dpkg -x $f /; done; ldconfig
  if try; then echo .gl works
  else export __EGL_VENDOR_LIBRARY_FILENAMES=$J; try && echo vendor works || exit 7; fi
fi
