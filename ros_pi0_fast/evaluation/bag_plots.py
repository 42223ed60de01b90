"""The plots of a report, as SVG to be put into the page."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

Report = Mapping[str, Any]
PALETTE = ('#5b6470', '#1f77b4', '#2ca02c', '#d62728', '#9467bd', '#8c564b', '#e377c2', '#17a2a2',
           '#bc8f00', '#7f7f7f')
STAGES = {'preprocess_ms': '#c7c7c7', 'vision_ms': '#6baed6', 'prefill_ms': '#3182bd',
          'decode_ms': '#fd8d3c', 'postprocess_ms': '#969696'}
WIDTH = 9.0
"""Inches, of a plot; a page scales it."""
STYLE = {'svg.fonttype': 'none', 'font.family': 'sans-serif', 'font.size': 10,
         'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True,
         'grid.alpha': 0.25, 'axes.axisbelow': True}


def plots(report: Report) -> dict[str, str]:
    """Return title -> SVG of all plots for which there are figures."""
    made = {
        'Loss against time': (_tradeoff, 3.6),
        'Where the time goes': (_stages, 0.9 + 0.36 * max(len(report['variants']), 2)),
        'Action error by step of the horizon': (_by_step, 3.2),
        'Action error by joint': (_by_joint, 3.2),
        'Jump between consecutive chunks': (_seams, 2.6)}
    with mpl.rc_context({**STYLE}):
        return {title: svg for title, (draw, height) in made.items()
                if (svg := _svg(report, draw, height, title))}


def colour(report: Report, name: str) -> str:
    """Return the colour of a variant."""
    return PALETTE[list(report['variants']).index(name) % len(PALETTE)]


def _svg(report: Report, draw: Callable[[Report, Figure], bool], height: float,
         title: str) -> str:
    """Draw; return the SVG element, '' where there was nothing to draw."""
    figure = Figure(figsize=(WIDTH, height), layout='constrained')
    if not draw(report, figure):
        return ''
    text = io.StringIO()
    # Ids differ from plot to plot: they share a page.
    with mpl.rc_context({'svg.hashsalt': title}):
        figure.savefig(text, format='svg', metadata={'Date': None}, transparent=True)
    svg = text.getvalue()
    prefix = title.split()[-1]
    return svg[svg.index('<svg'):].replace('id="', f'id="{prefix}-').replace(
        'href="#', f'href="#{prefix}-').replace('url(#', f'url(#{prefix}-')


def _tradeoff(report: Report, figure: Figure) -> bool:
    points = [each for each in report['candidates'] if each['loss'] is not None]
    if not points:
        return False
    axes = figure.subplots()
    for each in points:
        axes.scatter(each['ms'], 100 * each['loss'], s=60, zorder=3, label=each['name'],
                     color=colour(report, each['name']), marker='o' if each['sound'] else 'x')
    axes.axvline(report['budget_ms'], color='#444', linestyle='--', linewidth=1,
                 label=f'budget {report["budget_ms"]:g} ms')
    axes.set_xscale('log')
    ticks = ScalarFormatter()
    axes.xaxis.set_major_formatter(ticks)
    axes.xaxis.set_minor_formatter(ticks)
    axes.tick_params(axis='x', which='both', labelsize=9)
    axes.set_xlabel('p95 of an inference, ms (logarithmic)')
    axes.set_ylabel("error against the reference,\n% of the actions' range")
    _legend(figure, axes)
    return True


def _stages(report: Report, figure: Figure) -> bool:
    variants = {name: each['latency'] for name, each in report['variants'].items()
                if each['latency']}
    if not variants:
        return False
    axes = figure.subplots()
    places, left = np.arange(len(variants)), np.zeros(len(variants))
    for stage, shade in STAGES.items():
        values = np.array([times[stage]['p50'] for times in variants.values()])
        axes.barh(places, values, left=left, color=shade, label=stage[:-3], height=0.62)
        left += values
    for which, marker in (('p50', '|'), ('p95', 'd'), ('p99', 'x')):
        axes.scatter([times['total_ms'][which] for times in variants.values()], places,
                     marker=marker, color='black', s=36, zorder=3, label=f'total {which}')
    # A few outliers must not hide the rest; the table has them.
    axes.set_xlim(0, 1.3 * max(times['total_ms']['p95'] for times in variants.values()))
    if report['budget_ms'] < axes.get_xlim()[1]:
        axes.axvline(report['budget_ms'], color='#444', linestyle='--', linewidth=1,
                     label='budget')
    axes.set_yticks(places, list(variants))
    axes.invert_yaxis()
    axes.set_xlabel('ms; bars: medians of the stages')
    axes.grid(axis='y', visible=False)
    _legend(figure, axes)
    return True


def _errors(report: Report) -> list[tuple[str, str]]:
    """Return key and title of the errors that the report has."""
    keys = {'error_reference': 'against the reference',
            'error_recorded': 'against what the bag says was done'}
    return [(key, title) for key, title in keys.items()
            if any(each[key] for each in report['variants'].values())]


def _panels(report: Report, figure: Figure, draw: Callable[[Axes, str], None]) -> bool:
    keys = _errors(report)
    if not keys:
        return False
    for axes, (key, title) in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys,
                                  strict=True):
        draw(axes, key)
        axes.set_title(title, fontsize=10)
        axes.set_ylabel('% of the range')
        axes.set_ylim(bottom=0)
    _legend(figure, axes)
    return True


def _legend(figure: Figure, axes: Axes) -> None:
    """Say beside the plots which colour is which."""
    figure.legend(*axes.get_legend_handles_labels(), fontsize=9, frameon=False,
                  loc='outside right center')


def _lines(report: Report, key: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the variants whose error says something: it is 0 for the reference itself."""
    return [(name, each[key]) for name, each in report['variants'].items()
            if each[key] and (key != 'error_reference' or each[key]['relative'])]


def _by_step(report: Report, figure: Figure) -> bool:
    def draw(axes: Axes, key: str) -> None:
        for name, error in _lines(report, key):
            values = 100 * np.array(error['by_step_relative'], float)
            axes.plot(1 + np.arange(len(values)), values, marker='.', label=name,
                      color=colour(report, name))
        axes.set_xlabel('step')

    return _panels(report, figure, draw)


def _by_joint(report: Report, figure: Figure) -> bool:
    def draw(axes: Axes, key: str) -> None:
        _bars(axes, report, [(name, error['by_joint']) for name, error in _lines(report, key)])

    return _panels(report, figure, draw)


def _seams(report: Report, figure: Figure) -> bool:
    rows = [(name, each['seam']['by_joint']) for name, each in report['variants'].items()
            if each['seam']]
    if not rows:
        return False
    axes = figure.subplots()
    _bars(axes, report, rows)
    axes.set_ylabel('mean, % of the range')
    _legend(figure, axes)
    return True


def _bars(axes: Axes, report: Report, rows: Sequence[tuple[str, Sequence[float]]]) -> None:
    """Draw a group of bars for each joint, a bar a variant, over the joints' ranges."""
    places = np.arange(len(report['names']))
    width = 0.8 / max(len(rows), 1)
    for index, (name, values) in enumerate(rows):
        share = 100 * np.array(values, float) / np.array(report['ranges'])
        axes.bar(places - 0.4 + (index + 0.5) * width, share, width, label=name,
                 color=colour(report, name))
    axes.set_xticks(places, report['names'], rotation=20 if len(places) > 4 else 0)
    axes.grid(axis='x', visible=False)
