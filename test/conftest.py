"""Fixtures that every room's tests share."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope='session')
def golden() -> Path:
    """Return the folder of reference data made with openpi; skip where it does not exist."""
    folder = Path(os.environ.get('PI0_GOLDEN', REPOSITORY / '..' / 'shared' / 'golden')).resolve()
    if not (folder / 'README.md').is_file():
        pytest.skip(f'no golden data at {folder} (set PI0_GOLDEN)')
    return folder
