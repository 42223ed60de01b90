import pytest
from tokenizers import Tokenizer

from ros_pi0_fast.codec import byte_level


def test_alphabet_is_a_bijection():
    assert len(byte_level.BYTE_OF) == len(byte_level.LETTER_OF) == 256
    assert byte_level.to_bytes('Ġ!ÿ') == b' !\xff'


@pytest.mark.parametrize('folder', ['fast/tokenizer', 'policy_libero/fast_tokenizer'])
def test_bytes_of_every_entry_equal_the_decoder_of_the_library(golden, folder):
    tokenizer = Tokenizer.from_file(str(golden / folder / 'tokenizer.json'))
    outside = 0
    for token, token_id in tokenizer.get_vocab().items():
        assert byte_level.to_bytes(token).decode(errors='replace') == tokenizer.decode(
            [token_id], skip_special_tokens=False)
        outside += any(letter not in byte_level.BYTE_OF for letter in token)
    assert outside > 0, 'entries outside the alphabet, such as chr(0), are part of the case'
