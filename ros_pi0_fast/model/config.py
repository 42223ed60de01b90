"""The sizes of a model: everything that is static about it, hashable, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ['GemmaConfig', 'Pi0FastConfig', 'SiglipConfig', 'config_from_params', 'get_config']

DTYPES = ('float32', 'bfloat16')
CAMERA_KEYS = ('base_0_rgb', 'base_1_rgb', 'wrist_0_rgb')
PALIGEMMA_VOCABULARY = 257_152


@dataclass(frozen=True, kw_only=True)
class SiglipConfig:
    """A SigLIP vision transformer without pooling: one token a patch (arXiv:2303.15343)."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch_size: tuple[int, int]
    """Height and width of a patch, pixels."""
    image_size: tuple[int, int]
    """Height and width of the pictures that the model takes, pixels."""

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across a picture; pixels beyond the last whole patch are unused."""
        return tuple(size // patch for size, patch in zip(self.image_size, self.patch_size,
                                                          strict=True))

    @property
    def num_tokens(self) -> int:
        """Tokens that one picture becomes."""
        return math.prod(self.grid)

    @property
    def head_dim(self) -> int:
        """Features of one attention head."""
        return self.width // self.num_heads


@dataclass(frozen=True, kw_only=True)
class GemmaConfig:
    """A Gemma decoder (arXiv:2403.08295) with tied embeddings."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class Pi0FastConfig:
    """A Pi0-FAST policy (arXiv:2501.09747): SigLIP, Gemma, and the shape of what it predicts."""

    siglip: SiglipConfig
    gemma: GemmaConfig
    action_dim: int
    action_horizon: int
    """Actions in a chunk."""
    max_token_len: int
    """Most text tokens of a prompt; in training, of prompt and actions together."""
    camera_keys: tuple[str, ...] = CAMERA_KEYS
    """Names of the cameras, sorted: the order in which the model sees them."""
    dtype: str = 'float32'
    """Of activations and of the key-value cache."""
    first_token_offset: int = 1
    """Position of the first generated token beyond the number of prefix tokens. openpi decodes
    with 1 although it trains with 0, and its checkpoints are meant to be run that way."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built.

        Raises:
            ValueError: names the field, what it holds and what it should.
        """
        if self.dtype not in DTYPES:
            raise ValueError(f'dtype: {self.dtype!r}, expected one of {", ".join(DTYPES)}')
        if not self.camera_keys or list(self.camera_keys) != sorted(set(self.camera_keys)):
            raise ValueError(f'camera_keys: {list(self.camera_keys)}, expected distinct names in '
                             'alphabetical order, at least one')
        heads, kv_heads = self.gemma.num_heads, self.gemma.num_kv_heads
        if heads % kv_heads:
            raise ValueError(f'gemma.num_kv_heads: {kv_heads}, expected a divisor of '
                             f'num_heads = {heads}')
        if self.siglip.width % self.siglip.num_heads:
            raise ValueError(f'siglip.num_heads: {self.siglip.num_heads}, expected a divisor of '
                             f'width = {self.siglip.width}')
        if not self.siglip.num_tokens:
            raise ValueError(f'siglip.image_size: {self.siglip.image_size}, expected at least one '
                             f'patch of {self.siglip.patch_size}')

    @property
    def num_image_tokens(self) -> int:
        """Tokens of all cameras together."""
        return len(self.camera_keys) * self.siglip.num_tokens


def _square(size: int) -> tuple[int, int]:
    return size, size


_PRESETS: dict[str, Pi0FastConfig] = {
    'tiny': Pi0FastConfig(
        siglip=SiglipConfig(width=128, depth=3, mlp_dim=512, num_heads=4,
                            patch_size=_square(8), image_size=_square(64)),
        gemma=GemmaConfig(width=192, depth=4, mlp_dim=768, num_heads=6, num_kv_heads=1,
                          head_dim=32, vocab_size=1024),
        action_dim=5, action_horizon=10, max_token_len=80,
        camera_keys=('base_0_rgb', 'wrist_0_rgb')),
    'tabletop': Pi0FastConfig(
        siglip=SiglipConfig(width=192, depth=4, mlp_dim=512, num_heads=6,
                            patch_size=_square(8), image_size=_square(64)),
        gemma=GemmaConfig(width=192, depth=6, mlp_dim=512, num_heads=6, num_kv_heads=1,
                          head_dim=32, vocab_size=1024),
        action_dim=5, action_horizon=10, max_token_len=80,
        camera_keys=('base_0_rgb', 'wrist_0_rgb')),
    'mid': Pi0FastConfig(
        siglip=SiglipConfig(width=384, depth=6, mlp_dim=1536, num_heads=6,
                            patch_size=_square(14), image_size=_square(224)),
        gemma=GemmaConfig(width=512, depth=8, mlp_dim=2048, num_heads=8, num_kv_heads=1,
                          head_dim=64, vocab_size=8192),
        action_dim=7, action_horizon=10, max_token_len=180),
    # gemma_2b and SigLIP So400m/14: the sizes of openpi's pi0_fast_base.
    'full': Pi0FastConfig(
        siglip=SiglipConfig(width=1152, depth=27, mlp_dim=4304, num_heads=16,
                            patch_size=_square(14), image_size=_square(224)),
        gemma=GemmaConfig(width=2048, depth=18, mlp_dim=16_384, num_heads=8, num_kv_heads=1,
                          head_dim=256, vocab_size=PALIGEMMA_VOCABULARY),
        action_dim=32, action_horizon=32, max_token_len=250, dtype='bfloat16'),
}


def get_config(name: str) -> Pi0FastConfig:
    """Return a preset: 'tiny', 'tabletop', 'mid' or 'full'.

    Raises:
        ValueError: there is no preset of that name.
    """
    if name not in _PRESETS:
        raise ValueError(f'preset: {name!r}, expected one of {", ".join(_PRESETS)}')
    return _PRESETS[name]


def config_from_params(params: Mapping[str, Any], *, action_dim: int, action_horizon: int,
                       max_token_len: int, camera_keys: tuple[str, ...] = CAMERA_KEYS,
                       image_size: tuple[int, int] | None = None, dtype: str = 'float32',
                       first_token_offset: int = 1) -> Pi0FastConfig:
    """Derive the architecture from the shapes of an openpi parameter tree.

    Args:
        params: Nested dict whose leaves have a `shape`; layers stacked along the first axis.
        action_dim: Values in an action.
        action_horizon: Actions in a chunk.
        max_token_len: See Pi0FastConfig.
        camera_keys: See Pi0FastConfig.
        image_size: Height and width, pixels; None where pictures are square.
        dtype: See Pi0FastConfig.
        first_token_offset: See Pi0FastConfig.

    Raises:
        KeyError: a parameter is missing.
        ValueError: the number of position embeddings does not fit the image size.
    """
    image, llm = params['PaliGemma']['img'], params['PaliGemma']['llm']
    block, layers = image['Transformer']['encoderblock'], llm['layers']
    *patch_size, _, width = image['embedding']['kernel'].shape
    positions = image['pos_embedding'].shape[1]
    siglip = SiglipConfig(
        width=width, depth=block['LayerNorm_0']['scale'].shape[0],
        mlp_dim=block['MlpBlock_0']['Dense_0']['kernel'].shape[-1],
        num_heads=block['MultiHeadDotProductAttention_0']['query']['kernel'].shape[-2],
        patch_size=tuple(patch_size),
        image_size=image_size or _square_image(positions, tuple(patch_size)))
    if siglip.num_tokens != positions:
        raise ValueError(f'PaliGemma/img/pos_embedding: {positions} positions, expected '
                         f'{siglip.num_tokens} for an image of {siglip.image_size} in patches of '
                         f'{siglip.patch_size}')
    return Pi0FastConfig(
        siglip=siglip, gemma=_gemma_from_params(llm, layers), action_dim=action_dim,
        action_horizon=action_horizon, max_token_len=max_token_len, camera_keys=camera_keys,
        dtype=dtype, first_token_offset=first_token_offset)


def _square_image(positions: int, patch_size: tuple[int, int]) -> tuple[int, int]:
    side = math.isqrt(positions)
    if side * side != positions:
        raise ValueError(f'PaliGemma/img/pos_embedding: {positions} positions, expected a square '
                         'number, since no image size was given')
    return side * patch_size[0], side * patch_size[1]


def _gemma_from_params(llm: Mapping[str, Any], layers: Mapping[str, Any]) -> GemmaConfig:
    depth, num_heads, head_dim, width = layers['attn']['attn_vec_einsum']['w'].shape
    # With as many key-value heads as heads, openpi fuses the three projections.
    kv_heads = num_heads if 'qkv_einsum' in layers['attn'] else (
        layers['attn']['kv_einsum']['w'].shape[2])
    return GemmaConfig(
        width=width, depth=depth, mlp_dim=layers['mlp']['linear'].shape[1], num_heads=num_heads,
        num_kv_heads=kv_heads, head_dim=head_dim,
        vocab_size=llm['embedder']['input_embedding'].shape[0])
