"""
Every public operation that takes an executor, with what it made, byte by byte.

The table is here, and not beside the benchmarks, because workers import what
they are sent: they find this module by its name, ``tests.operations``, as they
do the functions of other tests. ``dev/bench/races_equal.py`` imports it too.
"""
from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np

CHANNELS = 'red|green|blue|nir'
# Of affinities that are made of pixels: the channel and the step (y, x) of each.
OFFSETS = {'right': (0, 1), 'below': (1, 0), 'far_right': (0, 4), 'far_below': (4, 0)}
# Values that count as nodata where a mask is wanted: dark near infrared is water.
DARK = frozenset(range(25))
STATS = ['count', 'min', 'mean', 'std', 'median', 'mode', 'area', 'bbox', 'centroid', 'perimeter']


@dataclass(frozen=True)
class Inputs:
    """
    What the operations read, all files.

    Args:
        folder (str): where :func:`make_inputs` puts what it derives.
        manifest (str): of several images with the channels ``CHANNELS``.
        image (str): one raster of these channels.
        affinities (str): a raster of floats, a band for each offset.
        offsets (tuple): of the affinities.
        contrast (float): difference of pixels of two objects, in units of the image.
        window (int): of predictions, and extent of segment tiles and blocks, px;
            a multiple of 8.
    """

    folder: str
    manifest: str
    image: str
    affinities: str
    offsets: tuple
    contrast: float
    window: int

    def place(self, name):
        """Return the path of something derived."""
        return os.path.join(self.folder, name)


@dataclass(frozen=True)
class Operation:
    """
    One way to use a public function.

    Args:
        public (str): name of the function in cocoseg.
        run (Callable): called with inputs, an executor and a folder for what it
            writes; returns what else it made, or None.
        takes_threads (bool): False if threads are refused.
        serial (str | None): name of the operation that makes the same serially;
            None is this one.
    """

    public: str
    run: Callable[[Inputs, Any, str], Any]
    takes_threads: bool = True
    serial: str | None = None


# ---- functions that workers call

def soften(image):
    """A soft predictor of three bands that sees the border of its window."""
    from scipy import ndimage
    smooth = ndimage.gaussian_filter(np.nan_to_num(image), (2, 2, 0))
    return smooth[..., :3] / (smooth.sum(axis=2, keepdims=True) + 1)


def find_affinities(image, contrast):
    """Return float32 (h, w, C): how like each pixel is to that at each offset, 0..1."""
    values = np.nan_to_num(np.asarray(image, np.float32))
    out = np.zeros((*values.shape[:2], len(OFFSETS)), np.float32)
    for channel, (dy, dx) in enumerate(OFFSETS.values()):
        h, w = values.shape[0] - dy, values.shape[1] - dx
        steps = np.abs(values[dy:, dx:] - values[:h, :w]).max(axis=2)
        out[:h, :w, channel] = np.exp(-0.7 * steps / contrast)
    return out


def find_edges(affinities):
    """Return float32 (h, w, 1): 1 where an object ends, of affinities of near pixels."""
    return 1 - affinities[..., :2].min(axis=2, keepdims=True)


def smooth_rows(pixels):
    """Return float32 (h, w, C): the mean of three rows."""
    padded = np.pad(pixels, ((1, 1), (0, 0), (0, 0)), mode='edge').astype(np.float32)
    return (padded[:-2] + padded[1:-1] + padded[2:]) / 3


def label_above(path, parameters):
    """Return labels of what has a first band of at least a threshold."""
    from cocoseg.io.raster import read_raster
    from cocoseg.labels.components import label_components
    values = read_raster(path, bands=[0])[..., 0]
    return label_components((values >= parameters['threshold']).astype(np.uint8)).labels


# ---- inputs

def make_inputs(inputs):
    """Make, serially, what operations read of what others have made."""
    from cocoseg import mask_dataset, predict_dataset, segment_raster
    mask_dataset(inputs.manifest, inputs.place('masked/out.kwcoco.json'), CHANNELS,
                 nodata=DARK, logic='any', window=inputs.window)
    predict_dataset(inputs.manifest, inputs.place('heat/out.kwcoco.json'),
                    functools.partial(find_affinities, contrast=inputs.contrast),
                    inputs.window, 0.25, channels=CHANNELS, out_channels='|'.join(OFFSETS),
                    expected_minmax=(0, 1))
    segment_raster(inputs.image, inputs.place('segments.tif'), get_config(),
                   inputs.window, inputs.window // 4)
    map_edges(inputs, 'serial', inputs.folder)


def get_config():
    """Return the options of segmentations."""
    from cocoseg import ShepherdConfig
    return ShepherdConfig(n_clusters=12, min_segment_size=30)


# ---- operations

def predict(inputs, executor, out, predictor=soften, source=None, channels='a|b|c', **options):
    from cocoseg import predict_dataset
    if channels is not None:
        options = {'out_channels': channels, 'expected_minmax': (0, 1), **options}
    predict_dataset(source or inputs.manifest, os.path.join(out, 'out.kwcoco.json'), predictor,
                    inputs.window, 0.25, channels=CHANNELS, executor=executor, **options)


def predict_masked(inputs, executor, out, **options):
    predict(inputs, executor, out, source=inputs.place('masked/out.kwcoco.json'), mask='valid',
            **options)


def predict_layers(inputs, executor, out, **options):
    predict(inputs, executor, out, layers=['class', 'mask', 'disagreement'], space='image',
            **options)


def predict_segments(inputs, executor, out, **options):
    from cocoseg import ShepherdPredictor
    predict(inputs, executor, out, ShepherdPredictor(get_config()), channels=None, **options)


def segment(inputs, executor, out):
    from cocoseg import segment_raster
    result = segment_raster(inputs.image, os.path.join(out, 'out.tif'), get_config(),
                            inputs.window, inputs.window // 4, executor)
    return result.sizes, result.kmeans.cluster_centers_, result.seams, result.max_spectral_diff


def measure_segments(inputs, executor, out):
    from cocoseg import segment_stats
    table = segment_stats(inputs.image, inputs.place('segments.tif'), STATS, executor=executor)
    table.write(os.path.join(out, 'out.csv'))
    return table.ids, dict(table.columns)


def map_rows(inputs, executor, out):
    from cocoseg import map_blocks
    map_blocks(smooth_rows, inputs.image, os.path.join(out, 'out.tif'),
               block_shape=inputs.window, halo=1, executor=executor)


def map_edges(inputs, executor, out):
    """Make an array first: what has no file is compared too."""
    from cocoseg import map_blocks, write_cog
    found = map_blocks(find_edges, inputs.affinities, block_shape=inputs.window,
                       executor=executor).output
    write_cog(os.path.join(out, 'edges.tif'), found)
    return found


def mask_raster(inputs, executor, out):
    from cocoseg import compute_mask
    options = {'nodata': DARK, 'logic': 'any', 'block_shape': inputs.window}
    compute_mask(inputs.image, os.path.join(out, 'out.tif'), executor=executor, **options)
    return compute_mask(inputs.image, executor=executor, **options)


def select(inputs, executor, out):
    from cocoseg import prepare_selector
    options = {'nodata': frozenset(range(40)), 'extra_masking_band': inputs.place('segments.tif'),
               'block_shape': inputs.window}
    prepare_selector(inputs.image, dst=os.path.join(out, 'out.tif'), executor=executor, **options)
    return prepare_selector(inputs.image, executor=executor, **options)


def mask_images(inputs, executor, out):
    from cocoseg import mask_dataset
    mask_dataset(inputs.manifest, os.path.join(out, 'out.kwcoco.json'), CHANNELS, nodata=DARK,
                 logic='any', window=inputs.window, valid_region=True, executor=executor)


def find_components(inputs, executor, out):
    from cocoseg import connected_components
    result = connected_components(inputs.place('segments.tif'), os.path.join(out, 'out.tif'),
                                  block_shape=inputs.window, by_value=True, executor=executor)
    return as_values(result)


def find_instances(inputs, executor, out, source=None, **changes):
    from cocoseg import WatershedParameters, blockwise_watershed
    parameters = WatershedParameters(min_size=10, context=16, **changes)
    result = blockwise_watershed(source or inputs.affinities, parameters,
                                 os.path.join(out, 'out.tif'), block_shape=inputs.window,
                                 executor=executor)
    return as_values(result)


def find_mutex(inputs, executor, out):
    return find_instances(inputs, executor, out, offsets=inputs.offsets)


def find_seeded(inputs, executor, out):
    return find_instances(inputs, executor, out, inputs.place('edges.tif'), method='boundary',
                          threshold=0.2, sigma=1.0)


def find_in_images(inputs, executor, out):
    from cocoseg import WatershedParameters, watershed_dataset
    parameters = WatershedParameters(tuple(OFFSETS.values()), min_size=50, context=16)
    watershed_dataset(inputs.place('heat/out.kwcoco.json'), os.path.join(out, 'out.kwcoco.json'),
                      parameters, '|'.join(OFFSETS), block_shape=inputs.window, polygons=True,
                      executor=executor)


def search(inputs, executor, out):
    from cocoseg import search_parameters
    from cocoseg.io.raster import read_raster
    process = functools.partial(label_above, inputs.image)
    low, high = 0.5 * inputs.contrast, 4 * inputs.contrast
    # What goes to other processes is small: the truth is of a corner of the image.
    corner = inputs.window, inputs.window
    truth = read_raster(inputs.place('segments.tif'))[:corner[0], :corner[1], 0]
    result = search_parameters(functools.partial(crop_labels, process, corner),
                               [{'threshold': value} for value in np.linspace(low, high, 4)],
                               truth, executor=executor)
    return [{name: value for name, value in row.as_dict().items() if name != 'seconds'}
            for row in result.rows]


def crop_labels(process, shape, parameters):
    """Return a corner of what a process makes."""
    return process(parameters)[:shape[0], :shape[1]]


def as_values(result):
    """Return what is known of labels, without where they are and the seconds."""
    return result.n_labels, result.sizes, result.scores, result.seams, result.grid_shape


def list_predictions():
    """Return the operations of predict_dataset by name: whole images to workers, and rows."""
    runs = {'predict': predict, 'predict, layers': predict_layers,
            'predict, mask': predict_masked, 'predict, segments': predict_segments}
    found = {}
    for name, run in runs.items():
        # How images are shared is for workers only.
        found[name] = Operation('predict_dataset', functools.partial(run, split='images'), False)
        found[f'{name}, by rows'] = Operation(
            'predict_dataset', functools.partial(run, split='rows'), False, serial=name)
    return found


OPERATIONS = {
    **list_predictions(),
    'mask of a dataset': Operation('mask_dataset', mask_images, takes_threads=False),
    'segment': Operation('segment_raster', segment),
    'statistics': Operation('segment_stats', measure_segments),
    'map to a file': Operation('map_blocks', map_rows),
    'map to an array': Operation('map_blocks', map_edges),
    'mask': Operation('compute_mask', mask_raster),
    'selector': Operation('prepare_selector', select),
    'components': Operation('connected_components', find_components),
    'watershed, mutex': Operation('blockwise_watershed', find_mutex),
    'watershed, seeded': Operation('blockwise_watershed', find_seeded),
    'watershed of a dataset': Operation('watershed_dataset', find_in_images),
    'search': Operation('search_parameters', search),
}


# ---- what was made

def run_operation(name, inputs, executor, out):
    """
    Run an operation into a new folder, and return what it made, as :func:`digest_made` does.

    Args:
        name (str): in ``OPERATIONS``.
        inputs (Inputs): complete, see :func:`make_inputs`.
        executor (str | Executor): who does it.
        out (str | PathLike): a folder that does not exist.
    """
    os.makedirs(out)
    return digest_made(out, OPERATIONS[name].run(inputs, executor, os.fspath(out)))


def digest_made(out, values):
    """
    Return what an operation made.

    Args:
        out (str | PathLike): folder of its files.
        values (object): what it returned; None is nothing.

    Returns:
        dict[str, str]: sha256 by path of each file in the folder, hidden ones
            too, and that of the values. Empty folders are told as such.
    """
    found = {}
    for where, folders, names in os.walk(out):
        if not folders and not names:
            found[os.path.join(os.path.relpath(where, out), '')] = 'empty folder'
        for name in names:
            if name.endswith('.run.json'):
                # Times of the run.
                continue
            path = os.path.join(where, name)
            found[os.path.relpath(path, out)] = digest_file(path)
    if values is not None:
        found['(returned)'] = hash_parts(iter_parts(values))
    return found


def digest_file(path):
    """Return the sha256 of the bytes of a file; of a journal, of its sorted lines."""
    with open(path, 'rb') as file:
        # A journal notes images as they are done, in any order.
        is_journal = os.fspath(path).endswith('.jsonl')
        return hash_parts(sorted(file.readlines()) if is_journal else [file.read()])


def hash_parts(parts):
    """Return the sha256 of bytes, each with its length."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, 'little'))
        found.update(part)
    return found.hexdigest()


def iter_parts(value):
    """Yield the bytes of arrays, numbers and texts, also inside of others, with their types."""
    if isinstance(value, np.ndarray):
        yield f'{value.dtype.str} {value.shape}'.encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, dict):
        for key, item in value.items():
            yield f'key {key}'.encode()
            yield from iter_parts(item)
    elif isinstance(value, (list, tuple)):
        yield f'{len(value)} items'.encode()
        for item in value:
            yield from iter_parts(item)
    elif dataclasses.is_dataclass(value):
        yield from iter_parts({entry.name: getattr(value, entry.name)
                               for entry in dataclasses.fields(value)})
    else:
        yield f'{type(value).__name__} {json.dumps(value)}'.encode()
