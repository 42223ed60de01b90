"""report.html: one page that needs nothing else, with the answer at its top."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ros_pi0_fast.evaluation.bag_choice import SAME_LOSS
from ros_pi0_fast.evaluation.bag_plots import plots
from ros_pi0_fast.evaluation.bag_rows import STAGES

Report = Mapping[str, Any]
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1c2024;background:#fff;max-width:1240px;
 margin:2rem auto;padding:0 1.2rem}
h1{font-size:1.35rem;margin:0 0 .2rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}
.sub{color:#667;margin:0 0 1rem}
.answer{border-left:5px solid #2ca02c;background:#f1f8f1;padding:.8rem 1.1rem;border-radius:4px}
.answer.none{border-color:#d62728;background:#fcf1f1}
.answer b{font-size:1.25rem}.answer input{width:6em;font:inherit;padding:.1rem .3rem}
.note{background:#fff6e0;border-left:5px solid #e0a800;padding:.4rem 1.1rem;margin:.5rem 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:12.5px;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .5rem;text-align:right;border-bottom:1px solid #e4e7ea;white-space:nowrap}
th{color:#556;font-weight:600;vertical-align:bottom;white-space:normal}
td:first-child,th:first-child{text-align:left}
tr.chosen td{background:#e7f5e7;font-weight:600}
svg{width:100%;max-width:1000px;height:auto}
details{margin:.7rem 0}summary{cursor:pointer;font-weight:600}
"""
SCRIPT = """
const all=CANDIDATES, same=SAME;
const box=document.getElementById('answer'), input=document.getElementById('budget');
input.addEventListener('input',()=>{
  const budget=parseFloat(input.value); if(!(budget>0)) return;
  const sound=all.filter(c=>c.sound), fit=sound.filter(c=>c.ms<=budget);
  const least=Math.min(...fit.map(c=>c.loss));
  const best=fit.filter(c=>c.loss<=least+same).sort((a,b)=>a.ms-b.ms)[0];
  const fastest=[...sound].sort((a,b)=>a.ms-b.ms)[0];
  box.classList.toggle('none',!best);
  document.getElementById('which').textContent=best?'Run '+best.name:'No variant fits';
  document.getElementById('why').textContent=best?
    'p95 '+best.ms.toFixed(1)+' ms, error '+(100*best.loss).toFixed(2)+' % of the range of the'+
    ' actions: the smallest among the '+fit.length+' of '+all.length+' variants that fit':
    (fastest?'the fastest is '+fastest.name+': p95 '+fastest.ms.toFixed(1)+' ms':'');
  document.querySelectorAll('tr[data-name]').forEach(
    r=>r.classList.toggle('chosen',!!best&&r.dataset.name===best.name));
});
"""
Cell = Callable[[Mapping[str, Any]], str]


def render_page(report: Report) -> str:
    """Return the page of a report as HTML."""
    bag = report['bag']
    parts = [
        f'<h1>{escape(str(bag["name"]))}: what each optimization gains and costs</h1>',
        f'<p class="sub">{_subtitle(report)}</p>', _answer(report), _notes(report),
        '<h2>All variants</h2>', _main_table(report)]
    parts += [f'<h2>{title}</h2>{svg}' for title, svg in plots(report).items()]
    parts += [_details('Time by stage, ms', _stage_table(report)),
              _details('By joint', _joint_table(report)),
              _details('Refused, and not valid', _refusals(report)),
              _details('How this was measured', _settings(report))]
    choices = [each for each in report['candidates'] if each['loss'] is not None]
    script = SCRIPT.replace('CANDIDATES', json.dumps(choices).replace('<', '\\u003c')).replace(
        'SAME', f'{SAME_LOSS:g}')
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width"><title>'
            f'{escape(str(bag["name"]))}</title><style>{STYLE}</style></head><body>\n'
            + '\n'.join(parts) + f'\n<script>{script}</script></body></html>\n')


def _subtitle(report: Report) -> str:
    bag = report['bag']
    return escape(
        f'{bag["duration_s"]:.1f} s, {bag["messages"]} messages, {report["observations"]} '
        f'observations at {bag["rate_hz"]:g} Hz; robot {bag["robot"]}; checkpoint '
        f'{Path(bag["checkpoint"]).name}; {report["machine"]["device"]}')


def _answer(report: Report) -> str:
    choice = report['choice']
    word = f'Run {choice["variant"]}' if choice['variant'] else 'No variant fits'
    return (f'<div class="answer{"" if choice["variant"] else " none"}" id="answer">'
            f'At a latency budget of <input id="budget" type="number" min="0" step="any" '
            f'value="{report["budget_ms"]:g}" aria-label="budget in milliseconds"> ms:<br>'
            f'<b id="which">{escape(word)}</b><br><span id="why">{escape(choice["why"])}</span>'
            '</div>')


def _notes(report: Report) -> str:
    notes = list(report['bag']['notes'])
    if not report['complete']:
        notes.insert(0, 'The replay was interrupted: these are the figures of what was done. The '
                        'same command goes on.')
    notes += [f'{name} cannot run here: {reason}' for name, reason in report['failed'].items()]
    notes += [f'{name}: {each["compiled"]} chunks had to wait for code to be compiled; their '
              'times are left out' for name, each in report['variants'].items()
              if each['compiled']]
    return ''.join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _table(head: Iterable[str], rows: Iterable[tuple[str, Sequence[str]]],
           chosen: str | None = None) -> str:
    """Return a table whose rows have a name and cells."""
    lines = ''.join(
        f'<tr data-name="{escape(name)}"{" class=chosen" if name == chosen else ""}><td>'
        f'{escape(name)}</td>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, cells in rows)
    titles = ''.join(f'<th>{escape(title)}</th>' for title in head)
    return f'<div class="scroll"><table><tr>{titles}</tr>{lines}</table></div>'


def _number(value: float | None, form: str = '.1f') -> str:
    return '–' if value is None else format(value, form)


def _share(value: float | None, form: str = '.1%') -> str:
    return '–' if value is None else format(value, form).replace('%', ' %')


def _total(which: str) -> Cell:
    return lambda each: _number((each['latency'] or {}).get('total_ms', {}).get(which))


def _relative(key: str, form: str = '.2%') -> Cell:
    return lambda each: _share((each[key] or {}).get('relative'), form)


COLUMNS: dict[str, Cell] = {
    'p50 ms': _total('p50'), 'p95 ms': _total('p95'), 'p99 ms': _total('p99'),
    'speedup': lambda each: _number(each['speedup'], '.2f'),
    'late': lambda each: f'{each["deadline_misses"]} of {each["timed"]}',
    'tokens agree': lambda each: _share(each['token_agreement']),
    'same chunks': lambda each: _number(each['identical'], 'd'),
    'error, reference': _relative('error_reference'),
    'error, bag': _relative('error_recorded'), 'seam': _relative('seam'),
    'tokens': lambda each: _number(each['tokens']), 'passes': lambda each: _number(each['passes']),
    'accepted a pass': lambda each: _number(each['acceptance_length'], '.2f'),
    'image tokens': lambda each: _number(sum(each['kept'].values()), '.0f'),
    'valid': lambda each: f'{each["valid"]} of {each["chunks"]}',
    'MiB': lambda each: _number(each.get('peak_mb'), '.0f')}


def _main_table(report: Report) -> str:
    rows = [(name, [cell(each) for cell in COLUMNS.values()])
            for name, each in report['variants'].items()]
    return _table(('variant', *COLUMNS), rows, report['choice']['variant']) + (
        '<p class="sub">Times of whole inferences, interleaved; speedup: median ratio to the '
        f'reference; late: over {report["deadline_ms"]:g} ms; error, seam: means, of the range '
        'of each action; seam: between what consecutive chunks say of the same time; MiB: '
        'weights and scratch memory.</p>')


def _stage_table(report: Report) -> str:
    rows = [(name, [' / '.join(_number(each['latency'][stage][which])
                               for which in ('p50', 'p95', 'p99')) for stage in STAGES])
            for name, each in report['variants'].items() if each['latency']]
    return _table(('p50 / p95 / p99', *(stage[:-3] for stage in STAGES)), rows)


def _joint_table(report: Report) -> str:
    head = [f'{name}, {unit}' for name, unit in
            zip(report['names'], report['units'], strict=True)]
    parts = []
    for key, title in (('error_reference', 'mean error against the reference'),
                       ('error_recorded', 'mean error against what the bag says was done'),
                       ('seam', 'mean jump between consecutive chunks')):
        rows = [(name, [_number(value, '.4f') for value in each[key]['by_joint']])
                for name, each in report['variants'].items() if each[key]]
        parts.append(_table((title, *head), rows) if rows else '')
    return ''.join(parts)


def _refusals(report: Report) -> str:
    refused = report['bag']['refused']
    parts = [_table(('observations and inputs that the node would have refused', 'count'),
                    [(kind, [str(count)]) for kind, count in refused.items()])
             if refused else '<p>The node would have refused nothing.</p>']
    rows = [(f'{name}: {reason}', [str(count)]) for name, each in report['variants'].items()
            for reason, count in each['reasons'].items()]
    return ''.join(parts) + (_table(('chunks that are not valid', 'count'), rows) if rows
                             else '<p>All chunks are valid.</p>')


def _settings(report: Report) -> str:
    rows = [(key, [json.dumps(value) if isinstance(value, list | dict) else str(value)])
            for part in ('bag', 'machine') for key, value in report[part].items()]
    return _table(('setting', 'value'), rows)


def _details(title: str, body: str) -> str:
    return f'<details><summary>{escape(title)}</summary>{body}</details>'
