import numpy as np
import pytest

from ros_pi0_fast.codec.prompt import (
    TextTokenizer,
    TextTokenizerError,
    discretize_state,
    format_prompt,
)


def test_state_bins_are_not_clipped():
    below = np.nextafter(-1.0, -2.0)
    state = np.array([-9.0, below, -1.0, 0.0, 1 - 1 / 128, 1.0, 9.0])
    assert discretize_state(state).tolist() == [-1, -1, 0, 128, 255, 255, 255]


def test_format():
    assert format_prompt('  Pick_up the\nCUBE ', np.array([0.0, -2.0])) == (
        'Task: pick up the\ncube, State: 128 -1;\n')


def test_golden_tokenizer(golden):
    text = TextTokenizer(golden / 'policy_libero/paligemma_tokenizer.model')
    assert (text.vocab_size, text.bos_id, text.eos_id) == (1024, 2, 1)
    ids = text.encode('Action: ', bos=True, eos=True)
    assert ids.dtype == np.int32
    assert [text.piece(i) for i in ids] == ['<s>', 'Action', ':', '▁', '</s>']
    assert text.decode(ids) == 'Action: '


def test_refused(tmp_path):
    with pytest.raises(TextTokenizerError, match=r'absent\.model: cannot be read: No such file'):
        TextTokenizer(tmp_path / 'absent.model')
    (tmp_path / 'broken.model').write_bytes(b'no model')
    with pytest.raises(TextTokenizerError, match=r'broken\.model: is no sentencepiece model'):
        TextTokenizer(tmp_path / 'broken.model')
