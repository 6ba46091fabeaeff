"""
The stitching manager against a model that keeps whole arrays in numpy.

Random steps (declare, add, mark, submit, finalize, flush, dump, a write that
fails, a run that is cut short and resumed) are done to both; after each step
the manager must tell the same story as the model, and the manifest must name
only files that are there and decode to the model.
"""
import copy
import logging
import os
import tempfile
import warnings
from collections import Counter
from unittest import mock

import kwcoco
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (RuleBasedStateMachine, initialize, invariant, precondition, rule,
                                 run_state_machine_as_test)

from cocoseg import BlendPlan, CocoStitchingManager, Window, WindowGrid, WriterQueue, edge_weights
from cocoseg.coco.journal import Journal
from cocoseg.coco.lifecycle import ImageState
from cocoseg.errors import (AlreadyFinalizedError, AssetWriteError, BandCountError, CoverageError,
                            ImageClosedError, NothingAccumulatedError, UnknownImageError,
                            WeightError, WindowShapeError)
from cocoseg.io import cog as cog_module
from cocoseg.io import images as images_module

IMAGE_IDS = (1, 2, 3)
CHANNELS = 'a|b'
OPEN = ('unseen', 'accumulating', 'ready')
MANAGED = ('accumulating', 'ready', 'failed')


def make_dataset(fpath):
    """Two frames of a video and a lone image, none of which has a file."""
    dset = kwcoco.CocoDataset()
    dset.fpath = str(fpath)
    video_id = dset.add_video(name='vid', width=36, height=28)
    dset.add_image(name='im1', width=36, height=28, video_id=video_id, frame_index=0,
                   auxiliary=[])
    dset.add_image(name='im2', width=40, height=30, video_id=video_id, frame_index=1, assets=[],
                   warp_img_to_vid={'type': 'affine', 'scale': 0.9, 'offset': (0.25, -0.5)})
    # Of two blocks.
    dset.add_image(name='im3', width=70, height=20, auxiliary=None, assets=[])
    return dset


class ImageModel:
    """What one image should hold: sums and weights in float64, and its state."""

    def __init__(self, shape):
        self.shape = shape
        self.sums = np.zeros((*shape, 2))
        self.weights = np.zeros(shape)
        self.state = 'unseen'
        # State once the queue has run; differs from 'submitted' only.
        self.outcome = None
        self.declared = None
        self.missing = []
        self.n_windows = 0

    def add(self, window, data, weights):
        """Add one window pixel by pixel of the formula, then clip it."""
        if weights is None:
            weights = np.ones(window.shape)
        valid = np.isfinite(data).all(axis=2) & np.ones(window.shape, bool)
        weights = np.where(valid, weights, 0)
        inside = window.clip(self.shape)
        crop = inside.within(window).slices
        self.sums[inside.slices] += (np.where(valid[..., None], data, 0) * weights[..., None])[crop]
        self.weights[inside.slices] += weights[crop]
        self.n_windows += 1

    def mean(self, minmax):
        """Return what a reader should get, NaN where no data."""
        covered = (self.weights > 0)[..., None]
        mean = np.where(covered, self.sums / np.where(covered, self.weights[..., None], 1), np.nan)
        return mean if minmax is None else np.clip(mean, *minmax)

    @property
    def pending(self):
        """Declared windows, clipped, that did not come."""
        return sorted(window.clip(self.shape) for window in self.missing)


def draw_window(shape):
    """Windows that touch an image; they may overhang it on every side."""
    def build(size):
        return st.integers(1, 24).flatmap(
            lambda length: st.integers(1 - length, size - 1).map(lambda lo: (lo, lo + length)))
    return st.tuples(build(shape[0]), build(shape[1])).map(
        lambda edges: Window(edges[0][0], edges[1][0], edges[0][1], edges[1][1]))


OPTIONS = st.fixed_dictionaries({
    'space': st.sampled_from(['video', 'image']),
    'codec': st.sampled_from(['cog', 'cog', 'tif', 'png', 'float']),
    'minmax': st.sampled_from([(0, 1), (-0.5, 1.5), None]),
    'dtype': st.sampled_from(['float32', 'float64']),
    'readiness': st.sampled_from(['declared', 'contiguous']),
    'workers': st.sampled_from([0, 2]),
    'canvas': st.sampled_from(['ram', 'memmap', 'budget']),
    'scaled': st.sampled_from([None, 1, 2]),
})


class ManagerMachine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.fpath = os.path.join(self.folder.name, 'out.kwcoco.json')
        self.manager = None
        self.failing = {}        # image id -> where its next write fails
        self.unreported = []     # ids of failed images nobody was told about
        self.decoded = set()
        self.patches = [
            mock.patch.object(images_module, 'write_image',
                              self._make_write(images_module.write_image)),
            mock.patch.object(cog_module, 'write_encoded',
                              self._make_write(cog_module.write_encoded)),
            mock.patch.object(Journal, 'append', self._make_append())]
        for patch in self.patches:
            patch.start()

    # ---- faults ------------------------------------------------------------

    def _make_write(self, real):
        def write(fpath, *args, **options):
            image_id = int(os.path.basename(fpath)[2])
            if self.failing.get(image_id) == 'write':
                del self.failing[image_id]
                raise OSError(28, 'No space left on device (simulated)')
            return real(fpath, *args, **options)
        return write

    def _make_append(self, real=Journal.append):
        def append(journal, record):
            if self.failing.get(record['image_id']) == 'journal':
                del self.failing[record['image_id']]
                raise OSError(5, 'Input/output error (simulated)')
            return real(journal, record)
        return append

    # ---- setting up --------------------------------------------------------

    @initialize(options=OPTIONS)
    def start(self, options):
        self.options = options
        self.dset = make_dataset(self.fpath)
        shapes = {1: (28, 36), 2: (28, 36), 3: (20, 70)}
        if options['space'] == 'image':
            shapes[2] = (30, 40)
        self.shapes = shapes
        if options['scaled'] is not None:
            # One image lives on a grid of its own.
            self.shapes[options['scaled']] = (14, 18)
        self.models = {image_id: ImageModel(shape) for image_id, shape in self.shapes.items()}
        self.last = None
        self._open_manager(resume=False)

    def _open_manager(self, resume):
        options = self.options
        canvas = {'ram': {}, 'memmap': {'memmap': os.path.join(self.folder.name, 'memmap')},
                  'budget': {'memory_budget': 15000}}[options['canvas']]
        codec = options['codec']
        self.manager = CocoStitchingManager(
            self.dset, 'pred', CHANNELS, options['space'], expected_minmax=options['minmax'],
            quantize=codec != 'float', prob_format='cog' if codec == 'float' else codec,
            dtype=options['dtype'], readiness=options['readiness'], prob_blocksize=64,
            writer_queue=WriterQueue(workers=options['workers']), resume=resume, **canvas)

    def _place(self, image_id):
        """Return the options that go with the first window of an image."""
        if image_id != self.options['scaled']:
            return {}
        return {'asset_dsize': self.shapes[image_id][::-1], 'scale_asset_from_stitchspace': 0.5}

    # ---- calling -----------------------------------------------------------

    def call(self, func, *args, again=True, **kwargs):
        """Call a method; errors of background writes must be ones we injected."""
        while True:
            try:
                return func(*args, **kwargs)
            except AssetWriteError as ex:
                assert ex.image_id in self.unreported
                self.unreported.remove(ex.image_id)
                if not again:
                    return None

    def settle(self):
        """Wait for the queue; every error is told exactly once."""
        self.call(self.manager.flush_images)
        assert self.unreported == []
        for model in self.models.values():
            if model.state == 'submitted':
                model.state = model.outcome

    def settled(self, image_id):
        """Return a model whose next write, if any, has no race with an old one."""
        model = self.models[image_id]
        if model.state == 'submitted' and model.outcome == 'failed':
            self.settle()
        return model

    # ---- rules -------------------------------------------------------------

    @rule(image_id=st.sampled_from(IMAGE_IDS), data=st.data(), as_grid=st.booleans())
    def declare(self, image_id, data, as_grid):
        self.declare_windows(image_id, data, as_grid)

    def declare_windows(self, image_id, data, as_grid):
        model = self.settled(image_id)
        if as_grid:
            windows = WindowGrid(model.shape, data.draw(st.integers(10, 40), 'window'),
                                 data.draw(st.integers(0, 6), 'overlap'))
        else:
            windows = data.draw(st.lists(draw_window(model.shape), min_size=1, max_size=4))
        args = (self.manager.expect_windows, image_id, windows)
        if model.state not in OPEN:
            with pytest.raises(ImageClosedError):
                self.call(*args, **self._place(image_id))
        elif model.state != 'unseen' or model.declared is not None:
            with pytest.raises(CoverageError, match='already'):
                self.call(*args, **self._place(image_id))
        else:
            self.call(*args, **self._place(image_id))
            model.declared, model.missing = windows, list(windows)

    @rule(image_id=st.sampled_from(IMAGE_IDS), data=st.data(), seed=st.integers(0, 10 ** 6),
          n_windows=st.integers(1, 4), is_ready=st.sampled_from(['auto', 'auto', True, False]))
    def add(self, image_id, data, seed, n_windows, is_ready):
        model = self.settled(image_id)
        for index in range(n_windows):
            if model.missing:
                window = data.draw(st.sampled_from(model.missing), 'declared window')
            else:
                window = data.draw(draw_window(model.shape), 'window')
            holes = data.draw(st.sampled_from(['none', 'bands', 'block', 'inf', 'all']))
            weighing = data.draw(st.sampled_from(['none', 'random', 'edges', 'both']))
            self._add(image_id, window, seed + index, holes, weighing, is_ready)

    @rule(image_id=st.sampled_from(IMAGE_IDS), seed=st.integers(0, 10 ** 6),
          order=st.randoms(use_true_random=False))
    def add_all_missing(self, image_id, seed, order):
        model = self.settled(image_id)
        if model.state in OPEN and model.missing:
            windows = list(model.missing)
            order.shuffle(windows)
            for index, window in enumerate(windows):
                self._add(image_id, window, seed + index)
            assert image_id in self.manager.ready_image_ids()

    @rule(data=st.data(), seed=st.integers(0, 10 ** 6), order=st.randoms(use_true_random=False))
    def predict_a_video(self, data, seed, order):
        """Declare both frames, add their windows alternately, submit what is ready."""
        for image_id in (1, 2):
            self.declare_windows(image_id, data, as_grid=True)
        for image_id in (1, 2):
            self.add_all_missing(image_id, seed, order)
        self.submit_ready()

    def _add(self, image_id, window, seed, holes='none', weighing='none', is_ready='auto'):
        model = self.models[image_id]
        values, weights = self._make_data(window, seed, holes, weighing)
        kept = values.copy()
        arguments = dict(weights=weights, downweight_edges=weighing in ('edges', 'both'),
                         is_ready=is_ready, **self._place(image_id))
        args = (self.manager.accumulate_image, image_id, window, values)
        if model.state not in OPEN:
            with pytest.raises(ImageClosedError):
                self.call(*args, **arguments)
        elif model.declared is not None and window not in model.missing:
            with pytest.raises(CoverageError):
                self.call(*args, **arguments)
        else:
            self.call(*args, **arguments)
            model.add(window, np.broadcast_to(values.reshape(*window.shape, -1),
                                              (*window.shape, 2)).astype(float),
                      self._choose_weights(model, window, weights, arguments['downweight_edges']))
            self._receive(image_id, window, is_ready)
        assert np.array_equal(values, kept, equal_nan=True)

    @staticmethod
    def _make_data(window, seed, holes, weighing):
        """Return read-only values, and weights or None."""
        rng = np.random.RandomState(seed)
        n_bands = 1 if holes == 'none' and seed % 5 == 0 else 2
        values = rng.uniform(-0.3, 1.3, (*window.shape, n_bands)).astype(['f4', 'f8'][seed % 2])
        if holes == 'bands':
            values[rng.rand(*values.shape) < 0.3] = np.nan
        elif holes == 'block':
            values[:window.shape[0] // 2 + 1, window.shape[1] // 2:] = np.nan
        elif holes == 'inf':
            values[rng.rand(*values.shape) < 0.1] = -np.inf
            values[rng.rand(*values.shape) < 0.1] = np.inf
        elif holes == 'all':
            values[...] = np.nan
        if n_bands == 1:
            values = values[..., 0]
        values.flags.writeable = False
        weights = None
        if weighing in ('random', 'both'):
            weights = rng.uniform(0.05, 1, window.shape) * (rng.rand(*window.shape) < 0.8)
            weights.flags.writeable = False
        return values, weights

    @staticmethod
    def _choose_weights(model, window, weights, edges):
        if edges:
            lowered = edge_weights(window.shape).astype(float)
            return lowered if weights is None else lowered * weights
        if weights is None and model.declared is not None:
            rows, columns = BlendPlan(model.declared).get_weights(window)
            return np.asarray(rows, float)[:, None] * columns
        return weights

    def _receive(self, image_id, window, is_ready):
        model = self.models[image_id]
        if model.declared is not None:
            model.missing.remove(window)
        if self.options['readiness'] == 'contiguous' and is_ready == 'auto':
            self._mark_previous(image_id)
        self.last = image_id
        complete = model.declared is not None and not model.missing
        ready = complete if is_ready == 'auto' else is_ready
        model.state = 'ready' if ready else 'accumulating'

    def _mark_previous(self, image_id):
        """Data for another image (video) ends the one before."""
        in_video = (1, 2) if self.options['space'] == 'video' else ()
        if self.last in (None, image_id) or {self.last, image_id} == set(in_video):
            return
        for other in (in_video if self.last in in_video else (self.last,)):
            if self.models[other].state == 'accumulating':
                self.models[other].state = 'ready'

    @rule(image_id=st.sampled_from(IMAGE_IDS), data=st.data(), kind=st.sampled_from([
        'shape', 'bands', 'outside', 'empty', 'negative', 'nan weight', 'weight shape',
        'undeclared']), edges=st.booleans())
    def add_wrong(self, image_id, data, kind, edges):
        model = self.settled(image_id)
        window = data.draw(st.sampled_from(model.missing) if model.missing
                           else draw_window(model.shape), 'window')
        values, weights = np.ones((*window.shape, 2)), None
        error = WindowShapeError
        if kind == 'shape':
            values = np.ones((window.shape[0] + 1, window.shape[1], 2))
        elif kind == 'bands':
            values, error = np.ones((*window.shape, 3)), BandCountError
        elif kind in ('outside', 'empty'):
            window = Window(3, 80, 8, 84) if kind == 'outside' else Window(3, 2, 3, 6)
            values, error = np.ones((*window.shape, 2)), CoverageError
        elif kind == 'weight shape':
            weights = np.ones((window.shape[0], window.shape[1] + 1))
        elif kind in ('negative', 'nan weight'):
            weights, error = np.ones(window.shape), WeightError
            weights[-1, -1] = -0.5 if kind == 'negative' else np.nan
        else:
            window = Window(0, 0, 2, 3)
            values, error = np.ones((2, 3, 2)), CoverageError
            if model.declared is None or window in [w.clip(model.shape) for w in model.missing]:
                return
        with pytest.raises(error if model.state in OPEN else ImageClosedError):
            self.call(self.manager.accumulate_image, image_id, window, values, weights=weights,
                      downweight_edges=edges, **self._place(image_id))

    @rule(image_id=st.sampled_from([0, 99, 'im1']))
    def use_unknown_image(self, image_id):
        for func in (self.manager.mark_ready, self.manager.is_done, self.manager.finalize_image,
                     self.manager.submit_finalize_image, self.manager.pending_windows):
            with pytest.raises(UnknownImageError):
                func(image_id)
        with pytest.raises(UnknownImageError):
            self.call(self.manager.accumulate_image, image_id, None, np.ones((4, 4, 2)))

    @rule(image_id=st.sampled_from(IMAGE_IDS))
    def mark_ready(self, image_id):
        model = self.settled(image_id)
        if model.state in ('accumulating', 'ready'):
            self.manager.mark_ready(image_id)
            model.state = 'ready'
        else:
            with pytest.raises(NothingAccumulatedError if model.state == 'unseen'
                               else ImageClosedError):
                self.manager.mark_ready(image_id)

    @rule(image_id=st.sampled_from(IMAGE_IDS), where=st.sampled_from(['write', 'journal']))
    def break_next_write(self, image_id, where):
        if self.models[image_id].state not in ('submitted', 'done'):
            self.failing[image_id] = where

    @rule(image_id=st.sampled_from(IMAGE_IDS))
    def submit(self, image_id):
        model = self.settled(image_id)
        if model.state == 'unseen':
            with pytest.raises(NothingAccumulatedError):
                self.manager.submit_finalize_image(image_id)
            return
        warns = model.state in MANAGED and model.missing
        if model.state in MANAGED:
            self._foresee(image_id, 'submitted')
        with self._expect_warning(warns):
            self.call(self.manager.submit_finalize_image, image_id, again=False)
        if self.options['workers'] == 0 and model.state == 'submitted':
            model.state = model.outcome
            assert image_id not in self.unreported

    def _foresee(self, image_id, state):
        model = self.models[image_id]
        model.state, model.outcome = state, 'done'
        if image_id in self.failing:
            model.outcome = 'failed'
            self.unreported.append(image_id)

    @staticmethod
    def _expect_warning(expected):
        if expected:
            return pytest.warns(UserWarning, match='declared windows are missing')
        return warnings.catch_warnings()

    @rule(image_id=st.sampled_from(IMAGE_IDS))
    def finalize(self, image_id):
        model = self.settled(image_id)
        if model.state not in MANAGED:
            with pytest.raises(NothingAccumulatedError if model.state == 'unseen'
                               else AlreadyFinalizedError):
                self.manager.finalize_image(image_id)
            return
        fails = image_id in self.failing
        with self._expect_warning(model.missing):
            if fails:
                with pytest.raises(AssetWriteError, match='simulated') as info:
                    self.manager.finalize_image(image_id)
                assert info.value.image_id == image_id
            else:
                self._check_figures(image_id, self.manager.finalize_image(image_id))
        model.state = 'failed' if fails else 'done'

    def _check_figures(self, image_id, info):
        mean = self.models[image_id].mean(None)
        # The pixels themselves are compared with the model elsewhere.
        written = self.dset.coco_image(image_id).imdelay(CHANNELS, space='asset').finalize()
        total = np.nansum(written, dtype=np.float64)
        assert info['total_prob'] == pytest.approx(total, rel=1e-6, abs=1e-3)
        if self.options['minmax'] is not None:
            low, high = self.options['minmax']
            # What lies within a step of a limit may count or not.
            step = (high - low) / 200
            near = (abs(mean - low) < step) | (abs(mean - high) < step)
            n_outside = ((mean < low) | (mean > high)).sum()
            assert abs(info['n_clipped'] - n_outside) <= near.sum()
        assert os.path.exists(os.path.join(self.folder.name, info['file_name']))

    @rule()
    def flush(self):
        self.settle()

    @rule()
    def submit_ready(self):
        """What a predict script does after each batch."""
        for image_id in self.manager.ready_image_ids():
            self.submit(image_id)

    @rule()
    def dump(self):
        self.settle()
        self.manager.dump()
        self._check_file()

    def _check_file(self):
        reopened = kwcoco.CocoDataset(self.fpath)
        for image_id, model in self.models.items():
            assets = self._list_assets(reopened, image_id)
            assert len(assets) == (model.state == 'done')
            for asset in assets:
                assert os.path.isfile(os.path.join(self.folder.name, asset['file_name']))

    @precondition(lambda self: any(model.state == 'done' for model in self.models.values()))
    @rule(keep=st.booleans())
    def interrupt_and_resume(self, keep):
        """An exception leaves the with-block; a new process takes over."""
        self.manager.__exit__(RuntimeError, RuntimeError('interrupted'), None)
        with pytest.raises(ImageClosedError):
            self.call(self.manager.accumulate_image, 1, Window(0, 0, 1, 1), np.ones((1, 1, 2)))
        self.failing.clear()
        self.unreported.clear()
        had_dump = os.path.exists(self.fpath)
        if keep and had_dump:
            self.dset = kwcoco.CocoDataset(self.fpath)
        else:
            self.dset = make_dataset(self.fpath)
        before = {image_id: copy.copy(model) for image_id, model in self.models.items()}
        self.models = {image_id: ImageModel(shape) for image_id, shape in self.shapes.items()}
        for image_id, model in before.items():
            if 'done' in (model.state, model.outcome if model.state == 'submitted' else None):
                self.models[image_id] = model
                model.state, model.n_windows = 'done', 0
        self.last = None
        self.decoded.clear()
        self._open_manager(resume=True)

    # ---- what must always hold ---------------------------------------------

    @invariant()
    def tells_the_same_story(self):
        if self.manager is None:
            return
        manager, models = self.manager, self.models
        # What is in flight may have arrived or not; the rest is certain.
        def certain(ids):
            return {i for i in ids if models[i].state != 'submitted'}
        assert certain(manager.managed_image_ids()) == certain(manager.image_stitchers) == {
            i for i, model in models.items() if model.state in MANAGED}
        assert certain(manager.seen_image_ids) == {
            i for i, model in models.items() if model.state == 'done'}
        assert set(manager.ready_image_ids()) == {
            i for i, model in models.items() if model.state == 'ready'}
        assert +manager.patch_counts == +Counter(
            {i: model.n_windows for i, model in models.items()})
        for image_id, model in models.items():
            state = manager.image_state(image_id)
            if model.state == 'submitted':
                assert state in (ImageState.FINALIZING, ImageState(model.outcome))
                continue
            assert state is ImageState(model.state)
            assert manager.is_done(image_id) == (model.state == 'done')
            expected = [] if model.state == 'done' else model.pending
            assert manager.pending_windows(image_id) == expected

    @invariant()
    def registers_the_done_and_nothing_else(self):
        if self.manager is None:
            return
        with self.manager.manifest.lock:
            for image_id, model in self.models.items():
                if model.state != 'submitted':
                    self._check_registered(image_id, model)

    def _list_assets(self, dset, image_id):
        img = dset.index.imgs[image_id]
        assert not (img.get('assets') and img.get('auxiliary'))
        return [*(img.get('assets') or ()), *(img.get('auxiliary') or ())]

    def _check_registered(self, image_id, model):
        img = self.dset.index.imgs[image_id]
        assets = self._list_assets(self.dset, image_id)
        if model.state != 'done':
            assert assets == []
            assert 'prediction_region' not in img and 'has_predictions' not in img
            return
        asset, = assets
        assert os.path.isfile(os.path.join(self.folder.name, asset['file_name']))
        assert img['has_predictions'] == {CHANNELS: True}
        if image_id not in self.decoded:
            self.decoded.add(image_id)
            self._check_pixels(self.dset, image_id, model, asset)

    def _check_pixels(self, dset, image_id, model, asset):
        found = dset.coco_image(image_id).imdelay(CHANNELS, space='asset').finalize()
        expected = model.mean(self.options['minmax'])
        step = 0
        if self.options['codec'] != 'float':
            code = asset['quantization']
            step = (code['orig_max'] - code['orig_min']) / (code['quant_max'] - code['quant_min'])
            if self.options['minmax'] is None and np.isfinite(expected).any():
                limits = (np.nanmin(expected), np.nanmax(expected))
                assert (code['orig_min'], code['orig_max']) == pytest.approx(limits, abs=1e-5)
        assert found.shape == expected.shape
        assert np.array_equal(np.isnan(found), np.isnan(expected))
        error = np.nanmax(np.abs(found - expected), initial=0)
        assert error <= step / 2 * (1 + 1e-3) + 1e-5

    def teardown(self):
        try:
            if self.manager is not None:
                self._end()
        finally:
            for patch in self.patches:
                patch.stop()
            self.folder.cleanup()

    def _end(self):
        """Write all that holds data, retrying what failed, and close."""
        self.settle()
        self.failing.clear()
        for image_id in self.manager.managed_image_ids():
            self.submit(image_id)
        self.settle()
        self.tells_the_same_story()
        self.registers_the_done_and_nothing_else()
        self.manager.dump()
        self._check_file()
        reopened = kwcoco.CocoDataset(self.fpath)
        for image_id, model in self.models.items():
            if model.state == 'done':
                self._check_pixels(reopened, image_id, model,
                                   *self._list_assets(reopened, image_id))
        if any(model.missing for model in self.models.values() if model.state == 'unseen'):
            with pytest.raises(CoverageError, match='declared windows did not come'):
                self.manager.close()
        else:
            self.manager.close()
        self.manager.close()
        assert self.manager.managed_image_ids() == []
        self.manager.writer_queue.close()
        folder = os.path.join(self.folder.name, '_assets', 'pred')
        strays = {name for name in os.listdir(folder) if name.startswith('.')}
        assert len(strays) <= 1 and all(name.endswith('.jsonl') for name in strays)
        if self.options['canvas'] == 'memmap' and os.path.isdir(f'{self.folder.name}/memmap'):
            assert os.listdir(f'{self.folder.name}/memmap') == []


def test_manager_agrees_with_the_model(caplog):
    # Thousands of warnings about clipped values would hide the failing steps.
    caplog.set_level(logging.CRITICAL, 'cocoseg')
    run_state_machine_as_test(ManagerMachine, settings=settings(
        max_examples=250, stateful_step_count=30))
