"""The decoder's pass as one kernel of CUDA C++: on a GPU, and without one on an emulator of it."""

import ctypes
import functools
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import layer

from ros_pi0_fast.accel.kernels import decoder_pass, few_tokens
from ros_pi0_fast.accel.kernels.cuda_source import CudaSourceError, to_ptx
from ros_pi0_fast.accel.kernels.decoder_pass import (
    MEMORY,
    THREADS,
    TOKENS,
    PassShape,
    interface,
)
from ros_pi0_fast.accel.kernels.device import Device
from ros_pi0_fast.accel.kernels.few_tokens import FewTokensBlock
from ros_pi0_fast.model.attention import Visible, folded
from ros_pi0_fast.model.cache import LayerCache
from ros_pi0_fast.model.config import get_config
from ros_pi0_fast.model.gemma import Block, Tokens

FULL = get_config('full').gemma
CONFIG = replace(FULL, mlp_dim=4096, depth=2)
SLOTS, FIRST, SLOT = 200, 3, 127
"""Of the cache; the new tokens come to lie on both sides of slot 128, where a tile ends."""
HOPPER = Device(platform='gpu', capability=9.0, multiprocessors=132)
BITS = {'bfloat16': 16, 'int8': 8, 'int4': 4}
ROUNDED = 1.5e-2
"""Relative error of two layers in bfloat16, each product and norm of which rounds once."""
EMULATOR = Path(__file__).parent / 'cuda_emulator'
LIBRARY = """
#include "{folder}/builtins.hpp"
{source}
static void** given;
extern "C" int run(void** pointers, unsigned seed) {{
    given = pointers;
    return emulator::run(CTAS, {threads}, MEMORY, seed, [] {{ decoder_pass({arguments}); }});
}}
"""


def where(tokens, slot=SLOT):
    steps, at = jnp.arange(tokens, dtype=jnp.int32), jnp.array([slot], jnp.int32)
    return Tokens(positions=at[:, None] + steps - FIRST, slot=at, visible=Visible(
        start=jnp.array([FIRST], jnp.int32), end=at[:, None] + steps + 1, uniform=tokens == 1))


def case(kind, tokens, config):
    """Return layers as the model takes them and by outputs, caches, and new tokens."""
    layers = [layer(kind, config, seed=1 + 2 * i) for i in range(config.depth)]
    keys = jax.random.split(jax.random.key(9), 3)
    shape = (config.depth, 1, SLOTS, 1, config.head_dim)
    k, v = (jax.random.normal(key, shape).astype(jnp.bfloat16) for key in keys[:2])
    x = jax.random.normal(keys[2], (1, tokens, config.width)).astype(jnp.bfloat16)
    return (*zip(*layers, strict=True), tuple(map(LayerCache, k, v)), x)


def of_the_model(config, layers, caches, x):
    """Return what the model makes of new tokens, and its caches."""
    written = []
    for weights, cache in zip(layers, caches, strict=True):
        x, cache = jax.jit(Block(config, folded).apply)(
            {'params': weights}, x, where(x.shape[1]), cache)
        written.append(cache)
    return x, written


def check(found, expected, caches):
    y, written = found
    expected_y, expected_caches = expected
    assert y.shape == expected_y.shape and y.dtype == expected_y.dtype
    new = slice(SLOT, SLOT + y.shape[1])
    for one, other in ((y, expected_y), *(
            (getattr(ours, part)[0, new], getattr(theirs, part)[0, new])
            for ours, theirs in zip(written, expected_caches, strict=True) for part in 'kv')):
        one, other = (np.asarray(a, np.float32) for a in (one, other))
        assert np.linalg.norm(one - other) < ROUNDED * np.linalg.norm(other)
    for ours, before in zip(written, caches, strict=True):
        for part in 'kv':
            kept, own = (np.delete(np.asarray(getattr(cache, part))[0], new, axis=0)
                         for cache in (before, ours))
            assert np.array_equal(kept, own)


# --- on an emulator --------------------------------------------------------------------------


@functools.cache
def library(shape, parameters, folder):
    """Compile the kernel for a CPU, in the place of PTX what emulates it."""
    source = shape.source(parameters, {'ptx.cuh': (EMULATOR / 'ptx.hpp').read_text()})
    text = LIBRARY.format(folder=EMULATOR, source=source, threads=THREADS, arguments=', '.join(
        f'given[{i}]' for i in range(parameters)))
    path = folder / f'{shape.bits}_{shape.tokens}.cpp'
    path.write_text(text)
    done = subprocess.run(
        [shutil.which('g++'), '-std=c++17', '-O1', '-shared', '-fPIC', '-Wno-unknown-pragmas',
         '-o', path.with_suffix('.so'), path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(path.with_suffix('.so'))


def turns(tokens):
    return FewTokensBlock(CONFIG, folded).turns(where(tokens))


def emulated(stored, caches, x, slot, cosines, sines, folder):
    """Return what the kernel makes of new tokens on an emulator, and its caches."""
    shape = PassShape.of(CONFIG, len(stored), decoder_pass.bits_of(stored), x.shape[1], SLOTS,
                         replace(HOPPER, multiprocessors=16))
    assert shape.tiles == 2
    operands, results, aliases = interface(
        shape, stored, caches, x[0], cosines, sines, jnp.array([FIRST, slot], jnp.int32))
    given = [np.array(array) for array in operands]
    taken = {result: given[operand] for operand, result in aliases.items()}
    made = [taken.get(i, np.zeros(result.shape, result.dtype)) for i, result in enumerate(results)]
    pointers = (ctypes.c_void_p * len(given + made))(*(a.ctypes.data for a in given + made))
    assert library(shape, len(pointers), folder).run(pointers, 1) == 1, 'it stands still'
    return made[0][None], tuple(
        LayerCache(k=k, v=v) for k, v in zip(made[2::2], made[3::2], strict=True))


needs_compiler = pytest.mark.skipif(shutil.which('g++') is None,
                                    reason='no g++, which compiles the emulator')


@needs_compiler
@pytest.mark.parametrize(('kind', 'tokens'), [
    ('int8', 3), *(pytest.param(kind, tokens, marks=pytest.mark.slow) for kind in BITS
                   for tokens in (1, 2, 3, 4) if (kind, tokens) != ('int8', 3))])
def test_a_pass_is_the_model_s_layers_on_an_emulator(kind, tokens, tmp_path):
    layers, stored, caches, x = case(kind, tokens, CONFIG)
    check(emulated(stored, caches, x, SLOT, *turns(tokens), tmp_path),
          of_the_model(CONFIG, layers, caches, x), caches)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize('kind', BITS)
def test_tokens_at_once_are_exactly_those_one_by_one_on_an_emulator(kind, tmp_path):
    _, stored, caches, x = case(kind, 3, CONFIG)
    # Not computed anew for each: a compiler's cosine depends on how many it computes.
    of_all = turns(3)
    at_once, written = emulated(stored, caches, x, SLOT, *of_all, tmp_path)
    for i in range(3):
        one, caches = emulated(stored, caches, x[:, i:i + 1], SLOT + i,
                               *(turn[i:i + 1] for turn in of_all), tmp_path)
        assert np.array_equal(one[0, 0], at_once[0, i])
    assert all(map(np.array_equal, jax.tree.leaves(caches), jax.tree.leaves(written)))


# --- on a GPU --------------------------------------------------------------------------------


def gpu_refusal():
    return PassShape.of(FULL, 2, 8, 3, SLOTS, Device.current()).refusal()


needs_gpu = pytest.mark.skipif(bool(gpu_refusal()), reason=gpu_refusal())


@needs_gpu
@pytest.mark.parametrize('tokens', [1, 3, 4])
@pytest.mark.parametrize('kind', BITS)
def test_a_pass_is_the_model_s_layers_on_a_gpu(kind, tokens):
    config = replace(FULL, depth=2)
    layers, stored, caches, x = case(kind, tokens, config)
    found = jax.jit(FewTokensBlock(config, folded).whole)(stored, x, where(tokens), caches)
    check(found, of_the_model(config, layers, caches, x), caches)


@needs_gpu
@pytest.mark.parametrize('kind', BITS)
def test_tokens_at_once_are_exactly_those_one_by_one_on_a_gpu(kind):
    config = replace(FULL, depth=2)
    _, stored, caches, x = case(kind, 3, config)
    whole = jax.jit(FewTokensBlock(config, folded).whole)
    at_once, written = whole(stored, x, where(3), caches)
    for i in range(3):
        one, caches = whole(stored, x[:, i:i + 1], where(1, SLOT + i), caches)
        assert np.array_equal(one[0, 0], at_once[0, i])
    assert all(map(np.array_equal, jax.tree.leaves(caches), jax.tree.leaves(written)))


# --- what it is for --------------------------------------------------------------------------


@pytest.mark.parametrize(('fields', 'said'), [
    ({'tokens': 5}, '5 tokens'), ({'slots': 4096}, '4096 slots'), ({'capability': 8.9}, '8.9'),
    ({'capability': 12.0}, '12'), ({'blocks': 32}, '32 multiprocessors'),
    ({'width': 1024, 'heads': 4}, 'width 1024'), ({'hidden': 3000}, 'hidden 3000')])
def test_there_is_no_kernel_for_other_shapes(fields, said):
    shape = PassShape.of(FULL, FULL.depth, 8, 3, 881, HOPPER)
    assert said in replace(shape, **fields).refusal()


@pytest.mark.parametrize('tokens', range(1, TOKENS + 1))
@pytest.mark.parametrize('kind', BITS)
def test_what_a_block_keeps_has_room(kind, tokens):
    shape = PassShape.of(FULL, FULL.depth, BITS[kind], tokens, 1400, HOPPER)
    assert shape.blocks == 128 and shape.stages >= 5
    assert shape.stages * shape.slot_bytes + shape.shared_bytes <= MEMORY


def test_a_device_without_it_runs_layers_one_by_one():
    _, stored, caches, x = case('int8', 1, replace(CONFIG, depth=1))
    block = FewTokensBlock(CONFIG, folded, interpret=True)
    assert block.whole(stored, x, where(1), caches) is None
    assert Block.whole(stored, x, where(1), caches) is None


def test_it_is_one_call_that_writes_caches_in_place(monkeypatch):
    monkeypatch.setattr(few_tokens, 'Device', SimpleNamespace(current=lambda: HOPPER))
    monkeypatch.setattr(decoder_pass, 'cuda_refusal', str)
    monkeypatch.setattr(decoder_pass, 'to_ptx', lambda source: 'some PTX')
    _, stored, caches, x = jax.eval_shape(lambda: case('int8', 3, CONFIG))
    lowered = jax.jit(FewTokensBlock(CONFIG, folded).whole).trace(
        stored, x, where(3), caches).lower(lowering_platforms=('cuda',))
    y, written = lowered.out_info
    assert y.shape == x.shape and written[1].k.shape == caches[1].k.shape
    text = lowered.as_text()
    assert text.count(decoder_pass.TARGET) == 1 and 'some PTX' in text
    assert text.count('operand_index') == 2 * CONFIG.depth + 1


@pytest.mark.parametrize('change', [
    lambda layer: jax.eval_shape(lambda: case('int8', 1, CONFIG)[1][1]),
    lambda layer: {**layer, 'pre_ffw_norm': {'scale': jnp.zeros(CONFIG.width)}},
    lambda layer: jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        (x.shape[0], 2 * x.shape[1]), x.dtype) if x.shape[1:] in ((16,), (32,)) else x, layer)],
    ids=['other bits', 'float32 gains', 'groups of 64'])
def test_weights_that_it_would_read_wrong_are_left_to_the_layers(change, monkeypatch):
    monkeypatch.setattr(few_tokens, 'Device', SimpleNamespace(current=lambda: HOPPER))
    monkeypatch.setattr(decoder_pass, 'cuda_refusal', str)
    stored = jax.eval_shape(lambda: case('int4', 1, CONFIG)[1])
    other = stored[0], change(stored[1])
    assert jax.tree.leaves(other) != jax.tree.leaves(stored)
    assert decoder_pass.bits_of(stored) == 4 and decoder_pass.bits_of(other) is None
    _, _, caches, x = jax.eval_shape(lambda: case('int4', 1, CONFIG))
    assert FewTokensBlock(CONFIG, folded).whole(other, x, where(1), caches) is None


def nvrtc_refusal():
    try:
        from cuda.bindings import nvrtc
        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        return f'no NVRTC: {error}'
    return ''


@pytest.mark.skipif(bool(nvrtc_refusal()), reason=nvrtc_refusal())
def test_a_source_is_compiled_or_told_what_is_wrong():
    shape = PassShape.of(FULL, FULL.depth, 8, 3, 881, HOPPER)
    assert '.entry decoder_pass(' in to_ptx(shape.source(367))
    with pytest.raises(CudaSourceError, match='nonsense'):
        to_ptx('nonsense')
