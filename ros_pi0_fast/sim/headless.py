"""Which OpenGL MuJoCo renders with where there is no screen."""

from __future__ import annotations

import ctypes.util
import os
import sys


def choose_opengl() -> None:
    """Set MUJOCO_GL, unless the user has, on Linux without a screen.

    Call it before MuJoCo is imported, which reads it; GLFW, its default, needs a screen. OSMesa
    renders on the CPU and needs no driver; where it is not installed, EGL is left.
    """
    if sys.platform != 'linux' or os.environ.get('DISPLAY') or 'MUJOCO_GL' in os.environ:
        return
    os.environ['MUJOCO_GL'] = 'osmesa' if ctypes.util.find_library('OSMesa') else 'egl'
