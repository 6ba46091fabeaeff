"""
The races of workers: how much quicker two are than one.

``segment``: Shepherd segmentation of a file to a file. ``predict``: a predictor that
takes all of one CPU, over the images of a dataset. ``rows``: the same over one image,
whose windows the workers share. ``watershed``: affinities of a file
to ids in a file. Workers are started, and have loaded their code, before the first
counted turn, as in a run of hours.
"""
from __future__ import annotations

import os
import tempfile
import time

import harness
import numpy as np
from harness import check_goal

SIZE, N_IMAGES = 6000, 8
LEAST = 1.7
PACKAGES = ['numpy', 'numba', 'gdal', 'dask', 'distributed']
EXECUTORS = {'serial': 'one process, one thread', 'processes:1': 'one worker process',
             'processes:2': 'two worker processes', 'dask': 'LocalCluster of two'}


def finish(goals, medians, **more):
    """Print goals and return what is stored of a race."""
    harness.print_goals(goals)
    return {'goals': goals, 'medians': medians, 'labels': EXECUTORS, **more,
            'machine': harness.get_machine(), 'versions': harness.get_versions(PACKAGES)}


def run_race(name, make, run, args, executors=tuple(EXECUTORS)):
    """Time ``run(executor, folder)`` with all executors, in turns; compare the bytes."""
    from cocoseg import get_executor
    engines = {spec: get_executor(spec) for spec in executors}
    with tempfile.TemporaryDirectory() as folder:
        make(folder, args.size)

        def measure(spec):
            start = time.perf_counter()
            digest = run(engines[spec], folder)
            seconds = time.perf_counter() - start
            if digests.setdefault('all', digest) != digest:
                raise RuntimeError(f'{name}: {spec} made other bytes')
            return {'wall_s': seconds}
        digests = {}
        medians, values = harness.run_rounds(
            {spec: lambda spec=spec: measure(spec) for spec in engines}, args.rounds)
    for engine in engines.values():
        # The next race starts workers of its own.
        getattr(engine, 'close', lambda: None)()
    rows = [(EXECUTORS[spec], row['wall_s'], medians['processes:1']['wall_s'] / row['wall_s'])
            for spec, row in medians.items()]
    harness.print_table(name, ['who', 'seconds', 'one worker / it'], rows)
    ratio = medians['processes:1']['wall_s'] / medians['processes:2']['wall_s']
    return finish([check_goal(f'{name}: two workers against one', ratio, LEAST, unit=' x')],
                  medians, values=values, size=args.size)


def _read(path):
    with open(path, 'rb') as file:
        import hashlib
        return hashlib.sha256(file.read()).hexdigest()


# ---- segmentation

def race_segment(script, args):
    """Segment one file."""
    from cocoseg import ShepherdConfig, segment_raster
    from shepherd_problem import make_image, write_image

    def make(folder, size):
        write_image(os.path.join(folder, 'src.tif'), make_image('clean', size))

    def run(executor, folder):
        dst = os.path.join(folder, 'dst.tif')
        segment_raster(os.path.join(folder, 'src.tif'), dst, ShepherdConfig(), 1024, 256,
                       executor, num_threads=1)
        return _read(dst)
    return run_race('segmentation', make, run, args)


# ---- prediction

def slow(image):
    """A predictor that takes all of one CPU."""
    from scipy import ndimage
    out = np.nan_to_num(image[..., :1] / 255)
    for _ in range(12):
        out = ndimage.gaussian_filter(out, (3, 3, 0))
    return out


def race_predict(script, args):
    """Predict the images of a dataset, one on each worker at a time."""
    return _race_predict('prediction of images', args, N_IMAGES, args.size // 6)


def race_rows(script, args):
    """Predict one image, whose windows all workers share."""
    return _race_predict('prediction of one image', args, 1, args.size // 2)


def _race_predict(name, args, n_images, side):
    import kwcoco
    from cocoseg import predict_dataset, write_cog

    def make(folder, size):
        dset = kwcoco.CocoDataset()
        dset.fpath = os.path.join(folder, 'src.kwcoco.json')
        for number in range(n_images):
            pixels = np.random.default_rng(number).integers(0, 255, (side, side, 3)).astype('u1')
            write_cog(os.path.join(folder, f'{number}.tif'), pixels)
            image_id = dset.add_image(name=f'{number}', width=side, height=side)
            dset.add_asset(image_id, file_name=f'{number}.tif', channels='r|g|b', width=side,
                           height=side, warp_aux_to_img={'scale': 1})
        dset.dump()

    def run(executor, folder):
        out = os.path.join(folder, 'out')
        # All but the predictor in the same thread, or one process is two CPUs.
        dset = predict_dataset(os.path.join(folder, 'src.kwcoco.json'),
                               os.path.join(out, 'out.kwcoco.json'), slow, 256, 64, prefetch=0,
                               out_channels='slow', expected_minmax=(0, 1), executor=executor,
                               on_collision='replace', split='images' if n_images > 1 else 'rows')
        paths = [os.path.join(out, asset['file_name']) for img in dset.index.imgs.values()
                 for asset in img['auxiliary'] if asset['channels'] == 'slow']
        return [_read(path) for path in sorted(paths)]
    return run_race(name, make, run, args)


# ---- watershed

def race_watershed(script, args):
    """Find the instances of one file."""
    from cocoseg import WatershedParameters, blockwise_watershed, write_cog
    from instance_problem import OFFSETS, make_affinities, make_cells

    def make(folder, size):
        cells = make_cells((size // 3, size // 3), 14)
        write_cog(os.path.join(folder, 'src.tif'),
                  np.moveaxis(make_affinities(cells, OFFSETS[4], 0.3), 0, -1), overviews=None)

    def run(executor, folder):
        dst = os.path.join(folder, 'dst.tif')
        blockwise_watershed(os.path.join(folder, 'src.tif'),
                            WatershedParameters(OFFSETS[4], context=32), dst, block_shape=256,
                            executor=executor, overwrite=True)
        return _read(dst)
    return run_race('watershed', make, run, args)


RACES = {'segment': race_segment, 'predict': race_predict, 'rows': race_rows,
         'watershed': race_watershed}
