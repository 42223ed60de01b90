"""Parity of the codec with openpi's, on folders like golden/fast and golden/policy_libero."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ros_pi0_fast.codec.fast import FastTokenizer, MalformedChunkError
from ros_pi0_fast.evaluation.parity_report import Row, entry, read_arrays, read_json

DECODED = 1e-6


def fast_rows(folder: Path) -> Iterator[Row]:
    """Compare what a folder like golden/fast records: chunks, their ids, and what is malformed.

    Raises:
        FolderError: a file is missing or damaged.
        FastTokenizerError: the tokenizer cannot be read.
    """
    fast = FastTokenizer.from_folder(folder / 'tokenizer')
    vectors = [folder, *sorted(path.parent for path in folder.glob('*/vectors.npz'))]
    for place in vectors:
        name = 'FAST' if place == folder else f'FAST {place.name}'
        yield from _vector_rows(name, fast, place)
    if (folder / 'malformed.json').is_file():
        description = read_json(folder / 'vectors.json')
        shape = [entry(description, key, folder / 'vectors.json')
                 for key in ('time_horizon', 'action_dim')]
        accepted = [label for label, case in read_json(folder / 'malformed.json').items()
                    if case['all_zero'] and not _is_malformed(fast, case['ids'], *shape)]
        yield Row(name='FAST malformed: refused where openpi returns zeros', error=len(accepted),
                  tolerance=0.0, note=', '.join(accepted))


def _vector_rows(name: str, fast: FastTokenizer, folder: Path) -> Iterator[Row]:
    path = folder / 'vectors.npz'
    arrays = read_arrays(path)
    chunks, ids, lengths, decoded, well_formed = (entry(arrays, key, path) for key in (
        'chunks', 'token_ids', 'n_ids', 'decoded', 'decode_ok'))
    labels = read_json(folder / 'vectors.json').get('labels', list(range(len(chunks))))
    wrong, worst, accepted = [], 0.0, []
    for label, chunk, row, length, expected, ok in zip(
            labels, chunks, ids, lengths, decoded, well_formed, strict=True):
        if not np.array_equal(fast.encode(chunk), row[:length]):
            wrong.append(str(label))
        if ok:
            worst = max(worst, _distance(fast, row[:length], expected))
        elif not _is_malformed(fast, row[:length], *chunk.shape):
            accepted.append(str(label))
    yield Row(name=f'{name}: ids of {len(chunks)} chunks', error=len(wrong), tolerance=0.0,
              note=', '.join(wrong))
    yield Row(name=f'{name}: decoded actions', error=worst, tolerance=DECODED)
    if not np.all(well_formed):
        yield Row(name=f'{name}: refused where openpi cannot decode', error=len(accepted),
                  tolerance=0.0, note=', '.join(accepted))


def _distance(fast: FastTokenizer, ids: np.ndarray, expected: np.ndarray) -> float:
    try:
        return float(np.abs(fast.decode(ids, *expected.shape) - expected).max())
    except MalformedChunkError:
        return float('inf')


def _is_malformed(fast: FastTokenizer, ids: np.ndarray, horizon: int, dim: int) -> bool:
    try:
        fast.decode(np.asarray(ids, np.int64), horizon, dim)
    except MalformedChunkError:
        return True
    return False
