#!/usr/bin/env python
"""
Write the measured tables of the documentation from the stored benchmark results.

Usage: python dev/bench/report.py
"""
from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / 'dev/bench/results/bench_soft_stitch.json'
STREAM = ROOT / 'dev/bench/results/bench_soft_stream.json'
README = ROOT / 'README.rst'
PERFORMANCE = ROOT / 'docs/explanation/performance.rst'
ROWS = {'accumulate_s': ('accumulate, s', '.2f'), 'whole_s': ('whole image to a file, s', '.2f'),
        'file_mb': ('file, MB', '.0f'), 'added_rss_mb': ('added peak memory, MB', '.0f')}


def render_rows(columns, rows):
    """Return a list table as RST."""
    lines = ['.. list-table::', '   :header-rows: 1', '']
    for row in (columns, *rows):
        lines += [f'   {"* -" if number == 0 else "  -"} {cell}' for number, cell in enumerate(row)]
    return '\n'.join(lines) + '\n'


def render_table(result):
    """Return the table of the race to a file."""
    ours, theirs = result['medians']['cocoseg'], result['medians']['reference']
    return render_rows(['what', 'cocoseg', 'reference', 'ratio'], [
        (name, f'{ours[key]:{spec}}', f'{theirs[key]:{spec}}', f'{result["ratios"][key]:.1f} x')
        for key, (name, spec) in ROWS.items()])


def render_race(race):
    """Return the table of the streaming race."""
    base = race['medians']['kwarray_weights']['total_s']
    return render_rows(['contestant', 'seconds', 'MPix/s', 'kwarray / it'], [
        (race['labels'][name], f'{row["total_s"]:.2f}',
         f'{race["size"] ** 2 / row["total_s"] / 1e6:.0f}', f'{base / row["total_s"]:.1f} x')
        for name, row in sorted(((name, race['medians'][name]) for name in race['labels']),
                                key=lambda pair: pair[1]['total_s'])])


def render_goals(result):
    """Return the table of all goals of the streaming result."""
    return render_rows(['goal', 'measured', 'wanted', 'met'], [
        (goal['name'], f'{goal["value"]:.3g}{goal["unit"]}',
         f'{"<=" if goal["at_most"] else ">="} {goal["bound"]:g}{goal["unit"]}',
         'yes' if goal['met'] else 'no')
        for race in ('stream', 'memory', 'small', 'error') for goal in result[race]['goals']])


def replace_table(page, title, table):
    """Replace the one table of a page whose first column has a title."""
    pattern = re.compile(r'\.\. list-table::\n   :header-rows: 1\n\n   \* - ' + title
                         + r'\n(?:   .*\n)+')
    text, count = pattern.subn(lambda match: table, page.read_text())
    if count != 1:
        raise SystemExit(f'{page} has {count} tables of {title} instead of one')
    page.write_text(text)


def main():
    """Replace the tables in the README and on the page about performance."""
    replace_table(README, 'what', render_table(json.loads(RESULT.read_text())))
    stream = json.loads(STREAM.read_text())
    replace_table(PERFORMANCE, 'contestant', render_race(stream['stream']))
    replace_table(PERFORMANCE, 'goal', render_goals(stream))


if __name__ == '__main__':
    main()
