import json

import numpy as np
import pytest

from ros_pi0_fast.codec.fast import (
    FastTokenizer,
    FastTokenizerError,
    MalformedChunkError,
    UnencodableChunkError,
)


@pytest.fixture(scope='module')
def golden_fast(golden):
    return FastTokenizer.from_folder(golden / 'fast/tokenizer')


@pytest.mark.parametrize('folder', ['fast', 'fast/edge'])
def test_golden_ids_and_actions_are_exact(golden, golden_fast, folder):
    vectors = np.load(golden / folder / 'vectors.npz')
    for chunk, ids, number, decoded in zip(
            vectors['chunks'], vectors['token_ids'], vectors['n_ids'], vectors['decoded'],
            strict=True):
        found = golden_fast.encode(chunk, strict=True)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, ids[:number])
        np.testing.assert_array_equal(golden_fast.decode(found, *chunk.shape), decoded)


def test_golden_malformed_sequences_are_refused_with_numbers(golden, golden_fast):
    cases = json.loads((golden / 'fast/malformed.json').read_text())
    assert len(cases) == 3
    for case in cases.values():
        with pytest.raises(MalformedChunkError) as error:
            golden_fast.decode(np.array(case['ids'], int), 16, 7)
        assert str(error.value) == (
            f'{len(case["ids"])} FAST ids stand for {case["decoded_len"]} coefficients, '
            'expected 112 (16 x 7)')


@pytest.mark.parametrize('wrong', [-1, 512, 100_000])
def test_unknown_id(golden_fast, wrong):
    with pytest.raises(MalformedChunkError, match=rf'id {wrong} at 1 is no FAST id'):
        golden_fast.decode(np.array([5, wrong]), 1, 2)


@pytest.mark.parametrize(('dtype', 'scale'), [
    (np.float32, 10), (np.float64, 10), (np.float64, 37)])
def test_round_trip_within_half_a_step(chunks, dtype, scale):
    fast = FastTokenizer.fit(chunks, scale=scale, vocab_size=400)
    for chunk in chunks[:50].astype(dtype):
        coefficients = fast.coefficients(fast.encode(chunk, strict=True)) / scale
        # Orthonormal: the error of a chunk is that of its coefficients, half a step each.
        error = np.linalg.norm(fast.decode(fast.encode(chunk), 10, 5) - chunk)
        assert error <= np.sqrt(coefficients.size) * 0.5 / scale * 1.001


def test_fit_is_deterministic_and_saves(chunks, fast, tmp_path):
    fast.save(tmp_path / 'a')
    FastTokenizer.fit(chunks, scale=10, vocab_size=256).save(tmp_path / 'b')
    files = sorted(p.name for p in (tmp_path / 'a').iterdir())
    assert files == ['processor_config.json', 'special_tokens_map.json', 'tokenizer.json',
                     'tokenizer_config.json']
    for name in files:
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()
    loaded = FastTokenizer.from_folder(tmp_path / 'a')
    assert (loaded.scale, loaded.min_token, loaded.vocab_size) == (
        fast.scale, fast.min_token, fast.vocab_size)
    np.testing.assert_array_equal(loaded.encode(chunks[0]), fast.encode(chunks[0]))


def test_fit_compresses(chunks, fast):
    lengths = [len(fast.encode(chunk, strict=True)) for chunk in chunks[:200]]
    assert np.mean(lengths) < 0.6 * chunks[0].size


def test_fit_refuses_a_range_wider_than_the_vocabulary(chunks):
    with pytest.raises(ValueError, match='vocab_size: found 64, expected at least'):
        FastTokenizer.fit(chunks, scale=10, vocab_size=64)
    with pytest.raises(ValueError, match=r'chunks: found shape \(10, 5\), expected finite'):
        FastTokenizer.fit(chunks[0])


def test_values_below_the_range_are_clamped(fast, chunks):
    ids = fast.encode(chunks[0] - 20, strict=True)
    assert fast.coefficients(ids).min() == fast.min_token


def test_lost_coefficients_raise_when_strict(fast, chunks):
    loud = chunks[0] + 20
    with pytest.raises(UnencodableChunkError, match=r'found coefficients \[\d+.*no entry for'):
        fast.encode(loud, strict=True)
    with pytest.raises(MalformedChunkError):
        fast.decode(fast.encode(loud), 10, 5)


def test_values_that_no_character_can_hold(fast, chunks):
    with pytest.raises(UnencodableChunkError, match='found NaN or infinity'):
        fast.encode(np.full((10, 5), np.nan))
    with pytest.raises(UnencodableChunkError, match=r'found coefficient .*, expected below 55'):
        fast.encode(chunks[0] + 2000)
    with pytest.raises(ValueError, match=r'actions: found shape \(5,\), expected \[T, D\]'):
        fast.encode(chunks[0, 0])


def test_a_character_cut_apart_is_malformed(chunks):
    # openpi puts U+FFFD in its place, which is a coefficient of 65533 + min_token.
    wide = FastTokenizer.fit(chunks, scale=100, vocab_size=600)
    lead = next(i for i, raw in enumerate(wide.id_bytes) if raw == b'\xc3')
    with pytest.raises(MalformedChunkError, match='cut a character apart: byte 0 of 1'):
        wide.decode(np.array([lead]), 1, 1)


@pytest.mark.parametrize(('file', 'change', 'message'), [
    ('processor_config.json', {'scale': 0}, 'scale: found 0, expected a number above 0'),
    ('processor_config.json', {'scale': '10'}, "scale: found '10', expected a number above 0"),
    ('processor_config.json', {'min_token': 1.5}, 'min_token: found 1.5, expected an integer'),
    ('tokenizer.json', {'decoder': None}, 'decoder: found None, expected ByteLevel'),
    ('tokenizer.json', {'model': {'type': 'BPE'}}, r'tokenizer\.json: '),
    ('tokenizer_config.json', {'clean_up_tokenization_spaces': True},
     'clean_up_tokenization_spaces: found true, expected false'),
])
def test_damaged_folders_are_named(fast, tmp_path, file, change, message):
    fast.save(tmp_path)
    path = tmp_path / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FastTokenizerError, match=message) as error:
        FastTokenizer.from_folder(tmp_path)
    assert str(path) in str(error.value)


def test_missing_and_unreadable_files(fast, tmp_path):
    with pytest.raises(FastTokenizerError, match=r'processor_config\.json: cannot be read'):
        FastTokenizer.from_folder(tmp_path)
    fast.save(tmp_path)
    (tmp_path / 'tokenizer.json').write_text('{')
    with pytest.raises(FastTokenizerError, match=r'tokenizer\.json: is not JSON'):
        FastTokenizer.from_folder(tmp_path)
    (tmp_path / 'tokenizer.json').write_text('[]')
    with pytest.raises(FastTokenizerError, match='found list, expected a mapping'):
        FastTokenizer.from_folder(tmp_path)
