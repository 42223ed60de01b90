"""CUDA C++ compiled at run time, where JAX's own ways to write kernels do not reach."""

from __future__ import annotations

import functools
import logging

ARCHITECTURE = 'compute_90'
OPTIONS = (f'--gpu-architecture={ARCHITECTURE}', '--std=c++17',
           '--device-as-default-execution-space')


class CudaSourceError(RuntimeError):
    """NVRTC does not compile a source; the message has its log."""


@functools.cache
def cuda_refusal() -> str:
    """Return why CUDA C++ cannot be compiled for the GPU of this machine, or ''; say it once."""
    reason = _refusal()
    if reason:
        logging.getLogger(__name__).warning(
            'no kernels of CUDA C++: %s; slower ones are used', reason)
    return reason


def _refusal() -> str:
    try:
        from cuda.bindings import driver, nvrtc
    except ImportError:
        return "cuda-bindings is not installed (pip install 'ros_pi0_fast[gpu]')"
    try:
        (_, *compiler), (_, newest) = nvrtc.nvrtcVersion(), driver.cuDriverGetVersion()
    except RuntimeError as error:  # The libraries are loaded by the first call.
        return str(error)
    # A driver does not read the PTX of a compiler that is newer than itself.
    if tuple(compiler) > (newest // 1000, newest % 1000 // 10):
        return (f'NVRTC {compiler[0]}.{compiler[1]}, expected at most the CUDA '
                f'{newest // 1000}.{newest % 1000 // 10} of the driver')
    return ''


@functools.cache
def to_ptx(source: str) -> str:
    """Return CUDA C++ as PTX for ARCHITECTURE and later.

    Raises:
        CudaSourceError: it is wrong.
    """
    from cuda.bindings import nvrtc

    def done(result: tuple) -> object:
        code, *found = result
        if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CudaSourceError(f'NVRTC: {code.name}')
        return found[0] if found else None

    program = done(nvrtc.nvrtcCreateProgram(source.encode(), b'source.cu', 0, [], []))
    code, = nvrtc.nvrtcCompileProgram(program, len(OPTIONS), [o.encode() for o in OPTIONS])
    if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = b' ' * done(nvrtc.nvrtcGetProgramLogSize(program))
        done(nvrtc.nvrtcGetProgramLog(program, log))
        raise CudaSourceError(f'NVRTC: {code.name}: {log.decode()}')
    ptx = b' ' * done(nvrtc.nvrtcGetPTXSize(program))
    done(nvrtc.nvrtcGetPTX(program, ptx))
    done(nvrtc.nvrtcDestroyProgram(program))
    return ptx.decode().rstrip('\0')
