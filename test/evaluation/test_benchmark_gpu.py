"""The table of gains on a GPU, measured here on whatever there is."""

import json

import pytest

from ros_pi0_fast.evaluation import benchmark_gpu, machine


@pytest.mark.usefixtures('quick_compilation')
def test_rows_are_measured_in_turns_with_the_reference(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(machine, 'COPY_BYTES', 2**20)
    monkeypatch.setattr(machine, 'MATMUL_SIZE', 128)
    found = tmp_path / 'found.json'
    benchmark_gpu.main(['--preset', 'tabletop', '--rows', 'engine', '+ 3 a pass', '--runs', '1',
                        '--prompt-tokens', '40', '--tokens', '13', '--json', str(found)])
    data = json.loads(found.read_text())
    rows = {row['name']: row for row in data['rows']}
    assert list(rows) == ['reference', 'engine', '+ 3 a pass']
    assert rows['reference']['ratio'] == 1
    # The first id comes from the prefill.
    assert [row['passes'] for row in rows.values()] == [12, 12, 4]
    assert all(row['tokens'] == 13 for row in rows.values())
    # The reference reads the whole output head for each id.
    assert rows['reference']['pass_bytes'] > rows['engine']['pass_bytes'] > 0
    for row in rows.values():
        assert row['floor_ms'] == pytest.approx(
            1e3 * row['passes'] * row['pass_bytes'] / data['machine']['copy'])
        assert 0 < row['decode_ms'] < row['total_ms']
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith('+ 3 a pass ')]
