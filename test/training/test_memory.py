"""Gradient checkpointing saves memory, and the command says how much."""

import pytest

from ros_pi0_fast.model.config import get_config
from ros_pi0_fast.training.memory import main, measure, table


@pytest.fixture(scope='module')
def rows():
    return measure(get_config('tiny'), 8, unroll=False, steps=1)


def test_the_less_is_kept_the_less_memory_is_planned(rows):
    scratch = {row.policy: row.scratch_mib for row in rows}
    assert scratch['nothing_saveable'] < 0.6 * scratch[None]
    assert scratch['nothing_saveable'] <= scratch['dots_saveable'] <= scratch[None]


def test_the_table_has_a_row_a_policy_with_its_time(rows):
    lines = table(rows).splitlines()
    assert len(lines) == 5 and lines[1].startswith('everything ')
    assert all(float(line.split()[-1]) > 0 for line in lines[1:])


def test_an_unknown_preset_is_named(capsys):
    with pytest.raises(SystemExit):
        main(['--preset', 'huge'])
    assert "preset: 'huge', expected one of" in capsys.readouterr().err
