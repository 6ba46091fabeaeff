"""
The races to write files, and the memory that writing adds.

``bands5``, ``bands1`` and ``rare``: one int16 array in RAM (see
``cog_problem``) to a file, in the temporary folder (``TMPDIR``). Ours ends with
a file that is complete, on the disk (fsync), verified and renamed; the peers
end when their call returns, with the file in the cache of the system. How long
it takes them to be on the disk is kept beside it. Before each turn the file of
the last one is gone and all caches are written; after each, tiles from all over
the file are decoded and compared, and one that differs ends the run.

``memory``: each turn of a writer in a process of its own. The figure is the
highest resident memory less that before: after a small file of the same kind,
which loads and compiles all the code, and with the array in place. Streams have
no array, they get blocks from a pool. What of the peak was memory of the process
and what were pages of files is sampled, so that the parts may miss the top.
"""
from __future__ import annotations

import functools
import json
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import harness
import numpy as np
from cog_problem import BLOCK, KINDS, NODATA, TOP, CogProblem
from harness import check_goal
from stream_problem import Absent

SIZE = 8192
SMALL = 600
PACKAGES = ['numpy', 'numba', 'imagecodecs', 'tifffile', 'kwimage', 'gdal']

BLOCKSIZE = 256
CRS, GEOTRANSFORM = 'EPSG:32618', (500000.0, 10.0, 0.0, 4000000.0, 0.0, -10.0)
QUANTIZATION = {'orig_min': 0, 'orig_max': 1, 'quant_min': 0, 'quant_max': TOP, 'nodata': NODATA}
ABOUT = {'nodata': NODATA, 'crs': CRS, 'transform': GEOTRANSFORM, 'blocksize': BLOCKSIZE,
         'metadata': {'quantization': json.dumps(QUANTIZATION)}}

# Tiles that are compared after each turn.
N_CHECKED = 16

# (what is goal, race, its peer, least ratio of times)
RATIOS = [
    ('kwimage / write_cog, 5 bands', 'bands5', 'kwimage', 6),
    ('kwimage / write_cog, 1 band', 'bands1', 'kwimage', 3),
    ('GDAL COG driver / write_cog, 5 bands', 'bands5', 'gdal_cog', 2.5),
    ('GDAL COG driver / write_cog, 1 band', 'bands1', 'gdal_cog', 2.5),
]
LEAST_SAVED, MOST_VERIFY_MS = 13, 10
MOST_ADDED_MB, MOST_GROWTH = 64, 10


# -- the writers

def make_write_cog(problem):
    """Return a run of ours from an array, with its defaults."""
    from cocoseg.io.cog import write_cog
    return lambda fpath: write_cog(fpath, problem.data, **ABOUT)


def make_cog_writer(problem, *, shuffled=False, streamed=False):
    """
    Return a run of ours that gets blocks of 256 px, one after the other.

    Args:
        problem (CogProblem): the image.
        shuffled (bool): in random order instead of row by row.
        streamed (bool): there is no array to take them from.

    Raises:
        Absent: if this cocoseg has no such writer.
    """
    try:
        from cocoseg.io.cog import CogWriter
    except ImportError as ex:
        raise Absent('this cocoseg has no CogWriter') from ex
    windows = problem.list_windows(shuffled=shuffled)
    get_block = problem.get_block if streamed else lambda window: problem.data[window.slices]

    def write(fpath):
        with CogWriter(fpath, problem.shape, np.int16, **ABOUT) as writer:
            for window in windows:
                writer.write_block(window, get_block(window))
    return write


def make_kwimage(problem):
    """Return a run of kwimage, called as geowatch's stitcher does with a geo-reference."""
    try:
        import kwimage
        from osgeo import gdal  # noqa: F401  # kwimage takes it for granted
    except ImportError as ex:
        raise Absent(str(ex)) from ex
    return lambda fpath: kwimage.imwrite(
        fpath, problem.data, space=None, backend='gdal', compress='DEFLATE', blocksize=128,
        overviews=2, crs=CRS, transform=GEOTRANSFORM, metadata={'quantization': QUANTIZATION})


def make_gdal_cog(problem):
    """Return a run of GDAL's COG driver, which reads the array where it is."""
    try:
        from osgeo import gdal, gdal_array
    except ImportError as ex:
        raise Absent(str(ex)) from ex
    driver = gdal.GetDriverByName('COG')
    if driver is None or 'ZSTD' not in driver.GetMetadataItem('DMD_CREATIONOPTIONLIST'):
        raise Absent('this GDAL has no COG driver with ZSTD')
    options = ['COMPRESS=ZSTD', 'LEVEL=1', 'PREDICTOR=YES', f'BLOCKSIZE={BLOCKSIZE}',
               'NUM_THREADS=ALL_CPUS', 'OVERVIEW_RESAMPLING=AVERAGE']

    def write(fpath):
        source = gdal_array.OpenArray(problem.data, interleave='pixel')
        source.SetProjection(CRS)
        source.SetGeoTransform(GEOTRANSFORM)
        source.SetMetadata(ABOUT['metadata'])
        for number in range(source.RasterCount):
            source.GetRasterBand(number + 1).SetNoDataValue(NODATA)
        target = driver.CreateCopy(os.fspath(fpath), source, options=options)
        if target is None:
            raise RuntimeError(gdal.GetLastErrorMsg())
        target.FlushCache()
    return write


# name -> (label, what makes the run, its options)
WRITERS = {
    'cocoseg': ('cocoseg write_cog', make_write_cog, {}),
    'blocks': ('cocoseg CogWriter, blocks row by row', make_cog_writer, {}),
    'shuffled': ('cocoseg CogWriter, blocks in random order', make_cog_writer,
                 {'shuffled': True}),
    'kwimage': ('kwimage.imwrite, as geowatch calls it', make_kwimage, {}),
    'gdal_cog': ('GDAL COG driver, all threads', make_gdal_cog, {}),
}
OURS = ('cocoseg', 'blocks', 'shuffled')


# -- the races

def check_file(fpath, data):
    """
    Return the number of overviews of a file, an int.

    Raises:
        RuntimeError: if one of some tiles, spread over the image, is not that
            of the array.
    """
    import tifffile
    with tifffile.TiffFile(fpath) as tif:
        page, file = tif.pages[0], tif.filehandle
        n_tiles = len(page.dataoffsets)
        for index in np.unique(np.linspace(0, n_tiles - 1, N_CHECKED).astype(int)).tolist():
            file.seek(page.dataoffsets[index])
            blob = file.read(page.databytecounts[index])
            tile, (_, _, y, x, _), _ = page.decode(blob, index)
            part = data[y:y + tile.shape[1], x:x + tile.shape[2]]
            # Tiles at the edge are whole in the file.
            if not np.array_equal(tile[0, :part.shape[0], :part.shape[1]], part):
                raise RuntimeError(f'tile {index} of {n_tiles} in {fpath} has other pixels')
        return len(tif.pages) - 1


def flush_file(fpath):
    """Wait until a file is on the disk; return how long it took, s."""
    start = time.perf_counter()
    with open(fpath, 'rb+') as file:
        os.fsync(file.fileno())
    return time.perf_counter() - start


def measure(write, data, *, is_ours):
    """Write one file in a folder of its own, and return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        fpath = Path(folder) / 'image.tif'
        os.sync()
        cpu, start = time.process_time(), time.perf_counter()
        write(fpath)
        wall_s = time.perf_counter() - start
        figures = {'wall_s': wall_s, 'cpu_s': time.process_time() - cpu,
                   'flush_s': flush_file(fpath), 'file_mb': fpath.stat().st_size / 1e6,
                   'n_overviews': check_file(fpath, data)}
        if is_ours:
            from cocoseg.io.verify import verify_cog
            start = time.perf_counter()
            verify_cog(fpath)
            figures['verify_ms'] = 1000 * (time.perf_counter() - start)
    return figures


def make_contestants(problem):
    """Return by name the runs, the labels, and why some are absent."""
    runs, labels, absent = {}, {}, {}
    for name, (label, make, options) in WRITERS.items():
        try:
            write = make(problem, **options)
        except Absent as ex:
            absent[name] = str(ex)
            continue
        runs[name] = functools.partial(measure, write, problem.data, is_ours=name in OURS)
        labels[name] = label
    return runs, labels, absent


def compute_goals(kind, medians):
    """Return the goals of a race whose contestants took part."""
    ours = medians['cocoseg']
    goals = [check_goal(name, medians[peer]['wall_s'] / ours['wall_s'], least, unit='x')
             for name, race, peer, least in RATIOS if race == kind and peer in medians]
    if kind == 'bands5':
        if 'kwimage' in medians:
            saved = 100 * (1 - ours['file_mb'] / medians['kwimage']['file_mb'])
            goals.append(check_goal('smaller than the file of kwimage, 5 bands', saved,
                                    LEAST_SAVED, unit=' %'))
        goals.append(check_goal('verify_cog, 5 bands', ours['verify_ms'], MOST_VERIFY_MS,
                                at_most=True, unit=' ms'))
    return goals


def run_race(kind, script, size, rounds):
    """Measure one kind of image, print the table, and return the result to store."""
    problem = CogProblem(kind, size, size)
    nodata_percent = 100 * float((problem.data[..., 0] == NODATA).mean())
    runs, labels, absent = make_contestants(problem)
    medians, values = harness.run_rounds(runs, rounds, shuffle=True)
    result = {'size': size, 'bands': problem.shape[2], 'block': BLOCK, 'rounds': rounds,
              'raw_mb': problem.raw_mb, 'nodata_percent': nodata_percent, 'labels': labels,
              'medians': medians, 'absent': absent, 'goals': compute_goals(kind, medians),
              'values': values, 'machine': harness.get_machine(),
              'versions': harness.get_versions(PACKAGES)}
    print_race(kind, result)
    return result


def print_race(kind, result):
    """Print the table of one kind of image, and the goals."""
    medians, values = result['medians'], result['values']
    rows = []
    for name, label in result['labels'].items():
        row, every = medians[name], [turn['wall_s'] for turn in values[name]]
        rows.append((label, f'{row["wall_s"]:.3f}', f'{min(every):.2f}-{max(every):.2f}',
                     f'{row["cpu_s"]:.2f}', f'{row["flush_s"]:.2f}', f'{row["file_mb"]:.1f}',
                     f'{row["n_overviews"]:.0f}',
                     f'{row["verify_ms"]:.1f}' if 'verify_ms' in row else '',
                     f'{row["wall_s"] / medians["cocoseg"]["wall_s"]:.2f}x'))
    size = result['size']
    harness.print_table(f'{kind}: {size}x{size}x{result["bands"]} int16, '
                        f'{result["raw_mb"]:.0f} MB, nodata {result["nodata_percent"]:.1f} %, '
                        f'medians of {result["rounds"]}',
                        ['what', 'total s', 'range s', 'CPU s', 'flush s', 'MB', 'overviews',
                         'verify ms', '/ ours'], rows)
    harness.print_goals(result['goals'])
    harness.print_absent(result['absent'])


# -- memory

class RssSampler(threading.Thread):
    """
    The highest resident memory of this process by its kinds, sampled.

    Use as a context. ``peaks`` are the bytes of the process itself and those of
    mapped files, MB, each at its own time.
    """

    KEYS = ('RssAnon', 'RssFile', 'RssShmem')
    PERIOD = 0.005

    def __init__(self):
        super().__init__(daemon=True)
        self.peaks = dict.fromkeys(self.KEYS, 0.0)
        self._is_done = threading.Event()

    def run(self):
        """Sample until the context ends."""
        while not self._is_done.wait(self.PERIOD):
            for key, value in read_kinds().items():
                self.peaks[key] = max(self.peaks[key], value)

    def __enter__(self):
        """Start to sample."""
        self.start()
        return self

    def __exit__(self, *_):
        """Stop."""
        self._is_done.set()
        self.join()


def read_kinds():
    """Return the resident memory of this process by kind, MB."""
    lines = dict(line.split(':') for line in
                 Path('/proc/self/status').read_text().splitlines() if line.startswith('Rss'))
    return {key: int(lines[key].split()[0]) * 1024 / 1e6 for key in RssSampler.KEYS}


def make_cases(size):
    """Return by name the label, the height, the writer, and the options of a case."""
    rows, streamed = 'cocoseg CogWriter, blocks row by row', {'streamed': True}
    return {
        'cocoseg': ('cocoseg write_cog, from an array', size, make_write_cog, {}),
        'low': (rows, size // 4, make_cog_writer, streamed),
        'stream': (rows, size, make_cog_writer, streamed),
        'high': (rows, 4 * size, make_cog_writer, streamed),
        'shuffled': ('cocoseg CogWriter, blocks in random order', size, make_cog_writer,
                     {**streamed, 'shuffled': True}),
        'kwimage': ('kwimage.imwrite, as geowatch calls it', size, make_kwimage, {}),
        'gdal_cog': ('GDAL COG driver, all threads', size, make_gdal_cog, {}),
    }


def measure_memory(name, size):
    """Return the memory that one case adds, MB; runs in its own process."""
    _, height, make, options = make_cases(size)[name]
    problem = CogProblem('bands5', height, size, pooled=True)
    try:
        write = make(problem, **options)
    except Absent as ex:
        return {'absent': str(ex)}
    if not options.get('streamed'):
        problem.data  # noqa: B018  # what is there before
    with tempfile.TemporaryDirectory() as folder:
        small, fpath = CogProblem('bands5', SMALL, SMALL, pooled=True), Path(folder) / 'image.tif'
        make(small, **options)(Path(folder) / 'small.tif')
        os.sync()
        base, kinds, start = harness.start_peak_mb(), read_kinds(), time.perf_counter()
        with RssSampler() as sampler:
            write(fpath)
        # The harness counts in MiB.
        figures = {'added_mb': (harness.peak_rss_mb() - base) * 2 ** 20 / 1e6,
                   'total_s': time.perf_counter() - start,
                   'file_mb': fpath.stat().st_size / 1e6}
    return {**figures, **{f'{key}_mb': sampler.peaks[key] - kinds[key] for key in kinds}}


def compute_memory_goals(found):
    """Return the goals of the cases that took part."""
    goals = [check_goal(f'added memory: {found[name]["label"]}, height {found[name]["height"]}',
                        found[name]['added_mb'], MOST_ADDED_MB, at_most=True, unit=' MB')
             for name in ('cocoseg', 'low', 'stream', 'high') if name in found]
    if 'high' in found and 'low' in found:
        growth = 100 * abs(found['high']['added_mb'] / found['low']['added_mb'] - 1)
        goals.append(check_goal('added memory of CogWriter, 16 times the height: change', growth,
                                MOST_GROWTH, at_most=True, unit=' %'))
    return goals


def run_memory(script, size, rounds):
    """Measure each case, print the table, and return the result to store."""
    found, values, absent = {}, {}, {}
    for name, (label, height, _, _) in make_cases(size).items():
        turns = [harness.run_worker(script, f'memory:{name}', ['--size', size])
                 for _ in range(rounds)]
        if 'absent' in turns[0]:
            absent[name] = turns[0]['absent']
            continue
        values[name] = turns
        found[name] = {'label': label, 'height': height,
                       **{key: statistics.median(turn[key] for turn in turns)
                          for key in turns[0]}}
    rows = [(row['label'], f'{row["height"]}x{size}x5', *(f'{row[key]:.1f}' for key in (
        'added_mb', 'RssAnon_mb', 'RssFile_mb', 'RssShmem_mb', 'total_s')))
        for row in found.values()]
    harness.print_table(f'memory added, one process each, medians of {rounds}',
                        ['what', 'shape', 'added MB', 'own', 'files', 'shared', 's'], rows)
    goals = compute_memory_goals(found)
    harness.print_goals(goals)
    harness.print_absent(absent)
    return {'size': size, 'rounds': rounds, 'found': found, 'absent': absent, 'goals': goals,
            'values': values,
            'machine': harness.get_machine(), 'versions': harness.get_versions(PACKAGES)}


RACES = {**{kind: functools.partial(run_race, kind) for kind in KINDS}, 'memory': run_memory}
WORKERS = {name: functools.partial(measure_memory, name) for name in make_cases(SIZE)}
