"""Compare this package with openpi's own numbers, and print a row a quantity.

    python -m ros_pi0_fast.evaluation.parity FOLDER
    python -m ros_pi0_fast.evaluation.parity --full

A folder is recognised by its content: a network's inputs and outputs, the same with low-rank
updates, FAST chunks, a policy's observations and actions, tables of parameters, or a folder of
such folders. Exit status: 0 where all pass, 1 where one misses, 2 where nothing can be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from ros_pi0_fast.codec.contract import ContractError
from ros_pi0_fast.codec.fast import FastTokenizerError
from ros_pi0_fast.codec.normalize import NormStatsError
from ros_pi0_fast.codec.prompt import TextTokenizerError
from ros_pi0_fast.evaluation.parity_codec import fast_rows
from ros_pi0_fast.evaluation.parity_full import run_full
from ros_pi0_fast.evaluation.parity_policy import policy_rows
from ros_pi0_fast.evaluation.parity_report import HEADER, FolderError, Row, read_json, show
from ros_pi0_fast.evaluation.parity_shapes import is_table, table_rows
from ros_pi0_fast.evaluation.parity_variants import lora_rows, model_rows
from ros_pi0_fast.weights.openpi import CheckpointError

REFUSALS = (FolderError, CheckpointError, ContractError, FastTokenizerError, NormStatsError,
            TextTokenizerError)
Rows = Callable[[Path], Iterator[Row]]


def recognise(folder: Path) -> list[tuple[Path, Rows]]:
    """Return what a folder (or a parameter table) holds, and what compares with it.

    Raises:
        FolderError: it does not exist, or holds nothing that is known here.
    """
    if not folder.exists():
        raise FolderError(f'{folder}: no such file or folder')
    if folder.is_file():
        if not is_table(folder):
            raise FolderError(f'{folder}: no parameter table, expected a JSON file with params')
        return [(folder, table_rows)]
    if kind := _kind(folder):
        return [(folder, kind)]
    found = [(table, table_rows) for table in sorted(folder.glob('*.json')) if is_table(table)]
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        if kind := _kind(child):
            found.append((child, kind))
        else:
            found += [(table, table_rows) for table in sorted(child.glob('*.json'))
                      if is_table(table)]
    if not found:
        raise FolderError(f'{folder}: found no description.json, no vectors.npz and no table of '
                          'parameters, expected one of them')
    return found


def _kind(folder: Path) -> Rows | None:
    if (folder / 'vectors.npz').is_file() or (folder / 'tokenizer').is_dir():
        return fast_rows
    path = folder / 'description.json'
    if not path.is_file():
        return None
    description = read_json(path)
    for key, kind in (('openpi_config', policy_rows), ('variants', model_rows),
                      ('rank', lora_rows)):
        if key in description:
            return kind
    raise FolderError(f'{path}: has neither openpi_config nor variants nor rank, expected the '
                      'description of a policy, a model or one with low-rank updates')


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog='parity', description=__doc__.splitlines()[0])
    parser.add_argument('folder', nargs='?', type=Path, help='reference data')
    parser.add_argument('--full', action='store_true',
                        help='build the full model with random weights and run one inference')
    options = parser.parse_args(arguments)
    if options.folder is None and not options.full:
        parser.error('expected a FOLDER, or --full')
    missed: list[Row] = []
    try:
        for path, rows in recognise(options.folder) if options.folder else ():
            print(f'\n{path}\n{HEADER}', flush=True)
            # Accelerators multiply float32 with fewer bits unless told otherwise.
            with jax.default_matmul_precision('highest'):
                missed += show(rows(path))
    except REFUSALS as error:
        print(f'parity: {error}', file=sys.stderr)
        return 2
    if options.full:
        missed += show(run_full())
    print(f'\n{len(missed)} missed' if missed else '\nall pass')
    return 1 if missed else 0


if __name__ == '__main__':
    sys.exit(main())
