"""The prompt of Pi0-FAST and the text tokenizer that it is encoded with.

Format: openpi ``models/tokenizer.py`` (FASTTokenizer.tokenize).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import sentencepiece

ACTION_PREFIX = 'Action: '
"""Text that the model writes before the FAST ids."""
END_MARK = '|'
"""Text that the model writes after them."""
FAST_SKIP_TOKENS = 128
"""Ids at the end of the text vocabulary (PaliGemma's <segNNN>) that no FAST id maps to."""

# 256 bins over [-1, 1]; the last edge is left out, so that values above it fall in bin 255.
_STATE_EDGES = np.linspace(-1.0, 1.0, 257)[:-1]


class TextTokenizerError(ValueError):
    """A sentencepiece model cannot be used; the message names the file."""


def discretize_state(normalized_state: np.ndarray) -> np.ndarray:
    """Map a normalized state [s] to its bins, int64 [s]: -1 (below -1) to 255 (top bin and above).

    openpi does not clip, so that one side has a bin of its own for what lies outside.
    """
    return np.digitize(normalized_state, _STATE_EDGES) - 1


def format_prompt(instruction: str, normalized_state: np.ndarray) -> str:
    """Write the prompt: lower case, stripped, underscores as blanks; newlines are kept.

    The state must have the dtype in which openpi bins it (float64, not yet rounded to float32).
    """
    task = instruction.lower().strip().replace('_', ' ')
    state = ' '.join(map(str, discretize_state(normalized_state).tolist()))
    return f'Task: {task}, State: {state};\n'


class TextTokenizer:
    """A sentencepiece model whose ids are the rows of the model's embedding."""

    def __init__(self, path: str | Path):
        """Load a .model file.

        Raises:
            TextTokenizerError: it cannot be read, is no sentencepiece model or has no bos or eos.
        """
        self.source = Path(path)
        try:
            proto = self.source.read_bytes()
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
        except OSError as error:
            raise TextTokenizerError(f'{path}: cannot be read: {error.strerror}') from error
        except RuntimeError as error:
            raise TextTokenizerError(f'{path}: is no sentencepiece model: {error}') from error
        for name in ('bos_id', 'eos_id'):
            if getattr(self, name) < 0:
                raise TextTokenizerError(f'{path}: found no {name}, expected one')

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return self._processor.vocab_size()

    @property
    def bos_id(self) -> int:
        """Id that starts a prompt."""
        return self._processor.bos_id()

    @property
    def eos_id(self) -> int:
        """Id that ends a sequence."""
        return self._processor.eos_id()

    @property
    def pad_id(self) -> int:
        """Id that fills up a sequence; openpi pads with 0 whatever the model says."""
        return 0

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> np.ndarray:
        """Encode text to int32 [k]."""
        return np.asarray(self._processor.encode(text, add_bos=bos, add_eos=eos), np.int32)

    def decode(self, ids: np.ndarray) -> str:
        """Decode ids to text; control ids are left out."""
        return self._processor.decode(np.asarray(ids).tolist())

    def piece(self, token_id: int) -> str:
        """Return the piece of an id as written in the model file, for messages."""
        return self._processor.id_to_piece(int(token_id))
