#!/usr/bin/env python
"""
Write the measured tables of the documentation from the stored benchmark results.

Usage: python dev/bench/report.py
"""
from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / 'dev/bench/results/bench_soft_stitch.json'
STREAM = ROOT / 'dev/bench/results/bench_soft_stream.json'
FILES = ROOT / 'dev/bench/results/bench_cog_write.json'
SEGMENTS = ROOT / 'dev/bench/results/bench_shepherd.json'
BLOCKS = ROOT / 'dev/bench/results/bench_blockwise.json'
SCALE = ROOT / 'dev/bench/results/bench_scale.json'
COMPARISON = ROOT / 'dev/bench/results/compare.json'
README = ROOT / 'README.rst'
SCALING = ROOT / 'docs/explanation/scaling.rst'
INSTANCES = ROOT / 'docs/explanation/instances.rst'
PERFORMANCE = ROOT / 'docs/explanation/performance.rst'
ROWS = {'accumulate_s': ('accumulate, s', '.2f'), 'whole_s': ('whole image to a file, s', '.2f'),
        'file_mb': ('file, MB', '.0f'), 'added_rss_mb': ('added peak memory, MB', '.0f')}
IMAGES = {'bands5': '5 bands', 'bands1': '1 band', 'rare': '1 band, rare positives'}
WRITERS = {'cocoseg': 'cocoseg', 'kwimage': 'kwimage', 'gdal_cog': 'GDAL COG driver'}


def render_rows(columns, rows, title=''):
    """Return a list table as RST."""
    lines = [f'.. list-table:: {title}'.rstrip(), '   :header-rows: 1', '']
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


def render_goals(result, races=('stream', 'memory', 'small', 'error'), title=''):
    """Return the table of all goals of a result, by default of the streaming one."""
    return render_rows(['goal', 'measured', 'wanted', 'met'], [
        (goal['name'], f'{goal["value"]:.3g}{goal["unit"]}',
         f'{"<=" if goal["at_most"] else ">="} {goal["bound"]:g}{goal["unit"]}',
         'yes' if goal['met'] else 'no')
        for race in races for goal in result[race]['goals']], title)


def render_writers(result):
    """Return the table of all who write files, the quickest first for each image."""
    rows = []
    for race, image in IMAGES.items():
        medians = result[race]['medians']
        ours = medians['cocoseg']['wall_s']
        rows += [(image, result[race]['labels'][name], f'{row["wall_s"]:.2f}',
                  f'{row["wall_s"] / ours:.1f} x', f'{row["cpu_s"]:.1f}', f'{row["flush_s"]:.2f}',
                  f'{row["file_mb"]:.0f}', f'{row["n_overviews"]:.0f}')
                 for name, row in sorted(medians.items(), key=lambda pair: pair[1]['wall_s'])]
    return render_rows(
        ['image', 'writer', 'seconds', 'it / write_cog', 'CPU s', 'to the disk, s', 'MB',
         'overviews'], rows,
        f'{name_size(result)} int16 in RAM to a file')


def render_added(result):
    """Return the table of the memory that writing adds."""
    return render_rows(['writer', 'image', 'added memory, MB'], [
        (row['label'], f'{row["height"]} x {result["memory"]["size"]} x 5',
         f'{row["added_mb"]:.0f}') for row in result['memory']['found'].values()])


def render_file_goals(result):
    """Return the table of all goals of writing files."""
    return render_goals(result, [*IMAGES, 'memory'], 'Goals of writing')


def render_files(result):
    """Return the short table of writing files."""
    def list_cells(rows, key, spec):
        """Return one figure of each writer, as a text."""
        return [f'{rows[name][key]:{spec}}' if name in rows else 'absent' for name in WRITERS]

    five, one = result['bands5']['medians'], result['bands1']['medians']
    return render_rows(['writing a file', *WRITERS.values()], [
        ('5 bands, s', *list_cells(five, 'wall_s', '.2f')),
        ('1 band, s', *list_cells(one, 'wall_s', '.2f')),
        ('5 bands: file, MB', *list_cells(five, 'file_mb', '.0f')),
        ('5 bands: overviews', *list_cells(five, 'n_overviews', '.0f')),
        ('5 bands: added peak memory, MB',
         *list_cells(result['memory']['found'], 'added_mb', '.0f')),
    ], f'{name_size(result)} int16 in RAM to a file, by ``dev/bench/bench_cog_write.py``')


def name_size(result):
    """Return the size of the images that are written and the turns, as a text."""
    race = result['bands5']
    return f'Medians of {race["rounds"]}: {race["size"]} x {race["size"]}'


def render_segments(result):
    """Return the short table of segmentation."""
    memory, tiled, rss = (result[race]['medians'] for race in ('memory', 'tiled', 'rss'))
    size = result['tiled']['size']

    def list_row(name, figures, spec='.2f'):
        theirs, same, default = figures
        return (name, f'{theirs:{spec}}', f'{same:{spec}}', f'{default:{spec}}')

    rows = [list_row('{}, {} x {} px in RAM, no fit, s'.format(*name.split(), name.split()[1]),
                     [memory[name][who]['wall_s'] for who in ('pyshepseg', 'compat', 'default')])
            for name in memory]
    rows += [list_row(f'{size} x {size} px, file to file, s',
                      [tiled[who]['wall_s'] for who in ('pyshepseg', 'compat', 'default')]),
             list_row('the same, fit from a fixed start, s',
                      [tiled['pyshepseg_fixed']['wall_s'], tiled['compat']['wall_s'],
                       tiled['default']['wall_s']]),
             list_row('in RAM: added peak memory, MB',
                      [rss[f'memory {who}'] for who in ('pyshepseg', 'compat', 'default')], '.0f'),
             list_row('file to file: added peak memory, MB',
                      [rss[f'tiled {who}'] for who in ('pyshepseg_fixed', 'compat', 'default')],
                      '.0f')]
    return render_rows(['segmentation', f'pyshepseg {result["tiled"]["versions"]["pyshepseg"]}',
                        'cocoseg, the same labels', 'cocoseg'], rows,
                       f'Medians of {result["tiled"]["rounds"]}: 4 bands uint16, 60 clusters, by '
                       '``dev/bench/bench_shepherd.py``')


def render_segment_goals(result):
    """Return the table of all goals of segmentation."""
    return render_goals(result, ['labels', 'memory', 'fit', 'tiled', 'rss', 'start'],
                        'Goals of segmentation')


def render_label_rows(result):
    """Return the table of the images whose labels were compared."""
    return render_rows(['image', 'connected', 'least px', 'segments', 'px that differ'],
                       result['labels']['rows'],
                       f'Labels against pyshepseg {result["labels"]["versions"]["pyshepseg"]}, '
                       'same clusters')


def render_blocks(result):
    """Return the short table of block runs."""
    def list_row(what, theirs, ours):
        return (what, f'{theirs:.2f}', f'{ours:.2f}', f'{theirs / ours:.1f} x')

    whole, masks = result['components']['medians']['4-connected'], result['masks_band_zstd']
    rows = [list_row(f'components of {result["components"]["size"]}², against scipy, whole',
                     whole['scipy']['wall_s'], whole['blocks']['wall_s'])]
    for name, row in result['mutex']['medians'].items():
        if name.endswith('noise .35'):
            rows.append(list_row(f'mutex watershed, {name}, against mwatershed',
                                 row['mwatershed']['wall_s'], row['cocoseg']['wall_s']))
    rows.append(list_row(f'mask of {masks["size"]}² x {masks["bands"]}, ZSTD, bands apart, against '
                         'a plain loop', masks['medians']['plain']['wall_s'],
                         masks['medians']['cocoseg']['wall_s']))
    return render_rows(['block by block', 'peer, s', 'cocoseg, s', 'ratio'], rows,
                       'Medians of 5, by ``dev/bench/bench_blockwise.py``')


def render_agreement(result):
    """Return the table of how well blocks agree with the whole."""
    return render_rows(['problem', 'objects', 'agreement at seams', 'worst seam',
                        'identical, least of 5 seeds, %', 'mean, %'],
                       result['agreement']['rows'],
                       'Mutex watershed in blocks of 256 px, or 64 in volumes, context 32, against '
                       'the whole')


def render_block_goals(result):
    """Return the table of all goals of block runs."""
    return render_goals(result, list(result), 'Goals of block runs')


def render_workers(result):
    """Return the table of how much quicker two workers are than one."""
    races = {'segment': 'segmentation of one file', 'predict': 'prediction of many images',
             'rows': 'prediction of one image', 'watershed': 'watershed of one file'}
    rows = []
    for race, name in races.items():
        seconds = {spec: row['wall_s'] for spec, row in result[race]['medians'].items()}
        rows.append((name, *(f'{value:.2f}' for value in seconds.values()),
                     f'{seconds["processes:1"] / seconds["processes:2"]:.2f} x'))
    labels = list(result['segment']['labels'].values())
    return render_rows(['seconds', *labels, 'two workers against one'], rows,
                       'Medians of 5, by ``dev/bench/bench_scale.py``')


def render_engines(result):
    """Return the table of what a task costs, and of the memory that many tasks take."""
    costs, found = result['engines']['microseconds'], result['engines_memory']['found']
    columns = ['executor', 'µs per empty task', 'tasks', 'added memory of the driver, MB']
    return render_rows(columns, [
        (name, f'{cost:.0f}', f'{found[name]["n_tasks"]}' if name in found else '-',
         f'{found[name]["added_mb"]:.1f}' if name in found else '-')
        for name, cost in costs.items()], 'By ``dev/bench/races_engines.py``')


def render_equal(result):
    """Return the table of the operations that were compared byte by byte."""
    race = result['equal']
    return render_rows(['operation', *race['labels'].values(), 'equal'], [
        (name, *(f'{row[spec]:.1f}' if spec in row else '-' for spec in race['labels']),
         'no' if name in race['differing'] else 'yes')
        for name, row in race['seconds'].items()],
        f'Seconds of one turn on {race["size"]} x {race["size"]} px, and whether all bytes are '
        'those of one process')


def replace_table(page, title, table):
    """Replace the one table of a page whose first column has a title."""
    pattern = re.compile(r'\.\. list-table::\n   :header-rows: 1\n\n   \* - ' + title
                         + r'\n(?:   .*\n)+')
    text, count = pattern.subn(lambda match: table, page.read_text())
    if count != 1:
        raise SystemExit(f'{page} has {count} tables of {title} instead of one')
    page.write_text(text)


def put_table(page, place, table):
    """
    Write a table below the comment ``.. report.py: PLACE`` of a page.

    Replaces the one that is there; unlike with :func:`replace_table`, there
    may be none, as before the first results are stored.
    """
    comment = f'.. report.py: {place}\n'
    pattern = re.compile(re.escape(comment)
                         + r'(?:\n\.\. list-table::.*\n   :header-rows: 1\n\n(?:   .*\n)+)?')
    text, count = pattern.subn(lambda match: f'{comment}\n{table}', page.read_text())
    if count != 1:
        raise SystemExit(f'{page} has {count} comments {comment.strip()!r} instead of one')
    page.write_text(text)


def put_files(result):
    """Write the tables about writing files."""
    missing = [race for race in (*IMAGES, 'memory') if race not in result]
    if missing:
        raise SystemExit(f'{FILES} lacks the races {missing}; run them')
    put_table(README, 'files', render_files(result))
    put_table(PERFORMANCE, 'writers', render_writers(result))
    put_table(PERFORMANCE, 'added memory', render_added(result))
    put_table(PERFORMANCE, 'goals of writing', render_file_goals(result))


def put_segments(result):
    """Write the tables about segmentation."""
    put_table(README, 'segments', render_segments(result))
    put_table(PERFORMANCE, 'labels', render_label_rows(result))
    put_table(PERFORMANCE, 'goals of segmentation', render_segment_goals(result))


def put_blocks(result):
    """Write the tables about block runs."""
    put_table(README, 'blocks', render_blocks(result))
    put_table(INSTANCES, 'agreement', render_agreement(result))
    put_table(PERFORMANCE, 'goals of block runs', render_block_goals(result))


def put_scale(result):
    """Write the tables about workers."""
    put_table(SCALING, 'workers', render_workers(result))
    put_table(SCALING, 'engines', render_engines(result))
    put_table(SCALING, 'equal', render_equal(result))
    put_table(PERFORMANCE, 'goals of workers', render_goals(
        result, ['segment', 'predict', 'rows', 'watershed', 'engines', 'engines_memory', 'equal'],
        'Goals of runs on workers'))


def main():
    """Replace the tables in the README and on the page about performance."""
    replace_table(README, 'what', render_table(json.loads(RESULT.read_text())))
    stream = json.loads(STREAM.read_text())
    replace_table(PERFORMANCE, 'contestant', render_race(stream['stream']))
    replace_table(PERFORMANCE, 'goal', render_goals(stream))
    # Of files there may be no results yet.
    if FILES.exists():
        put_files(json.loads(FILES.read_text()))
    if SEGMENTS.exists():
        put_segments(json.loads(SEGMENTS.read_text()))
    if BLOCKS.exists():
        put_blocks(json.loads(BLOCKS.read_text()))
    if SCALE.exists():
        put_scale(json.loads(SCALE.read_text()))
    if COMPARISON.exists():
        sys.path.insert(0, str(ROOT / 'dev/compare'))
        from table import put_comparison
        put_comparison()


if __name__ == '__main__':
    main()
