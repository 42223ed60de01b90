"""Make the tokenizers of a small policy.

    python -m ros_pi0_fast.codec.build_tokenizers text --output assets/paligemma_tokenizer.model
    python -m ros_pi0_fast.codec.build_tokenizers fast --chunks chunks.npy \
        --output assets/fast_tokenizer --vocab-size 256

The text tokenizer has PaliGemma's layout in small: pad, eos, bos, unk first; at the end a piece
<locNNNN> for each FAST id and 128 pieces <segNNN>, so that FAST id t is the piece
vocab_size - 1 - 128 - t. Between them every number that a state bin can have, -1 to 255, is one
piece with its blank, so that a state costs one id per joint. The words are learned by BPE from
generated instructions; any other text in ASCII is spelled, and other letters are <unk>.

Chunks are what `PolicyCodec.normalize_actions` returns, stacked to [N, horizon, action_dim].
"""

from __future__ import annotations

import argparse
import io
import itertools
import string
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from ros_pi0_fast.codec.fast import FastTokenizer
from ros_pi0_fast.codec.prompt import FAST_SKIP_TOKENS

_SPECIAL = ('<pad>', '</s>', '<s>', '<unk>')
_BLANK = '▁'
_STATE_BINS = range(-1, 256)
# Prompts are lower case but for Task, State and Action.
_CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation + 'TSA'

# Types of a piece in sentencepiece_model.proto.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4

_COLOURS = ('red', 'green', 'blue', 'yellow', 'orange', 'purple', 'white', 'black', 'pink', 'cyan',
            'gray', 'brown')
_THINGS = ('cube', 'block', 'box', 'brick', 'object', 'piece', 'one')
_PLACES = ('mat', 'pad', 'square', 'zone', 'area', 'target', 'patch', 'tile', 'cloth', 'table')
_INSTRUCTIONS = (
    '{touch} the {colour} {thing}', '{touch} the {colour} {thing} with your {hand}',
    'make contact with the {colour} {thing}', 'move the {hand} to the {colour} {thing}',
    'reach for the {colour} {thing}', 'reach the {colour} {thing}', 'go to the {colour} {thing}',
    'move to the {colour} {thing}', 'move over to the {colour} {thing}',
    '{push} the {colour} {thing} {onto} the {other} {place}',
    '{push} the {colour} {thing} over to the {other} {place}',
    'get the {colour} {thing} {onto} the {other} {place}',
    'bring the {colour} {thing} to the {other} {place}', 'put the {thing} {onto} the {place}',
    'pick up the {colour} {thing}', 'pick the {colour} {thing} up', '{lift} the {colour} {thing}',
    '{lift} up the {colour} {thing}', 'pick the {colour} {thing} up from the {place}',
    'please {lift} the {colour} {thing} off the {place}', 'hold the {colour} {thing} in the air',
    'take hold of the {colour} {thing} and raise it', 'can you {touch} the {colour} {thing}',
    'robot, {push} the {thing} that is {colour} {onto} the {place}')
_WORDS = {
    'touch': ('touch', 'tap', 'poke', 'reach', 'reach for', 'contact', 'point at'),
    'push': ('push', 'slide', 'move', 'shove', 'drag', 'nudge', 'put', 'place'),
    'lift': ('lift', 'grasp', 'grab', 'take', 'raise', 'get', 'hold', 'grip'),
    'onto': ('onto', 'on', 'to', 'on to', 'toward', 'towards', 'into', 'on top of', 'over to'),
    'hand': ('hand', 'gripper', 'finger', 'fingers', 'arm', 'tip', 'fingertip'),
    'thing': _THINGS, 'colour': _COLOURS, 'other': _COLOURS[::-1], 'place': _PLACES}


ABORTING = '0.2.2'
"""Version of sentencepiece that ends the process where no pair is left to merge."""


def build_text_model(*, vocab_size: int = 1024, fast_vocab_size: int = 256) -> bytes:
    """Make a sentencepiece model of exactly vocab_size pieces; the same every time.

    Raises:
        ValueError: no room for words, or more room than the generated instructions can fill; a
            version of sentencepiece that cannot be used.
    """
    head = [(piece, _UNKNOWN if piece == '<unk>' else _CONTROL) for piece in _SPECIAL]
    head += [(f'{_BLANK}{number}', _USER_DEFINED) for number in _STATE_BINS]
    head.append(('\n', _USER_DEFINED))
    tail = [(f'<loc{i:04d}>', _USER_DEFINED) for i in range(fast_vocab_size)]
    tail += [(f'<seg{i:03d}>', _USER_DEFINED) for i in range(FAST_SKIP_TOKENS)]
    room = vocab_size - len(head) - len(tail)
    if room <= len(_CHARACTERS):
        raise ValueError(f'vocab_size: found {vocab_size}, expected more than '
                         f'{vocab_size - room + len(_CHARACTERS)} with {fast_vocab_size} FAST ids')
    learned, settings = _train(room)
    pieces = [_piece(piece, 0.0, kind) for piece, kind in head]
    pieces += learned
    pieces += [_piece(piece, 0.0, kind) for piece, kind in tail]
    return b''.join(_field(1, piece) for piece in pieces) + settings


def instructions() -> Iterator[str]:
    """Yield instructions in which every word occurs, in a fixed order."""
    for template in _INSTRUCTIONS:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name]
        longest = max(len(_WORDS[name]) for name in names)
        for i in range(longest):
            yield template.format(**{name: _WORDS[name][i % len(_WORDS[name])] for name in names})


def _train(pieces: int) -> tuple[list[bytes], bytes]:
    """Learn so many pieces by BPE; return them and the model's settings, both as in the file."""
    if sentencepiece.__version__ == ABORTING:
        raise ValueError(f'sentencepiece {ABORTING}: aborts the process in BPE training, expected '
                         'another version')
    lines = [line for text in instructions() for line in (f'Task: {text}, State:', 'Action: ')]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, model_type='bpe',
            vocab_size=pieces + len(_SPECIAL), character_coverage=1.0,
            required_chars=_CHARACTERS, normalization_rule_name='identity',
            add_dummy_prefix=False, remove_extra_whitespaces=False,
            pad_id=0, eos_id=1, bos_id=2, unk_id=3, num_threads=1, minloglevel=2)
    except RuntimeError as error:
        raise ValueError(f'the generated instructions do not fill {pieces} pieces: '
                         f'{error}') from error
    fields = list(_fields(model.getvalue()))
    learned = [content for number, content in fields if number == 1][len(_SPECIAL):]
    return learned, b''.join(_field(number, content) for number, content in fields if number != 1)


def _piece(text: str, score: float, kind: int) -> bytes:
    """Encode a SentencePiece message: piece = 1, score = 2, type = 3."""
    return (_field(1, text.encode()) + bytes([2 << 3 | 5]) + struct.pack('<f', score)
            + bytes([3 << 3, kind]))


def _field(number: int, content: bytes) -> bytes:
    """Encode a length-delimited field of a protocol buffer."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (number, content) of a message whose fields are all length-delimited."""
    data = iter(message)
    while (tag := _read_varint(data)) is not None:
        if tag & 7 != 2:
            raise ValueError(f'sentencepiece model: found wire type {tag & 7}, expected 2')
        length = _read_varint(data) or 0
        yield tag >> 3, bytes(itertools.islice(data, length))


def _read_varint(data: Iterator[int]) -> int | None:
    value, shift = 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    text = commands.add_parser('text', help='the sentencepiece model')
    text.add_argument('--output', type=Path, required=True, help='file to write')
    text.add_argument('--vocab-size', type=int, default=1024)
    text.add_argument('--fast-vocab-size', type=int, default=256, help='FAST ids to have room for')
    fast = commands.add_parser('fast', help='the FAST tokenizer')
    fast.add_argument('--chunks', type=Path, required=True, help='.npy, float [N, T, D]')
    fast.add_argument('--output', type=Path, required=True, help='folder to write')
    fast.add_argument('--scale', type=float, default=10.0)
    fast.add_argument('--vocab-size', type=int, default=256)
    options = parser.parse_args(arguments)
    if options.command == 'text':
        model = build_text_model(
            vocab_size=options.vocab_size, fast_vocab_size=options.fast_vocab_size)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_bytes(model)
        print(f'{options.output}: {options.vocab_size} pieces, {len(model)} bytes')
        return
    chunks = np.load(options.chunks, allow_pickle=False)
    tokenizer = FastTokenizer.fit(chunks, scale=options.scale, vocab_size=options.vocab_size)
    tokenizer.save(options.output)
    sample = chunks[::max(1, len(chunks) // 1000)]
    ids = [tokenizer.encode(chunk, strict=True) for chunk in sample]
    error = max(np.abs(tokenizer.decode(i, *chunks.shape[1:]) - c).max()
                for i, c in zip(ids, sample, strict=True))
    print(f'{options.output}: {tokenizer.vocab_size} ids, {np.mean([len(i) for i in ids]):.1f} '
          f'ids a chunk, largest error {error:.3f} (normalized)')


if __name__ == '__main__':
    main()
