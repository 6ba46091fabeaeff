"""
The race that nobody is to win by other bytes: every operation, by every executor.

``equal``: each operation of ``tests/operations.py`` on one synthetic scene, serially,
and by threads, processes and dask. What they make is compared byte by byte. The
seconds are those of one turn, the first one with the start of the workers: they tell
what to expect rather than who is quicker.
"""
from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import harness
from harness import check_goal

# For workers too, which import what they are sent: they get this path with it.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

EXECUTORS = {'serial': 'one process', 'threads:2': 'two threads',
             'processes:2': 'two worker processes', 'dask:2': 'LocalCluster of two'}
PACKAGES = ['numpy', 'numba', 'scipy', 'scikit-image', 'gdal', 'dask', 'distributed']
# What pixels of two parcels differ by.
CONTRAST = 150.0


def make_scene(folder, size):
    """
    Make the inputs of all operations, and return them.

    The dataset has the scene, and two strips of it as images of their own, so
    that there are large and small ones for workers to share.
    """
    import kwcoco
    import numpy as np

    from cocoseg import write_cog
    from instance_problem import OFFSETS, make_affinities, make_cells
    from shepherd_problem import make_image, write_image
    from tests.operations import CHANNELS, Inputs, make_inputs

    image = make_image('clean', size)
    parts = {'scene': image, 'upper': image[:size // 6], 'lower': image[-size // 6:]}
    dset = kwcoco.CocoDataset()
    dset.fpath = os.path.join(folder, 'src.kwcoco.json')
    for name, pixels in parts.items():
        write_image(os.path.join(folder, f'{name}.tif'), pixels)
        height, width = pixels.shape[:2]
        video = dset.add_video(name=f'video of {name}', width=width, height=height)
        image_id = dset.add_image(name=name, width=width, height=height, video_id=video,
                                  frame_index=0, warp_img_to_vid={'scale': 1})
        dset.add_asset(image_id, file_name=f'{name}.tif', channels=CHANNELS, width=width,
                       height=height, warp_aux_to_img={'scale': 1})
    dset.dump()
    affinities = os.path.join(folder, 'affinities.tif')
    values = make_affinities(make_cells((size, size), 14), OFFSETS[4], 0.3)
    write_cog(affinities, np.moveaxis(values, 0, -1), overviews=None)
    inputs = Inputs(folder, dset.fpath, os.path.join(folder, 'scene.tif'), affinities,
                    tuple(OFFSETS[4]), CONTRAST, max(size // 6 // 64, 1) * 64)
    make_inputs(inputs)
    return inputs


def run_turn(operation, inputs, engine, out):
    """Return the seconds of an operation, and what it made, which is then removed."""
    from tests.operations import digest_made
    os.makedirs(out)
    start = time.perf_counter()
    values = operation.run(inputs, engine, out)
    seconds = time.perf_counter() - start
    made = digest_made(out, values)
    shutil.rmtree(out)
    return seconds, made


def list_turns(engines):
    """Yield (name, operation, executor) of all that is to be run."""
    from tests.operations import OPERATIONS
    for name, operation in OPERATIONS.items():
        for spec in engines:
            is_refused = spec.startswith('threads') and not operation.takes_threads
            is_known = spec == 'serial' and operation.serial is not None
            if not is_refused and not is_known:
                yield name, operation, spec


def run_all(inputs, engines):
    """Return seconds by operation and executor, and what differs from the serial run."""
    seconds, expected, differing = {}, {}, {}
    for name, operation, spec in list_turns(engines):
        out = inputs.place('out')
        taken, made = run_turn(operation, inputs, engines[spec], out)
        seconds.setdefault(name, {})[spec] = taken
        right = expected.setdefault(operation.serial or name, made)
        wrong = sorted(path for path in {*right, *made} if right.get(path) != made.get(path))
        if wrong:
            differing.setdefault(name, {})[spec] = wrong
        said = f'differs in {", ".join(wrong)}' if wrong else 'equal'
        sys.stdout.write(f'  {name}: {spec}: {taken:.2f} s, {said}\n')
        sys.stdout.flush()
    return seconds, differing


def race_equal(script, args):
    """Run every operation by every executor on one scene; the serial run is what is right."""
    from cocoseg import get_executor
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        inputs = make_scene(folder, args.size)
        sys.stdout.write(f'  inputs: {time.perf_counter() - start:.1f} s\n')
        engines = {spec: get_executor(spec) for spec in EXECUTORS}
        seconds, differing = run_all(inputs, engines)
        for engine in engines.values():
            getattr(engine, 'close', lambda: None)()
    rows = [(name, *(row.get(spec, '-') for spec in EXECUTORS),
             'NO' if name in differing else 'yes') for name, row in seconds.items()]
    harness.print_table(f'{args.size} x {args.size} px, seconds',
                        ['operation', *EXECUTORS, 'equal'], rows)
    goals = [check_goal('operations of equal bytes by all executors',
                        len(seconds) - len(differing), len(seconds))]
    harness.print_goals(goals)
    return {'goals': goals, 'seconds': seconds, 'differing': differing, 'labels': EXECUTORS,
            'size': args.size, 'window': inputs.window, 'machine': harness.get_machine(),
            'versions': harness.get_versions(PACKAGES)}


RACES = {'equal': race_equal}
