"""A pass of the decoder for a few tokens as one kernel. Of bfloat16 lossless; see few_product.

Kernels that follow one another each wait for the one before, and while they do, and while norms
and attention run, the memory idles, which is a third of a pass or, of four bits, three quarters.
Here one block on each multiprocessor stays for all layers; a warp of it reads weights ahead of the
others, over the points where blocks wait for one another. The kernel is CUDA C++
(decoder_pass_cuda/), since that is what asynchronous copies, tensor cores and words between blocks
have in common; it is compiled by NVRTC and started by XLA as a custom call of PTX (openxla/xla,
xla/service/gpu/kernel_call.h).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.accel.kernels.cuda_source import cuda_refusal, to_ptx
from ros_pi0_fast.accel.kernels.device import Device
from ros_pi0_fast.accel.kernels.rows import Rows
from ros_pi0_fast.model.cache import LayerCache
from ros_pi0_fast.model.config import GemmaConfig
from ros_pi0_fast.model.layers import Params

TOKENS = 4
"""At most. More are not seen to be faster so."""
HEAD = 256
GROUP = 128
"""Inputs that share a scale in four bits."""
VALUES = {16: jnp.bfloat16, 8: jnp.int8, 4: jnp.uint8}
"""By bits, the dtype of stored weights."""
WARPS = 8
"""Of a block, that compute; one more reads weights."""
THREADS = 32 * (WARPS + 1)
"""Of a block."""
BATCH = 4
"""Units of eight outputs that a block adds up at once."""
FILES = ('shape.cuh', 'ptx.cuh', 'numbers.cuh', 'words.cuh', 'ring.cuh', 'multiply.cuh',
         'attend.cuh', 'decoder_pass.cu')
"""Of the kernel, in their order."""
MEMORY = 227 * 1024
"""Bytes of shared memory that a block may have."""
LARGEST_TILES = 2
"""Of eight slots that a warp has registers for."""
LINE = 16
"""Words of a line of the cache."""
CAPABILITY = 9.0
"""Compute capability of Hopper, which it was written for and seen on."""
TARGET = '__gpu$xla.gpu.ptx'
FIRST_LAYER = 5
"""Operands before those of the layers: x, cos, sin, bounds, words."""


@dataclass(frozen=True, kw_only=True)
class PassShape:
    """What the kernel is compiled for."""

    bits: int
    """Of a weight: 16, 8 or 4."""
    tokens: int
    layers: int
    slots: int
    """Capacity of the cache."""
    heads: int
    width: int
    hidden: int
    blocks: int
    """One a multiprocessor."""
    capability: float
    """Of the device: see Device."""

    @classmethod
    def of(cls, config: GemmaConfig, layers: int, bits: int, tokens: int, slots: int,
           device: Device) -> PassShape:
        """Return it; see `refusal` for whether there is such a kernel."""
        return cls(bits=bits, tokens=tokens, layers=layers, slots=slots, heads=config.num_heads,
                   width=config.width, hidden=config.mlp_dim,
                   blocks=1 << (device.multiprocessors.bit_length() - 1)
                   if device.multiprocessors else 0,
                   capability=device.capability)

    def refusal(self) -> str:
        """Return why there is no kernel for it, or ''."""
        if self.capability != CAPABILITY:
            return f'compute capability {self.capability:g}, expected {CAPABILITY}'
        if self.width != WARPS * HEAD or self.width != self.heads * HEAD or (
                self.hidden % self.width):
            return (f'width {self.width}, {self.heads} heads, hidden {self.hidden}, expected '
                    f'{WARPS} heads of {HEAD} and multiples of their width')
        if not 1 <= self.tokens <= TOKENS or self.blocks not in (64, 128):
            return (f'{self.tokens} tokens on {self.blocks} multiprocessors, expected at most '
                    f'{TOKENS} on at least 64')
        if self.tiles > LARGEST_TILES:
            return f'{self.slots} slots, more than {LARGEST_TILES} tiles a warp'
        return cuda_refusal()

    @property
    def slot_bytes(self) -> int:
        """Of a unit of weights in shared memory."""
        row = self.width * self.bits // 8
        groups, scales = self.width // GROUP if self.bits == 4 else 0, 32 if self.bits < 16 else 0
        return -(-(8 * (row + groups) + scales) // 128) * 128

    @property
    def shared_bytes(self) -> int:
        """Of all but the ring, rounded up."""
        t, splits = self.tokens, self.blocks // self.heads
        pointers = 8 * (FIRST_LAYER + 25 * self.layers + 2)
        sums = 2 * WARPS * 4 * BATCH * 8 * t
        tokens = t * (4096 + 128)
        attention = 2 * WARPS * 4 * HEAD + 3 * t * 2 * (HEAD + 32)
        others = WARPS * t * 32 * self.tiles + (16 * splits + 4 * HEAD) * t + 2048
        return pointers + sums + max(tokens, attention) + others

    @property
    def tiles(self) -> int:
        """Of eight slots that each warp attends to."""
        return -(-self.slots // (self.blocks // self.heads * WARPS * 8))

    @property
    def stages(self) -> int:
        """Units that the ring has room for."""
        return (MEMORY - self.shared_bytes) // self.slot_bytes

    @property
    def places(self) -> tuple[dict[str, int], int]:
        """Return where words that blocks give each other are, and how many there are."""
        t, splits = self.tokens, self.blocks // self.heads
        sizes = {
            'LAYER': t * self.width // 2, 'PROJECTED': t * (self.heads + 2) * HEAD // 2,
            'PARTS': self.heads * splits * t * HEAD, 'TOPS': self.heads * splits * t * 2,
            'MIXED': t * self.width // 2, 'MIDDLE': t * self.width // 2,
            'HIDDEN': t * self.hidden // 2, 'SUMS': t * self.hidden}
        ends = itertools.accumulate(-(-size // LINE) * LINE for size in sizes.values())
        starts = [0, *ends]
        return {f'AT_{name}': at for name, at in zip(sizes, starts, strict=False)}, starts[-1]

    def source(self, parameters: int, instead: Mapping[str, str] = MappingProxyType({})) -> str:
        """Return the kernel in CUDA C++.

        Args:
            parameters: Of the kernel: operands and results.
            instead: Texts in the place of some of FILES.
        """
        constants = {
            'BITS': self.bits, 'T': self.tokens, 'LAYERS': self.layers, 'SLOTS': self.slots,
            'HEADS': self.heads, 'WIDTH': self.width, 'HIDDEN': self.hidden, 'CTAS': self.blocks,
            'STAGES': self.stages, 'WARPS': WARPS, 'BATCH': BATCH, 'TILES': self.tiles,
            'MEMORY': MEMORY, **self.places[0]}
        names = [f'p{i}' for i in range(parameters)]
        taken = len(names) - 1 - 2 * self.layers  # The rest are those taken over.
        moves = ''.join(
            f'case {warp}: ' + ''.join(f'where[{i}] = p{i}; ' for i in range(warp, taken, WARPS))
            + 'break; ' for warp in range(WARPS))
        head = [f'#define {name} {value}' for name, value in constants.items()]
        head.append('#define PARAMETERS ' + ', '.join(f'void* {name}' for name in names))
        head.append(f'#define TAKE(where, warp, lane) if (lane == 0) switch (warp) {{ {moves}}}')
        folder = resources.files(__package__) / 'decoder_pass_cuda'
        return '\n'.join([*head, *(
            instead.get(name) or (folder / name).read_text() for name in FILES)])


def bits_of(layers: Sequence[Params]) -> int | None:
    """Return the bits of all weights, or None where they are not all as the kernel reads them."""
    parts = [part for weights in layers for part in _parts(weights)]
    bits = parts[0].bits
    read = all(part.bits == bits and part.values.dtype == VALUES[bits]
               and (bits != 4 or part.group_size == GROUP) for part in parts)
    gains = all(gain.dtype == jnp.bfloat16 for weights in layers for gain in _gains(weights))
    return bits if read and gains else None


def _gains(weights: Params) -> list[jax.Array]:
    return [weights['pre_attention_norm']['scale'], weights['pre_ffw_norm']['scale']]


def _parts(weights: Params) -> list[Rows]:
    """Return the matrices of a layer in the kernel's order."""
    attn, mlp = weights['attn'], weights['mlp']
    return [*attn['q_einsum']['w'].parts, *attn['kv_einsum']['w'].parts,
            *attn['attn_vec_einsum']['w'].parts, *mlp['gating_einsum'].parts,
            *mlp['linear'].parts]


def _arrays(weights: Params, bits: int) -> list[jax.Array]:
    """Return the arrays of a layer in the kernel's order, its cache left out."""
    parts = _parts(weights)
    return [*_gains(weights), *(part.values for part in parts),
            *(part.scale for part in parts if bits < 16),
            *(part.groups for part in parts if bits == 4)]


def interface(shape: PassShape, layers: Sequence[Params], caches: Sequence[LayerCache],
              x: jax.Array, cos: jax.Array, sin: jax.Array, bounds: jax.Array,
              ) -> tuple[list[jax.Array], list[jax.ShapeDtypeStruct], dict[int, int]]:
    """Return the kernel's operands, its results, and which operand's place which result takes.

    Args and results: see decoder_pass.
    """
    operands = [x, cos, sin, bounds, jnp.zeros((shape.places[1], 2), jnp.uint32)]
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype),
               jax.ShapeDtypeStruct(operands[-1].shape, jnp.uint32)]
    aliases = {FIRST_LAYER - 1: 1}
    for weights, cache in zip(layers, caches, strict=True):
        operands += _arrays(weights, shape.bits)
        for array in (cache.k, cache.v):
            aliases[len(operands)] = len(results)
            operands.append(array)
            results.append(jax.ShapeDtypeStruct(array.shape, array.dtype))
    return operands, results, aliases


def decoder_pass(shape: PassShape, layers: Sequence[Params], caches: Sequence[LayerCache],
                 x: jax.Array, cos: jax.Array, sin: jax.Array, bounds: jax.Array,
                 ) -> tuple[jax.Array, tuple[LayerCache, ...]]:
    """Run new tokens through layers.

    Args:
        shape: See PassShape.refusal.
        layers: Parameters, whose matrices are Rows: see bits_of.
        caches: bfloat16 [1, slots, 1, h]; the buffers are taken over.
        x: bfloat16 [t, d]
        cos: float32 [t, h / 2]: of the rotary embedding.
        sin: float32 [t, h / 2]
        bounds: int32 [2]: first valid slot, and the one of the first new token.

    Returns:
        bfloat16 [t, d]; the caches, with keys and values of the new tokens.
    """
    operands, results, aliases = interface(shape, layers, caches, x, cos, sin, bounds)
    parameters = len(operands) + len(results)
    found = jax.ffi.ffi_call(TARGET, results, input_output_aliases=aliases)(
        *operands, name='decoder_pass', kernel_type='ptx',
        kernel_data=to_ptx(shape.source(parameters)),
        grid_x=np.int32(shape.blocks), grid_y=np.int32(1), grid_z=np.int32(1),
        block_x=np.int32(THREADS), block_y=np.int32(1), block_z=np.int32(1),
        shared_mem_bytes=np.int32(MEMORY),
        output_indices=tuple(range(len(operands), parameters)))
    kept = found[2:]
    return found[0], tuple(LayerCache(k=k, v=v)
                           for k, v in zip(kept[::2], kept[1::2], strict=True))
