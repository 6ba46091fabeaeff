#!/usr/bin/env python
"""
Write the measured table of the README from the stored benchmark results.

Usage: python dev/bench/report.py
"""
from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / 'dev/bench/results/bench_soft_stitch.json'
README = ROOT / 'README.rst'
ROWS = {'accumulate_s': ('accumulate, s', '.2f'), 'whole_s': ('whole image to a file, s', '.2f'),
        'file_mb': ('file, MB', '.0f'), 'added_rss_mb': ('added peak memory, MB', '.0f')}
TABLE = re.compile(r'\.\. list-table::\n   :header-rows: 1\n\n   \* - what\n(?:   .*\n)+')


def render_table(result):
    """Return the table as RST."""
    ours, theirs = result['medians']['cocoseg'], result['medians']['reference']
    lines = ['.. list-table::', '   :header-rows: 1', '', '   * - what', '     - cocoseg',
             '     - reference', '     - ratio']
    for key, (name, spec) in ROWS.items():
        lines += [f'   * - {name}', f'     - {ours[key]:{spec}}', f'     - {theirs[key]:{spec}}',
                  f'     - {result["ratios"][key]:.1f} x']
    return '\n'.join(lines) + '\n'


def main():
    """Replace the table in the README."""
    table = render_table(json.loads(RESULT.read_text()))
    text, count = TABLE.subn(table, README.read_text())
    if count != 1:
        raise SystemExit(f'{README} has {count} tables of results instead of one')
    README.write_text(text)


if __name__ == '__main__':
    main()
