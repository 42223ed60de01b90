import numpy as np
import pytest

from ros_pi0_fast.codec.build_tokenizers import build_text_model, instructions, main
from ros_pi0_fast.codec.fast import FastTokenizer
from ros_pi0_fast.codec.prompt import TextTokenizer, format_prompt


def pieces(text, string):
    return [text.piece(i) for i in text.encode(string)]


def test_layout(text):
    assert text.vocab_size == 1024
    assert [text.piece(i) for i in range(4)] == ['<pad>', '</s>', '<s>', '<unk>']
    assert (text.pad_id, text.eos_id, text.bos_id) == (0, 1, 2)
    assert [text.piece(1024 - 1 - 128 - t) for t in (0, 255)] == ['<loc0255>', '<loc0000>']
    assert [text.piece(i) for i in (896, 1023)] == ['<seg000>', '<seg127>']
    assert len({text.piece(i) for i in range(1024)}) == 1024


def test_every_state_bin_is_one_piece(text):
    for number in range(-1, 256):
        assert pieces(text, f' {number}') == [f'▁{number}']


def test_marks_are_stable(text):
    assert pieces(text, 'Action: ') == ['Action', ':', '▁']
    assert pieces(text, '|') == ['|']


def test_words_of_instructions_are_one_piece(text):
    words = {f' {word}' for line in instructions() for word in line.replace(',', '').split()}
    assert len(words) > 80
    assert [word for word in words if len(text.encode(word)) > 1] == []


@pytest.mark.parametrize('instruction', [
    'touch the red cube', 'push the blue cube onto the green mat', 'Pick up the_yellow cube',
    "don't: #7 (zebra) 1234?"])
def test_prompts_come_back(text, instruction):
    prompt = format_prompt(instruction, np.linspace(-1.2, 1.2, 5))
    ids = text.encode(prompt, bos=True)
    assert text.decode(ids) == prompt
    assert 3 not in ids.tolist()
    assert (ids < 1024 - 128 - 256).all(), 'a prompt must not contain FAST ids'


def test_other_letters_are_unknown(text):
    assert 3 in text.encode('größer').tolist()


def test_deterministic():
    assert build_text_model() == build_text_model()


@pytest.mark.parametrize(('vocab_size', 'fast_vocab_size'), [(1000, 192), (1024, 512), (800, 128)])
def test_other_sizes(tmp_path, vocab_size, fast_vocab_size):
    main(['text', '--output', str(tmp_path / 'a/t.model'), '--vocab-size', str(vocab_size),
          '--fast-vocab-size', str(fast_vocab_size)])
    text = TextTokenizer(tmp_path / 'a/t.model')
    assert text.vocab_size == vocab_size
    assert text.piece(vocab_size - 1 - 128) == f'<loc{fast_vocab_size - 1:04d}>'


@pytest.mark.parametrize(('vocab_size', 'message'), [
    (600, 'vocab_size: found 600, expected more than 717 with 256 FAST ids'),
    (8192, 'the generated instructions do not fill 7546 pieces')])
def test_impossible_sizes(vocab_size, message):
    with pytest.raises(ValueError, match=message):
        build_text_model(vocab_size=vocab_size)


def test_fast_command(tmp_path, chunks, capsys):
    np.save(tmp_path / 'chunks.npy', chunks)
    main(['fast', '--chunks', str(tmp_path / 'chunks.npy'), '--output', str(tmp_path / 'fast'),
          '--vocab-size', '200'])
    fast = FastTokenizer.from_folder(tmp_path / 'fast')
    assert fast.vocab_size == 200
    assert '200 ids' in capsys.readouterr().out
    fast.encode(chunks[0], strict=True)
