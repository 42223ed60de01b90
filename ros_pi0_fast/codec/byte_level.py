"""GPT-2's byte-level alphabet, and byte-level BPE on it through `tokenizers`.

Alphabet: Radford et al., GPT-2, ``encoder.py`` (bytes_to_unicode): printable Latin-1 bytes stand
for themselves, the other 68 for the characters from U+0100 on.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

_PRINTABLE = (*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1),
              *range(ord('®'), ord('ÿ') + 1))
_OTHERS = tuple(b for b in range(256) if b not in _PRINTABLE)

BYTE_OF: dict[str, int] = {
    **{chr(b): b for b in _PRINTABLE}, **{chr(256 + i): b for i, b in enumerate(_OTHERS)}}
"""Letter -> byte, for all 256 bytes."""
LETTER_OF: dict[int, str] = {byte: letter for letter, byte in BYTE_OF.items()}
"""Byte -> letter."""


def to_bytes(token: str) -> bytes:
    """Return what the ByteLevel decoder of `tokenizers` makes of a vocabulary entry.

    An entry with any letter outside the alphabet stands for its own UTF-8.
    """
    try:
        return bytes(BYTE_OF[letter] for letter in token)
    except KeyError:
        return token.encode('utf-8')


def train(texts: Iterable[str], *, vocab_size: int, highest: int) -> Tokenizer:
    """Train a byte-level BPE without splitting at text's word boundaries.

    Args:
        texts: What to train on, one word each.
        vocab_size: Number of ids; fewer where the texts allow no more merges.
        highest: Each character from chr(0) to chr(highest) can be encoded.

    Raises:
        ValueError: those characters alone need more than vocab_size ids.
    """
    alphabet = sorted({LETTER_OF[byte] for code in range(highest + 1)
                       for byte in chr(code).encode('utf-8')})
    if len(alphabet) > vocab_size:
        raise ValueError(f'vocab_size: found {vocab_size}, expected at least {len(alphabet)}: '
                         f'an id for each of {highest + 1} coefficient values')
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, initial_alphabet=alphabet,
        show_progress=False, special_tokens=[]))
    return tokenizer
