"""Names and shapes of openpi's parameters, with a letter for each size.

What size a letter stands for is voted on by all leaves in which it occurs, so that one leaf of a
wrong shape is found out by the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ros_pi0_fast.weights.errors import CheckpointError

Shape = tuple[int, ...]
Dims = tuple[str | int, ...]

_BLOCK = 'PaliGemma/img/Transformer/encoderblock/'
_LAYERS = 'PaliGemma/llm/layers/'

# K layers of width W, mlp F, h heads of s, n patches of p × q; L layers of width D, mlp G,
# N heads and M key-value heads of H, V ids.
_COMMON: dict[str, str] = {
    'PaliGemma/img/embedding/kernel': 'p q 3 W',
    'PaliGemma/img/embedding/bias': 'W',
    'PaliGemma/img/pos_embedding': '1 n W',
    'PaliGemma/img/head/kernel': 'W D',
    'PaliGemma/img/head/bias': 'D',
    'PaliGemma/img/Transformer/encoder_norm/scale': 'W',
    'PaliGemma/img/Transformer/encoder_norm/bias': 'W',
    **{f'{_BLOCK}LayerNorm_{i}/{name}': 'K W' for i in (0, 1) for name in ('scale', 'bias')},
    f'{_BLOCK}MlpBlock_0/Dense_0/kernel': 'K W F',
    f'{_BLOCK}MlpBlock_0/Dense_0/bias': 'K F',
    f'{_BLOCK}MlpBlock_0/Dense_1/kernel': 'K F W',
    f'{_BLOCK}MlpBlock_0/Dense_1/bias': 'K W',
    **{f'{_BLOCK}MultiHeadDotProductAttention_0/{name}/{leaf}': dims
       for name in ('query', 'key', 'value')
       for leaf, dims in (('kernel', 'K W h s'), ('bias', 'K h s'))},
    f'{_BLOCK}MultiHeadDotProductAttention_0/out/kernel': 'K h s W',
    f'{_BLOCK}MultiHeadDotProductAttention_0/out/bias': 'K W',
    'PaliGemma/llm/embedder/input_embedding': 'V D',
    'PaliGemma/llm/final_norm/scale': 'D',
    f'{_LAYERS}pre_attention_norm/scale': 'L D',
    f'{_LAYERS}pre_ffw_norm/scale': 'L D',
    f'{_LAYERS}attn/attn_vec_einsum/w': 'L N H D',
    f'{_LAYERS}mlp/gating_einsum': 'L 2 D G',
    f'{_LAYERS}mlp/linear': 'L G D',
}
_SEPARATE = {f'{_LAYERS}attn/q_einsum/w': 'L N D H', f'{_LAYERS}attn/kv_einsum/w': 'L 2 M D H'}
# openpi fuses the three projections where there are as many key-value heads as heads.
_FUSED = {f'{_LAYERS}attn/qkv_einsum/w': 'L 3 N D H'}

LORA: dict[str, tuple[str, str]] = {
    **{f'{_LAYERS}attn/{name}/w': (f'{_LAYERS}attn/{name}/lora_a', f'{_LAYERS}attn/{name}/lora_b')
       for name in ('q_einsum', 'kv_einsum', 'qkv_einsum', 'attn_vec_einsum')},
    **{f'{_LAYERS}mlp/{name}': (f'{_LAYERS}mlp/{name}_lora_a', f'{_LAYERS}mlp/{name}_lora_b')
       for name in ('gating_einsum', 'linear')},
}
"""Weight -> the two factors of its low-rank update, where a checkpoint has them."""


def _dims(text: str) -> Dims:
    return tuple(int(word) if word.isdigit() else word for word in text.split())


def expected_dims(names: Mapping[str, object]) -> dict[str, Dims]:
    """Return the dims of each leaf that a checkpoint with leaves of these names should have.

    Whether the projections are fused, and which weights have a low-rank update, is seen from the
    names; the rank of weight w is the letter 'rank of w'.
    """
    fused = any(name.startswith(f'{_LAYERS}attn/qkv_einsum/') for name in names)
    table = {name: _dims(text)
             for name, text in (_COMMON | (_FUSED if fused else _SEPARATE)).items()}
    for name, factors in LORA.items():
        if name in table and any(factor in names for factor in factors):
            *batch, rows, columns = table[name]
            rank = f'rank of {name}'
            table[factors[0]] = (*batch, rows, rank)
            table[factors[1]] = (*batch, rank, columns)
    return table


def check_layout(shapes: Mapping[str, Shape], *, source: str, allow_extra: bool = False) -> None:
    """Check names and shapes of all leaves.

    Args:
        shapes: Leaf name ('PaliGemma/…') -> shape.
        source: What to call the checkpoint in messages.
        allow_extra: Leaves that openpi's model does not have are no error.

    Raises:
        CheckpointError: naming every leaf that is missing, extra, or of a wrong shape.
    """
    table = expected_dims(shapes)
    problems = [f'{name}: missing' for name in sorted(set(table) - set(shapes))]
    if not allow_extra:
        problems += [f'{name}: not a parameter of Pi0-FAST'
                     for name in sorted(set(shapes) - set(table))]
    sizes = _vote(table, shapes)
    for name in sorted(set(table) & set(shapes)):
        wanted = tuple(sizes.get(dim, dim) for dim in table[name])
        if wanted != shapes[name]:
            problems.append(f'{name}: shape {_show(shapes[name])}, expected {_show(wanted)}')
    if problems:
        raise CheckpointError(f'{source}: ' + '; '.join(problems))


def _vote(table: Mapping[str, Dims], shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Return the size that most leaves give each letter."""
    votes: dict[str, Counter] = {}
    for name, dims in table.items():
        shape = shapes.get(name, ())
        if len(shape) == len(dims):
            for dim, size in zip(dims, shape, strict=True):
                if isinstance(dim, str):
                    votes.setdefault(dim, Counter())[size] += 1
    return {dim: counter.most_common(1)[0][0] for dim, counter in votes.items()}


def _show(shape: Shape | Dims) -> str:
    return f'({", ".join(map(str, shape))})'
