#!/usr/bin/env python
"""
The one table of all comparisons, on the terminal and in the documentation.

Usage: python dev/compare/table.py    # write the stored results into the page
"""
from __future__ import annotations

import json

import bench_path  # noqa: F401
import harness
import report
from cases import FAILED, MEASURED

RESULT = 'compare'
PAGE = report.ROOT / 'docs/explanation/comparison.rst'
PLACE = 'comparison'
N_TEXTS, LEAST_WIDTH = 4, 120
COLUMNS = ['subject', 'peer', 'the same', 'agreement', 'cocoseg, s', 'peer, s', 'ratio']


def describe_agreement(row):
    """Return how far both agree, with the bound and further facts."""
    sign = '<=' if row['at_most'] else '>='
    bound = '' if row['bound'] is None else f' ({sign} {row["bound"]:g})'
    verdict = '' if row['holds'] else ' DIFFERS'
    facts = row['facts']
    sizes = (f'; {facts["bytes"] / 1e6:.2f} against {facts["their_bytes"] / 1e6:.2f} MB'
             if 'bytes' in facts else '')
    return f'{row["measure"]}: {row["agreement"]:.6g}{bound}{verdict}{sizes}'


def make_cells(row):
    """Return the cells of a row, whatever became of it."""
    version = f' ({row["package"]} {row["version"]})' if row['version'] else ''
    start = (row['subject'], f'{row["peer"]}{version}')
    if row['status'] != MEASURED:
        return (*start, row['same'], f'{row["status"]}: {row["error"]}', '-', '-', '-')
    return (*start, f'{row["same"]}: {row["input"]}', describe_agreement(row),
            f'{row["ours_s"]:.3f}', f'{row["theirs_s"]:.3f}', f'{row["ratio"]:.1f} x')


def print_rows(rows):
    """Print the table; long names go on in the next line, and none is cut."""
    from rich.console import Console
    from rich.table import Table
    printed = Table(title='the same input through every peer', show_lines=True)
    for number, column in enumerate(COLUMNS):
        is_text = number < N_TEXTS
        printed.add_column(column, overflow='fold', justify='left' if is_text else 'right',
                           no_wrap=None if is_text else True)
    for row in rows:
        printed.add_row(*make_cells(row))
    Console(width=max(Console().width, LEAST_WIDTH), markup=False).print(printed)


def render_rows(rows):
    """Return the table as RST; errors as literals, since they may hold any sign."""
    def guard(row):
        cells = list(make_cells(row))
        if row['status'] == FAILED:
            cells[3] = f'{FAILED}: ``{row["error"].replace("`", chr(39))}``'
        # A lone hyphen would begin a list.
        return [r'\-' if cell == '-' else cell if '``' in cell else cell.replace('*', r'\*')
                for cell in cells]
    rounds = sorted({row['rounds'] for row in rows})
    return report.render_rows(COLUMNS, map(guard, rows),
                              f'Medians of {" or ".join(map(str, rounds))}, by '
                              '``dev/compare/compare.py``')


def put_comparison(folder=harness.RESULTS, page=PAGE):
    """Write the stored results into the page; without any, leave it as it is."""
    fpath = folder / f'{RESULT}.json'
    if fpath.exists():
        report.put_table(page, PLACE, render_rows(list(json.loads(fpath.read_text()).values())))


if __name__ == '__main__':
    put_comparison()
