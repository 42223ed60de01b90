"""A run's numbers: one JSON object a line, and the curve drawn from them."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path


class MetricsFile:
    """Appends records to a JSONL file; a record has at least `step`.

    Each record is flushed at once, so that a killed run loses none that were written.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, record: Mapping[str, float | str]) -> None:
        """Write one record."""
        with self.path.open('a', encoding='utf-8') as file:
            file.write(json.dumps(record) + '\n')

    def read(self) -> list[dict]:
        """Return all records; a last line cut short by a kill is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding='utf-8').split('\n')
        # What follows the last line break was never finished.
        return [json.loads(line) for line in lines[:-1] if line]

    def truncate(self, step: int) -> None:
        """Drop the records beyond a step: a resumed run writes them again."""
        kept = [record for record in self.read() if record['step'] <= step]
        temporary = self.path.with_suffix('.tmp')
        temporary.write_text(''.join(json.dumps(record) + '\n' for record in kept),
                             encoding='utf-8')
        os.replace(temporary, self.path)


def plot_curve(records: Sequence[Mapping], path: Path, *, title: str) -> None:
    """Draw the loss over steps, and the success of the policy where it drove, to a PNG.

    Args:
        records: of a MetricsFile: those with `loss` make the curve, those with `success/<task>`
            (0 to 1) the dots.
        path: the PNG.
        title: above the picture.

    Raises:
        ValueError: if there is no record with a loss.
    """
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    rows = [record for record in records if 'loss' in record]
    if not rows:
        raise ValueError(f'no record with a loss to draw for {path}')
    figure, axis = pyplot.subplots(figsize=(8, 4.5), dpi=110, layout='constrained')
    axis.plot([row['step'] for row in rows], [row['loss'] for row in rows], color='tab:blue',
              linewidth=1, label='loss')
    axis.set(xlabel='optimizer step', ylabel='loss, nats per token', yscale='log', title=title)
    names = sorted({name for record in records for name in record if name.startswith('success/')})
    if names:
        other = axis.twinx()
        other.set(ylabel='success of the policy while it drove, %', ylim=(0, 101))
        for name, colour in zip(names, itertools.cycle(('tab:orange', 'tab:green', 'tab:red'))):
            dots = [(record['step'], 100 * record[name]) for record in records if name in record]
            other.plot(*zip(*dots, strict=True), marker='o', linestyle=':', color=colour,
                       label=name.removeprefix('success/'))
        other.legend(loc='lower right')
    figure.savefig(path)
    pyplot.close(figure)
