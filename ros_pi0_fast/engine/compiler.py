"""Ahead-of-time compilation: once for each stage and sizes, counted, kept on disk if asked to."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

READS_BACK = (0, 6, 1)
"""The first JAX that reads executables for CPUs back as it wrote them: those of pruning, int8 and
speculation that 0.6.0 reads choose other ids."""

CompilerOptions = tuple[tuple[str, bool | int | str], ...]

PLATFORM_OPTIONS: dict[str, CompilerOptions] = {'gpu': (
    # A loop is one CUDA graph, loop and all: no launch of its own for each of the hundreds of
    # kernels of a pass, and no wait of the host for the condition of the loop.
    ('xla_gpu_enable_command_buffer',
     'FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONDITIONAL,WHILE,DYNAMIC_SLICE_FUSION'),
    ('xla_gpu_graph_min_graph_size', 1),
    ('xla_enable_command_buffers_during_profiling', True))}
"""Of XLA by platform; what is given to a Compiler comes on top."""


class CompilationCacheError(RuntimeError):
    """Executables cannot be kept on disk."""


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """One executable that was made. Without its key: JAX keeps traces as long as the stage."""

    seconds: float
    thread: str
    """Name of the thread that compiled it."""
    temporary_bytes: int
    """Scratch memory that it takes while it runs."""


class Compiler:
    """Compiles a function once for each key. May be used by several threads.

    Args:
        options: Of XLA for every executable: see jax.stages.Lowered.compile.
    """

    def __init__(self, options: CompilerOptions = ()) -> None:
        self.log: list[Compilation] = []
        """What was compiled so far, in order."""
        self.options = dict(PLATFORM_OPTIONS.get(jax.default_backend(), ())) | dict(options)
        """Of XLA: see jax.stages.Lowered.compile."""
        if jax.__version_info__ < READS_BACK:  # Whoever asked for it.
            jax.config.update('jax_enable_compilation_cache', False)
        self._compiled: dict[Hashable, jax.stages.Compiled] = {}
        self._lock = threading.Lock()
        self._key_locks: dict[Hashable, threading.Lock] = {}
        self._shares: weakref.WeakSet[Share] = weakref.WeakSet()

    def share(self) -> Share:
        """Return a view that keeps the executables that are asked for through it."""
        share = Share(self)
        with self._lock:
            self._shares.add(share)
        return share

    def sweep(self) -> None:
        """Give up the executables that no share has any more."""
        with self._lock:
            used = set().union(*(share.keys for share in self._shares))
            for key in [key for key in self._compiled if key not in used]:
                del self._compiled[key]
                self._key_locks.pop(key, None)

    def executables(self) -> list[tuple[Hashable, jax.stages.Compiled]]:
        """Return keys and executables."""
        return list(self._compiled.items())

    def find(self, key: Hashable) -> jax.stages.Compiled | None:
        """Return the executable of a key if there is one."""
        return self._compiled.get(key)

    def get(self, key: Hashable, function: Callable[..., Any], *arguments: Any,
            donate: tuple[int, ...] = ()) -> jax.stages.Compiled:
        """Return the executable of a key, compiled for arguments of these shapes if it is new.

        Args:
            key: What is static: the stage and its sizes.
            function: Pure, of arrays.
            arguments: Arrays, or shapes (jax.ShapeDtypeStruct).
            donate: Which arguments' buffers the result may take over.
        """
        found = self._compiled.get(key)
        if found is not None:
            return found
        with self._lock:
            lock = self._key_locks.setdefault(key, threading.Lock())
        with lock:
            found = self._compiled.get(key)
            if found is None:
                found = self._compiled[key] = self._compile(function, arguments, donate)
        return found

    def _compile(self, function: Callable[..., Any], arguments: tuple[Any, ...],
                 donate: tuple[int, ...]) -> jax.stages.Compiled:
        began = time.perf_counter()
        lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
        compiled = lowered.compile(compiler_options=self.options or None)
        memory = compiled.memory_analysis()
        self.log.append(Compilation(
            seconds=time.perf_counter() - began, thread=threading.current_thread().name,
            temporary_bytes=getattr(memory, 'temp_size_in_bytes', 0) or 0))
        return compiled


class Share:
    """What one user of a compiler has asked for; kept as long as this object."""

    def __init__(self, compiler: Compiler):
        self.keys: set[Hashable] = set()
        self._compiler = compiler

    def find(self, key: Hashable) -> jax.stages.Compiled | None:
        """See Compiler.find."""
        found = self._compiler.find(key)
        if found is not None:
            self.keys.add(key)
        return found

    def get(self, key: Hashable, function: Callable[..., Any], *arguments: Any,
            donate: tuple[int, ...] = ()) -> jax.stages.Compiled:
        """See Compiler.get."""
        self.keys.add(key)
        return self._compiler.get(key, function, *arguments, donate=donate)


def enable_persistent_cache(folder: Path) -> None:
    """Keep executables of this process in a folder, so that the next start need not compile.

    Raises:
        CompilationCacheError: this JAX reads them back wrong.
        OSError: the folder cannot be made.
    """
    if jax.__version_info__ < READS_BACK:
        raise CompilationCacheError(f'JAX {jax.__version__}, expected at least '
                                    f'{".".join(map(str, READS_BACK))} to read executables back')
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
