"""
The races of the segmentation against pyshepseg, in one process and in turns.

``labels``: no time, only pixels that differ, for the same cluster centres.
``memory``: one image in RAM, without the fit. ``fit``: the k-means alone.
``tiled``: a file to a file. ``rss``: memory that is added, each turn in a process
of its own after a small run that loads and compiles all. ``start``: seconds from
the start of a process to the labels of a small image, with the compiled kernels
in the cache; pyshepseg has none and compiles each time.
"""
from __future__ import annotations

import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
import numpy as np
from harness import check_goal
from shepherd_problem import NODATA, load_scenes, make_image, write_image
from stream_problem import Absent

SIZE, TILED_SIZE = 2000, 3000
TILE_SIZE, OVERLAP = 1024, 256
PACKAGES = ['numpy', 'numba', 'scikit-learn', 'gdal']
SAMPLE = 1_000_000


def get_peer():
    """Return pyshepseg's modules (shepseg, tiling) and its version, or raise Absent."""
    try:
        import pyshepseg
        from pyshepseg import shepseg, tiling
    except ImportError as ex:
        raise Absent(f'{ex}; put pyshepseg 2.0.3 on PYTHONPATH') from ex
    return shepseg, tiling, pyshepseg.__version__


def get_versions():
    """Return all versions, with that of the peer."""
    try:
        peer = get_peer()[2]
    except Absent:
        peer = None
    return {**harness.get_versions(PACKAGES), 'pyshepseg': peer}


def finish(goals, medians, labels, **more):
    """Print goals and return what is stored of a race."""
    harness.print_goals(goals)
    return {'goals': goals, 'medians': medians, 'labels': labels, **more,
            'machine': harness.get_machine(), 'versions': get_versions()}


@functools.lru_cache(maxsize=None)
def load_images(size):
    """Return the synthetic images by name, for one size and half of it."""
    return {f'{kind} {side}': make_image(kind, side)
            for kind in ('clean', 'noisy') for side in (size // 2, size)}


@functools.lru_cache(maxsize=None)
def fit_peer(name, size, scenes=None):
    """Return the peer's clusters of an image: fixed start, one pixel in a hundred."""
    shepseg = get_peer()[0]
    image = {**load_images(size), **(load_scenes(scenes)[0] if scenes is not False else {})}[name]
    return shepseg.fitSpectralClusters(np.moveaxis(image, -1, 0), 60, 1, NODATA, True)


def configure(**options):
    """Return a config with the peer's rules and the fixed start."""
    from cocoseg import ShepherdConfig
    return ShepherdConfig(init='diagonal', compat='pyshepseg', **options)


def segment_peer(image, kmeans, min_size=50, four_connected=True):
    """Return the peer's result."""
    return get_peer()[0].doShepherdSegmentation(
        np.ascontiguousarray(np.moveaxis(image, -1, 0)), kmeansObj=kmeans, imgNullVal=NODATA,
        minSegmentSize=min_size, fourConnected=four_connected, fixedKMeansInit=True)


# ---- labels

def race_labels(script, args):
    """Count pixels that differ."""
    from cocoseg import shepherd_segment
    scenes, absent = load_scenes(args.scenes)
    images = {**load_images(args.size), **scenes}
    rows, worst = [], 0
    for name, image in images.items():
        kmeans = fit_peer(name, args.size, args.scenes)
        for four_connected in (True, False):
            for min_size in (5, 50, 500):
                theirs = segment_peer(image, kmeans, min_size, four_connected).segimg
                ours = shepherd_segment(
                    image, configure(four_connected=four_connected, min_segment_size=min_size),
                    nodata=NODATA, kmeans=kmeans).labels
                n_differ = int(np.count_nonzero(ours != theirs))
                rows.append((name, 4 if four_connected else 8, min_size, int(theirs.max()),
                             n_differ))
                worst = max(worst, n_differ)
    for recode in ('overlap', 'simple'):
        n_segments, n_differ = _compare_tiled(args, recode)
        rows.append((f'clean {args.tiled_size}, {TILE_SIZE} px tiles, {recode}', 4, 50, n_segments,
                     n_differ))
        worst = max(worst, n_differ)
    rows.append((f'clean {args.tiled_size}, {TILE_SIZE} px tiles against the whole image, default',
                 4, 50, *_compare_whole(args)))
    harness.print_table('pixels that differ', ['image', 'connected', 'least px', 'segments',
                                               'differ'], [tuple(map(str, row)) for row in rows])
    harness.print_absent(absent)
    goals = [check_goal('pixels that differ, most of any', worst, 0, at_most=True)]
    return finish(goals, {}, {}, rows=rows, absent=absent)


def _compare_tiled(args, recode):
    from cocoseg import segment_raster
    from cocoseg.io.raster import read_raster
    with tempfile.TemporaryDirectory() as folder:
        src = _make_file(folder, args.tiled_size)
        _run_peer_tiled(src, os.path.join(folder, 'theirs.img'), fixedKMeansInit=True,
                        simpleTileRecode=recode == 'simple')
        segment_raster(src, os.path.join(folder, 'ours.tif'), configure(), TILE_SIZE, OVERLAP,
                       'threads', recode=recode)
        theirs = read_raster(os.path.join(folder, 'theirs.img'))
        return int(theirs.max()), int(np.count_nonzero(
            theirs != read_raster(os.path.join(folder, 'ours.tif'))))


def _compare_whole(args):
    """Return our segments of the whole image by default, and the pixels that tiles change."""
    from cocoseg import ShepherdConfig, segment_raster, shepherd_segment
    from cocoseg.io.raster import read_raster
    with tempfile.TemporaryDirectory() as folder:
        dst = os.path.join(folder, 'ours.tif')
        result = segment_raster(_make_file(folder, args.tiled_size), dst, ShepherdConfig(),
                                TILE_SIZE, OVERLAP, 'threads')
        whole = shepherd_segment(_make_image_once(args.tiled_size), nodata=NODATA,
                                 kmeans=result.kmeans)
        return whole.n_segments, int(np.count_nonzero(read_raster(dst)[..., 0] != whole.labels))


# ---- one image in RAM

def race_memory(script, args):
    """Time one image without the fit."""
    from cocoseg import ShepherdConfig, shepherd_segment
    goals, medians, values, labels = [], {}, {}, {
        'pyshepseg': 'pyshepseg', 'compat': 'cocoseg, labels of pyshepseg', 'default': 'cocoseg'}
    for name, image in load_images(args.size).items():
        kmeans = fit_peer(name, args.size, False)

        def run_ours(config, image=image, kmeans=kmeans):
            start = time.perf_counter()
            result = shepherd_segment(image, config, nodata=NODATA, kmeans=kmeans)
            stages = {stage: row['total'] for stage, row in result.timings.summary().items()
                      if stage != 'walltime'}
            return {'wall_s': time.perf_counter() - start, **stages}

        def run_peer(image=image, kmeans=kmeans):
            start = time.perf_counter()
            segment_peer(image, kmeans)
            return {'wall_s': time.perf_counter() - start}
        medians[name], values[name] = harness.run_rounds({
            'pyshepseg': run_peer, 'compat': lambda: run_ours(configure()),
            'default': lambda: run_ours(ShepherdConfig())}, args.rounds)
        least = 4 if name.startswith('noisy') else 3
        for who in ('compat', 'default'):
            goals.append(check_goal(
                f'{name}: pyshepseg / {labels[who]}',
                medians[name]['pyshepseg']['wall_s'] / medians[name][who]['wall_s'], least,
                unit=' x'))
    return finish(goals, medians, labels, values=values)


# ---- the fit

def race_fit(script, args):
    """Time the k-means."""
    from cocoseg import ShepherdConfig
    from cocoseg.shepherd.clusters import draw_samples, fit_clusters
    shepseg = get_peer()[0]
    image = make_image('clean', args.tiled_size)
    samples = _draw_sample(image)
    noisy = _draw_sample(make_image('noisy', args.tiled_size))
    cases = {f'clean, {len(samples)} px': samples, f'noisy, {len(noisy)} px': noisy,
             f'clean, {len(samples) // 100} px': np.ascontiguousarray(samples[::100])}
    goals, medians, values, gaps = [], {}, {}, {}
    for name, pixels in cases.items():
        bands = np.ascontiguousarray(pixels.T[:, None])
        found = {}

        def run_peer(bands=bands, found=found):
            start = time.perf_counter()
            found['peer'] = shepseg.fitSpectralClusters(bands, 60, 100, NODATA, True)
            return {'wall_s': time.perf_counter() - start}

        def run_ours(pixels=pixels, found=found):
            start = time.perf_counter()
            found['ours'] = fit_clusters(pixels, configure())
            return {'wall_s': time.perf_counter() - start}
        medians[name], values[name] = harness.run_rounds(
            {'pyshepseg': run_peer, 'compat': run_ours}, args.rounds)
        gaps[name] = float(np.abs(found['peer'].cluster_centers_
                                  - found['ours'].cluster_centers_).max())
        goals += [check_goal(f'same fit, {name}: pyshepseg / cocoseg',
                             medians[name]['pyshepseg']['wall_s']
                             / medians[name]['compat']['wall_s'], 1.8, unit=' x'),
                  check_goal(f'same fit, {name}: largest difference of centres', gaps[name], 0,
                             at_most=True)]
    inertia = {}

    def run_full():
        start = time.perf_counter()
        full = shepseg.fitSpectralClusters(np.ascontiguousarray(samples.T[:, None]), 60, 100,
                                           NODATA, False)
        seconds = time.perf_counter() - start
        inertia['full'] = measure_inertia(samples, full.cluster_centers_)
        return {'wall_s': seconds}

    def run_fast():
        config = ShepherdConfig()
        start = time.perf_counter()
        fast = fit_clusters(draw_samples(image, (image != NODATA).all(axis=2), config), config)
        seconds = time.perf_counter() - start
        inertia['fast'] = measure_inertia(samples, fast.cluster_centers_)
        return {'wall_s': seconds}
    medians['defaults'], values['defaults'] = harness.run_rounds(
        {'pyshepseg': run_full, 'default': run_fast}, args.rounds)
    goals += [check_goal('default fits: pyshepseg / cocoseg',
                         medians['defaults']['pyshepseg']['wall_s']
                         / medians['defaults']['default']['wall_s'], 10, unit=' x'),
              check_goal('default fits: inertia above that of the full fit',
                         100 * (inertia['fast'] / inertia['full'] - 1), 0.5, at_most=True,
                         unit=' %')]
    return finish(goals, medians, {}, values=values, gaps=gaps, inertia=inertia)


def _draw_sample(image):
    """Return about a million valid pixels of an image (n, B), evenly."""
    step = max(round((image.shape[0] * image.shape[1] / SAMPLE) ** 0.5), 1)
    pixels = image[::step, ::step].reshape(-1, image.shape[2])
    return np.ascontiguousarray(pixels[(pixels != NODATA).all(axis=1)])


def measure_inertia(pixels, centres):
    """Return the sum of squared distances to the nearest centre."""
    total = 0.0
    for start in range(0, len(pixels), 1 << 16):
        part = pixels[start:start + (1 << 16)].astype(np.float64)
        distances = ((part ** 2).sum(axis=1)[:, None] - 2 * part @ centres.T
                     + (centres ** 2).sum(axis=1))
        total += float(distances.min(axis=1).sum())
    return total


# ---- a file to a file

@functools.lru_cache(maxsize=None)
def _make_image_once(size):
    return make_image('clean', size)


def _make_file(folder, size):
    fpath = os.path.join(folder, 'image.tif')
    write_image(fpath, _make_image_once(size))
    return fpath


def _run_peer_tiled(src, dst, **options):
    """Run the peer with HFA, as its default format is missing in common builds of GDAL."""
    return get_peer()[1].doTiledShepherdSegmentation(
        src, dst, tileSize=TILE_SIZE, overlapSize=OVERLAP, outputDriver='HFA',
        tempfilesDriver='GTiff', tempfilesExt='tif', **options)


def make_tiled_runs(src, folder):
    """Return the contestants of the tiled race."""
    from cocoseg import ShepherdConfig, segment_raster

    def run(work):
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        summary = getattr(result.timings, 'summary', None) or result.timings.makeSummaryDict
        fit = summary()['spectralclusters']['total']
        return {'wall_s': seconds, 'without_fit_s': seconds - fit}

    def ours(config, executor):
        return lambda: run(lambda: segment_raster(
            src, os.path.join(folder, 'ours.tif'), config, TILE_SIZE, OVERLAP, executor))

    def theirs(**options):
        return lambda: run(lambda: _run_peer_tiled(src, os.path.join(folder, 'theirs.img'),
                                                   **options))
    return {
        'pyshepseg_fixed': theirs(fixedKMeansInit=True),
        'pyshepseg': theirs(),
        'compat': ours(configure(), 'serial'), 'compat_threads': ours(configure(), 'threads:2'),
        'default': ours(ShepherdConfig(), 'serial'),
        'default_threads': ours(ShepherdConfig(), 'threads:2')}


TILED_LABELS = {
    'pyshepseg': 'pyshepseg, defaults', 'pyshepseg_fixed': 'pyshepseg, fixed start of the fit',
    'compat': 'cocoseg, labels of pyshepseg', 'compat_threads': 'the same, two threads',
    'default': 'cocoseg, defaults', 'default_threads': 'the same, two threads'}


def race_tiled(script, args):
    """Time a file to a file."""
    with tempfile.TemporaryDirectory() as folder:
        runs = make_tiled_runs(_make_file(folder, args.tiled_size), folder)
        medians, values = harness.run_rounds(runs, args.rounds)
    seconds = {name: row['wall_s'] for name, row in medians.items()}
    goals = [check_goal('defaults: pyshepseg / cocoseg',
                        seconds['pyshepseg'] / seconds['default'], 8, unit=' x'),
             check_goal('same labels: pyshepseg / cocoseg',
                        seconds['pyshepseg_fixed'] / seconds['compat'], 2, unit=' x')]
    return finish(goals, medians, TILED_LABELS, values=values, size=args.tiled_size,
                  rounds=args.rounds)


# ---- memory

def measure_rss(contestant, size):
    """Return the memory that a run adds in this process, MB."""
    kind, _, who = contestant.partition(':')
    if kind == 'memory':
        return _measure_memory(who, size)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as small:
        src = _make_file(folder, size)
        make_tiled_runs(_make_file(small, 300), small)[who]()
        _make_image_once.cache_clear()
        run = make_tiled_runs(src, folder)[who]
        start = harness.start_peak_mb()
        run()
        return harness.peak_rss_mb() - start


def _measure_memory(who, size):
    from cocoseg import ShepherdConfig, shepherd_segment

    def work(image, kmeans):
        if who == 'pyshepseg':
            return segment_peer(image, kmeans)
        config = configure() if who == 'compat' else ShepherdConfig()
        return shepherd_segment(image, config, nodata=NODATA, kmeans=kmeans)

    small = make_image('noisy', 200)
    kmeans = get_peer()[0].fitSpectralClusters(np.moveaxis(small, -1, 0), 60, 100, NODATA, True)
    work(small, kmeans)
    image = make_image('noisy', size)
    if who == 'pyshepseg':
        # In its own layout, so that no copy counts.
        image = np.moveaxis(np.ascontiguousarray(np.moveaxis(image, -1, 0)), 0, -1)
    start = harness.start_peak_mb()
    work(image, kmeans)
    return harness.peak_rss_mb() - start


def race_rss(script, args):
    """Measure added memory."""
    goals, found = [], {}
    for kind, size, names in (('memory', args.size, ('pyshepseg', 'compat', 'default')),
                              ('tiled', args.tiled_size,
                               ('pyshepseg_fixed', 'compat', 'default', 'default_threads'))):
        for who in names:
            turns = [harness.run_worker(script, f'rss:{kind}:{who}',
                                        ['--size', args.size, '--tiled_size', args.tiled_size])
                     for _ in range(args.rounds)]
            found[f'{kind} {who}'] = statistics.median(turns)
            print(f'  {kind} {size} {who}: {found[f"{kind} {who}"]:.1f} MB of {turns}', flush=True)
        base = found[f'{kind} {names[0]}']
        goals += [check_goal(f'{kind} {size}, added memory, {who} / pyshepseg',
                             found[f'{kind} {who}'] / base, 0.5, at_most=True)
                  for who in names[1:]]
    return finish(goals, found, {})


# ---- a cold start

START = {
    'cocoseg': 'from cocoseg import ShepherdConfig, shepherd_segment\n'
               'shepherd_segment(image, ShepherdConfig(), nodata=0)',
    'pyshepseg': 'from pyshepseg import shepseg\n'
                 'shepseg.doShepherdSegmentation(np.ascontiguousarray(image.transpose(2, 0, 1)), '
                 'imgNullVal=0, clusterSubsamplePcnt=100)',
}


def race_start(script, args):
    """Time a process from its start to its end."""
    with tempfile.TemporaryDirectory() as folder:
        fpath = os.path.join(folder, 'image.npy')
        np.save(fpath, make_image('clean', 300))

        def run(code):
            code = f'import numpy as np\nimage = np.load({fpath!r})\n{code}'
            start = time.perf_counter()
            subprocess.run([sys.executable, '-c', code], check=True, env=os.environ,
                           cwd=Path(script).resolve().parents[2])
            return {'wall_s': time.perf_counter() - start}
        medians, values = harness.run_rounds(
            {name: functools.partial(run, code) for name, code in START.items()}, args.rounds)
    goals = [check_goal('start to labels of 300 x 300 px', medians['cocoseg']['wall_s'], 2,
                        at_most=True, unit=' s')]
    return finish(goals, medians, {}, values=values)


RACES = {'labels': race_labels, 'memory': race_memory, 'fit': race_fit, 'tiled': race_tiled,
         'rss': race_rss, 'start': race_start}
