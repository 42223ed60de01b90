"""FAST: an action chunk as a short list of ids (DCT, rounding, byte-level BPE).

Method: Pertsch et al., "FAST: Efficient Action Tokenization for Vision-Language-Action Models",
2025; file layout and rounding of physical-intelligence/fast (UniversalActionProcessor). The files
are read with `tokenizers`; no code that comes with them is run.

A coefficient c of the DCT becomes the character chr(round(c · scale) − min_token); the characters,
time-major [T, D], are encoded as UTF-8 and merged by BPE. An id therefore stands for some bytes,
which need not end where a character ends (see `codec.grammar`).
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.fft import dct, idct
from tokenizers import Tokenizer

from ros_pi0_fast.codec import byte_level

_CONFIG = 'processor_config.json'
_TOKENIZER = 'tokenizer.json'


class FastTokenizerError(ValueError):
    """A FAST tokenizer's folder cannot be used; the message names the file and what it found."""


class MalformedChunkError(ValueError):
    """Ids that are no action chunk; the message gives the reason with its numbers."""


class UnencodableChunkError(ValueError):
    """An action chunk that the tokenizer cannot represent: coefficients would get lost."""


class FastTokenizer:
    """Encodes action chunks [T, D] (normalized) to FAST ids and back."""

    def __init__(self, tokenizer: Tokenizer, *, scale: float, min_token: int,
                 source: Path | None = None):
        """Wrap a byte-level BPE.

        Args:
            tokenizer: Byte-level BPE whose decoder is ByteLevel.
            scale: Factor on the DCT coefficients before rounding.
            min_token: Value of the character chr(0).
            source: Folder that it was read from, for messages.
        """
        self.scale = scale
        self.min_token = min_token
        self.source = source
        self._tokenizer = tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of FAST ids: they are 0 … vocab_size - 1."""
        return self._tokenizer.get_vocab_size()

    @cached_property
    def id_bytes(self) -> tuple[bytes, ...]:
        """The bytes that each id stands for; empty where the id has no entry."""
        tokens = (self._tokenizer.id_to_token(i) for i in range(self.vocab_size))
        return tuple(b'' if token is None else byte_level.to_bytes(token) for token in tokens)

    @classmethod
    def from_folder(cls, path: str | Path) -> FastTokenizer:
        """Read processor_config.json and tokenizer.json, the layout of physical-intelligence/fast.

        Raises:
            FastTokenizerError: a file is missing or damaged, or asks for what FAST does not do.
        """
        folder = Path(path)
        config = _read_json(folder / _CONFIG)
        scale, min_token = config.get('scale'), config.get('min_token')
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale > 0:
            raise FastTokenizerError(
                f'{folder / _CONFIG}: scale: found {scale!r}, expected a number above 0')
        if type(min_token) is not int:
            raise FastTokenizerError(
                f'{folder / _CONFIG}: min_token: found {min_token!r}, expected an integer')
        content = _read_json(folder / _TOKENIZER)
        decoder = (content.get('decoder') or {}).get('type')
        if decoder != 'ByteLevel':
            raise FastTokenizerError(
                f'{folder / _TOKENIZER}: decoder: found {decoder!r}, expected ByteLevel')
        if (folder / 'tokenizer_config.json').is_file():
            _refuse_clean_up(folder / 'tokenizer_config.json')
        try:
            tokenizer = Tokenizer.from_str(json.dumps(content))
        except Exception as error:  # the library raises nothing narrower
            raise FastTokenizerError(f'{folder / _TOKENIZER}: {error}') from error
        ids = tokenizer.get_vocab().values()
        if not ids or max(ids) != len(ids) - 1:
            raise FastTokenizerError(f'{folder / _TOKENIZER}: vocab: found {len(ids)} ids up to '
                                     f'{max(ids, default=None)}, expected all from 0 on')
        return cls(tokenizer, scale=scale, min_token=min_token, source=folder)

    def save(self, path: str | Path) -> None:
        """Write the files that `from_folder` and Hugging Face's AutoProcessor read."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(folder / _TOKENIZER))
        name = 'UniversalActionProcessor'
        _write_json(folder / _CONFIG, {
            'action_dim': None, 'min_token': self.min_token, 'processor_class': name,
            'scale': self.scale, 'time_horizon': None, 'vocab_size': self.vocab_size})
        _write_json(folder / 'tokenizer_config.json', {
            'added_tokens_decoder': {}, 'clean_up_tokenization_spaces': False,
            'processor_class': name, 'tokenizer_class': 'PreTrainedTokenizerFast'})
        _write_json(folder / 'special_tokens_map.json', {})

    @classmethod
    def fit(cls, chunks: np.ndarray, *, scale: float = 10, vocab_size: int = 1024,
            margin: int | None = None) -> FastTokenizer:
        """Fit a tokenizer on action chunks.

        Unlike the one of physical-intelligence/fast, merges may cross the classes of characters
        (letters, digits, …) that a text tokenizer keeps apart, which mean nothing here, so that
        chunks get fewer ids; and every coefficient of the fitted range can be encoded.

        Args:
            chunks: Normalized actions, float [N, T, D].
            scale: Factor on the DCT coefficients before rounding.
            vocab_size: Number of ids.
            margin: Coefficient values to add on each side of the range seen; None for an eighth
                of the range. Values past the upper side cannot be encoded; those past the lower
                are clamped.

        Raises:
            ValueError: the chunks are not finite or the range needs more ids than vocab_size.
        """
        chunks = np.asarray(chunks)
        if chunks.ndim != 3 or not chunks.size or not np.isfinite(chunks).all():
            raise ValueError(f'chunks: found shape {chunks.shape}, expected finite [N, T, D]')
        rounded = np.around(dct(chunks, axis=1, norm='ortho') * scale).astype(np.int64)
        low, high = int(rounded.min()), int(rounded.max())
        margin = -(-(high - low + 1) // 8) if margin is None else margin
        min_token = low - margin
        highest = high + margin - min_token
        texts = (''.join(map(chr, row)) for row in (rounded - min_token).reshape(len(chunks), -1))
        tokenizer = byte_level.train(texts, vocab_size=vocab_size, highest=highest)
        return cls(tokenizer, scale=scale, min_token=min_token)

    def encode(self, actions: np.ndarray, *, strict: bool = False) -> np.ndarray:
        """Encode normalized actions, float [T, D], to FAST ids, int32 [k].

        The DCT is computed in the dtype of `actions` (float32 stays float32), as openpi does;
        values below min_token are clamped to it.

        Args:
            actions: Normalized actions.
            strict: Raise where a coefficient has no entry in the vocabulary. Without it such a
                coefficient is dropped without a word, as in openpi, and the ids are malformed:
                nothing may be trained on them.

        Raises:
            UnencodableChunkError: coefficients would get lost (strict), or one is not finite or
                too large for a character.
        """
        actions = np.asarray(actions)
        if actions.ndim != 2:
            raise ValueError(f'actions: found shape {actions.shape}, expected [T, D]')
        rounded = np.around(dct(actions, axis=0, norm='ortho') * self.scale)
        if not np.isfinite(rounded).all():
            raise UnencodableChunkError('actions: found NaN or infinity, expected finite values')
        values = np.maximum(rounded - self.min_token, 0)
        # Characters from 0xD800 on are surrogates, which UTF-8 cannot hold.
        if values.max(initial=0) >= 0xD800:
            raise UnencodableChunkError(
                f'actions: found coefficient {rounded.max():g}, expected below '
                f'{0xD800 + self.min_token}')
        text = ''.join(map(chr, values.astype(np.int64).reshape(-1)))
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if strict and b''.join(self.id_bytes[i] for i in ids) != text.encode():
            raise UnencodableChunkError(self._explain_loss(text))
        return np.asarray(ids, np.int32)

    def _explain_loss(self, text: str) -> str:
        lost = sorted({ord(c) + self.min_token for c in text if b''.join(
            self.id_bytes[i] for i in self._tokenizer.encode(c).ids) != c.encode()})
        return (f'actions: found coefficients {lost} after scaling by {self.scale:g}, which the '
                f'FAST tokenizer {self.source or ""} has no entry for')

    def decode(self, ids: np.ndarray, horizon: int, dim: int) -> np.ndarray:
        """Decode FAST ids to normalized actions, float64 [horizon, dim].

        Raises:
            MalformedChunkError: an id that is none, bytes that are no UTF-8, or another number
                of coefficients than horizon × dim. openpi returns zeros there.
        """
        coefficients = self.coefficients(ids)
        if len(coefficients) != horizon * dim:
            raise MalformedChunkError(
                f'{len(ids)} FAST ids stand for {len(coefficients)} coefficients, '
                f'expected {horizon * dim} ({horizon} x {dim})')
        return idct(coefficients.reshape(horizon, dim) / self.scale, axis=0, norm='ortho')

    def coefficients(self, ids: np.ndarray) -> np.ndarray:
        """Return the scaled and rounded DCT coefficients of FAST ids, int64 [n].

        Raises:
            MalformedChunkError: an id that is none, or bytes that are no UTF-8.
        """
        ids = np.asarray(ids)
        if (wrong := np.flatnonzero((ids < 0) | (ids >= self.vocab_size))).size:
            at = int(wrong[0])
            raise MalformedChunkError(f'id {int(ids[at])} at {at} is no FAST id, '
                                      f'expected 0 to {self.vocab_size - 1}')
        raw = b''.join(self.id_bytes[i] for i in ids.tolist())
        try:
            text = raw.decode('utf-8')
        except UnicodeDecodeError as error:
            raise MalformedChunkError(
                f'{len(ids)} FAST ids cut a character apart: byte {error.start} of {len(raw)} '
                f'({raw[error.start]:#04x}): {error.reason}') from error
        return np.fromiter(map(ord, text), np.int64, len(text)) + self.min_token


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text('utf-8'))
    except OSError as error:
        raise FastTokenizerError(f'{path}: cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise FastTokenizerError(f'{path}: is not JSON: {error}') from error
    if not isinstance(content, dict):
        raise FastTokenizerError(f'{path}: found {type(content).__name__}, expected a mapping')
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + '\n', 'utf-8')


def _refuse_clean_up(path: Path) -> None:
    if _read_json(path).get('clean_up_tokenization_spaces'):
        # It would delete blanks from the decoded text, which are coefficients.
        raise FastTokenizerError(
            f'{path}: clean_up_tokenization_spaces: found true, expected false')
