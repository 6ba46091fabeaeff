"""
A soft stitcher with sinks that fail, against a model that keeps whole arrays.

Random steps (windows in and out of order, with NaN or with weights, windows
that are refused, reading, sinks that fail, ending and retrying) are done to
both. Each block is compared at the time it is sent; after each step the
stitcher must tell the same story as the model.
"""
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (RuleBasedStateMachine, initialize, invariant, precondition, rule,
                                 run_state_machine_as_test)

from cocoseg import BlendPlan, BlockGrid, Quantization, SoftStitcher, Window, WindowGrid
from cocoseg.errors import (BandCountError, CoverageError, ImageClosedError,
                            NothingAccumulatedError, WeightError, WindowShapeError)
from cocoseg.stitch.layers import Disagreement, ThresholdMask

BANDS = 2
LAYERS = {'mask': ThresholdMask(0.5), 'disagreement': Disagreement()}
# Values reach from -0.3 to 1.3, and a pixel is in 16 windows at most.
TOLERANCE = 3e-6
ROUNDING = 2 * (16 + 2) * float(np.finfo('f4').eps) * 1.3


def make_lattice(rows, columns):
    return [Window(y0, x0, y1, x1) for y0, y1 in rows for x0, x1 in columns]


# (shape, windows, whether the carry strip can take them)
PLANS = {
    'grid': ((21, 26), WindowGrid((21, 26), 8, 3), True),
    'flush': ((20, 25), WindowGrid((20, 25), 8, 3, 'flush'), True),
    'more than half': ((12, 15), WindowGrid((12, 15), (8, 9), (6, 6)), True),
    'side by side': ((16, 18), WindowGrid((16, 18), 6), True),
    'one row': ((5, 30), WindowGrid((5, 30), 8, 2), True),
    'overhanging lattice': ((17, 19), make_lattice([(-3, 6), (5, 12), (9, 22)],
                                                   [(-1, 11), (8, 23)]), True),
    'holes': ((21, 26), list(WindowGrid((21, 26), 8, 3))[:-2], False),
    'no lattice': ((14, 14), [Window(0, 0, 9, 9), Window(-2, 5, 7, 16), Window(4, 2, 14, 12),
                              Window(6, 8, 13, 14)], False),
}
OPTIONS = st.fixed_dictionaries({
    'engine': st.sampled_from(['auto', 'auto', 'auto', 'general']),
    'minmax': st.sampled_from([None, (0, 1), (-0.5, 1.5)]),
    'dtype': st.sampled_from(['float32', 'float32', 'float64']),
    'blocksize': st.sampled_from([3, 6, 40]),
    'num_threads': st.sampled_from([1, 1, 2]),
    'memory_budget': st.sampled_from([None, None, 0, 1 << 24]),
    'nan_policy': st.sampled_from(['pixel', 'band']),
    'layers': st.sampled_from([(), (), ('mask',), ('mask', 'disagreement')]),
})


class Model:
    """All windows that came, in float64."""

    def __init__(self, shape, per_band):
        self.shape, self.per_band = (*shape, BANDS), per_band
        self.values, self.weights = [], []
        self.n_invalid = 0

    def find_valid(self, data):
        valid = np.isfinite(data)
        return valid if self.per_band else np.broadcast_to(
            valid.all(axis=2, keepdims=True), data.shape)

    def add(self, window, data, weights):
        """Add one window; return how many pixels got something."""
        inside = window.clip(self.shape)
        crop = inside.within(window).slices
        valid = self.find_valid(data)[crop]
        value, weight = np.zeros(self.shape), np.zeros(self.shape)
        value[inside.slices] = np.where(valid, data[crop], 0)
        weight[inside.slices] = valid * weights[crop][..., None]
        self.values.append(value)
        self.weights.append(weight)
        added = int(valid.any(axis=2).sum())
        self.n_invalid += inside.area - added
        return added

    def compute(self, window):
        """Return the mean and the spread of a window, NaN where no data."""
        part = (slice(None), *window.slices)
        values, weights = np.stack(self.values)[part], np.stack(self.weights)[part]
        with np.errstate(invalid='ignore'):
            mean = (values * weights).sum(axis=0) / weights.sum(axis=0)
            spread = (weights * (values - mean) ** 2).sum(axis=0) / weights.sum(axis=0)
        return mean, np.sqrt(spread)


class CheckingSink:
    """Compare each block with the model when it comes, or fail if told to."""

    def __init__(self, machine, check):
        self.machine, self.check = machine, check
        self.offered, self.blocks = set(), {}

    def write_block(self, window, block):
        machine = self.machine
        self.offered.add(window)
        assert window not in self.blocks, 'a block came twice'
        assert machine.ending or window in machine.find_final(), 'a block came too early'
        assert window in machine.cores
        if machine.failures and machine.failures.pop(0):
            machine.n_failed += 1
            raise OSError(28, 'No space left on device (simulated)')
        self.check(window, block)
        self.blocks[window] = block


class SoftMachine(RuleBasedStateMachine):
    """See the module."""

    # ---- setting up --------------------------------------------------------

    @initialize(name=st.sampled_from(sorted(PLANS)), options=OPTIONS, knows_bands=st.booleans())
    def start(self, name, options, knows_bands):
        shape, windows, is_lattice = PLANS[name]
        options = dict(options)
        self.minmax = options['minmax']
        self.codec = None if self.minmax is None else Quantization(*self.minmax)
        names = options.pop('layers')
        self.carries = (is_lattice and options['engine'] == 'auto' and 'disagreement' not in names
                        and options['memory_budget'] != 0)
        self.layers = [LAYERS[layer] for layer in names]
        self.shape, self.plan = shape, BlendPlan(windows)
        self.blocks = BlockGrid(shape, options['blocksize'])
        self.cores = {block.core for block in self.blocks}
        # In the order of the carry strip.
        self.missing = sorted(windows)
        self.came = []
        self.model = Model(shape, options['nan_policy'] == 'band')
        self.failures, self.n_failed = [], 0
        self.state, self.ending = 'open', False
        self.seed = 0
        checks = {'mask': self.check_mask, 'disagreement': self.check_spread}
        self.sinks = [CheckingSink(self, self.check_mean),
                      *(CheckingSink(self, checks[layer]) for layer in names)]
        self.stitcher = SoftStitcher(
            (*shape, BANDS) if knows_bands else shape, windows, sink=self.sinks[0],
            layers=dict(zip(self.layers, self.sinks[1:])), expected_minmax=options.pop('minmax'),
            **options)

    def make_data(self, window, holes=False):
        self.seed += 1
        rng = np.random.RandomState(self.seed)
        data = rng.uniform(-0.3, 1.3, (*window.shape, BANDS)).astype('f4')
        if holes:
            kinds = np.array([np.nan, np.inf, -np.inf], 'f4')
            data = np.where(rng.rand(*data.shape) < rng.choice([0.02, 0.3, 1]),
                            rng.choice(kinds, data.shape), data)
        data.flags.writeable = False
        return data

    # ---- what sinks get ----------------------------------------------------

    def check_mean(self, window, block):
        mean, _ = self.model.compute(window)
        assert block.shape == mean.shape
        if self.codec is None:
            np.testing.assert_allclose(block, mean, rtol=0, atol=TOLERANCE)
            return
        codes, _ = self.codec.encode(mean)
        assert np.array_equal(block == self.codec.nodata, codes == self.codec.nodata)
        assert np.abs(block.astype(int) - codes).max() <= 1

    def check_mask(self, window, block):
        mean, _ = self.model.compute(window)
        # The mean may have gone through a code where the strip was left.
        margin = TOLERANCE + (0 if self.codec is None else self.codec.step)
        assert np.array_equal(block == 255, np.isnan(mean))
        is_clear = np.abs(mean - 0.5) > margin
        assert np.array_equal(block[is_clear], (mean > 0.5)[is_clear])

    def check_spread(self, window, block):
        _, spread = self.model.compute(window)
        tolerance = ROUNDING
        if self.codec is not None:
            codec = Disagreement().describe(BANDS, self.codec).codec
            block, spread = codec.decode(block), np.minimum(spread, codec.orig_max)
            tolerance += codec.step
        np.testing.assert_allclose(block, spread, rtol=0, atol=tolerance)

    def find_final(self):
        """Return the blocks that are touched, but by no window that is missing."""
        return {core for core in self.cores
                if any(not core.intersect(window).is_empty for window in self.came)
                and all(core.intersect(window).is_empty for window in self.missing)}

    # ---- adding ------------------------------------------------------------

    def take(self, window, data, weights=None):
        """Add a window to the model; return its valid pixels."""
        finite = np.isfinite(data[window.clip(self.shape).within(window).slices]).all()
        if window != self.missing[0] or weights is not None or not finite:
            self.carries = False
        self.missing.remove(window)
        self.came.append(window)
        if weights is None:
            weights = np.outer(*self.plan.get_weights(window)).astype('f8')
        return self.model.add(window, data, weights)

    def call(self, func, *args):
        """Call the stitcher; return what it does, None if a sink failed."""
        failed = self.n_failed
        try:
            return func(*args)
        except OSError:
            assert self.n_failed > failed
            return None

    def add(self, window, *, holes=False, weights=None):
        data = self.make_data(window, holes)
        if self.state != 'open':
            with pytest.raises(ImageClosedError):
                self.stitcher.add(window, data, weights)
            return
        n_pixels = self.take(window, data, weights)
        assert self.call(self.stitcher.add, window, data, weights) in (n_pixels, None)

    @precondition(lambda self: self.missing)
    @rule(number=st.integers(1, 6))
    def add_next(self, number):
        for window in self.missing[:number]:
            self.add(window)

    @precondition(lambda self: self.missing and self.state == 'open')
    @rule(number=st.integers(2, 9), holes=st.booleans())
    def add_batch(self, number, holes):
        windows = self.missing[:number]
        data = [self.make_data(window, holes and index == number // 2)
                for index, window in enumerate(windows)]
        n_pixels = sum([self.take(*part) for part in zip(windows, data)])
        assert self.call(self.stitcher.add_batch, windows, data) in (n_pixels, None)

    @precondition(lambda self: self.missing)
    @rule(data=st.data())
    def add_any(self, data):
        self.add(data.draw(st.sampled_from(self.missing)))

    @precondition(lambda self: self.missing)
    @rule(data=st.data(), is_next=st.booleans())
    def add_holes(self, data, is_next):
        self.add(self.missing[0] if is_next else data.draw(st.sampled_from(self.missing)),
                 holes=True)

    @precondition(lambda self: self.missing)
    @rule(data=st.data(), is_next=st.booleans())
    def add_weights(self, data, is_next):
        window = self.missing[0] if is_next else data.draw(st.sampled_from(self.missing))
        rng = np.random.RandomState(self.seed)
        weights = rng.rand(*window.shape) * (rng.rand(*window.shape) > 0.1)
        self.add(window, weights=weights)

    # ---- what is refused ---------------------------------------------------

    @precondition(lambda self: self.state == 'open')
    @rule(shift=st.sampled_from([(1, 0), (0, -1), (-2, 3)]), data=st.data())
    def add_undeclared(self, shift, data):
        known = {window.clip(self.shape) for window in (*self.missing, *self.came)}
        window = data.draw(st.sampled_from(sorted(known))).shift(*shift)
        if window.clip(self.shape) in known:
            return
        with pytest.raises(CoverageError):
            self.stitcher.add(window, self.make_data(window))

    @precondition(lambda self: self.state == 'open' and self.came)
    @rule(data=st.data(), weighted=st.booleans())
    def add_twice(self, data, weighted):
        window = data.draw(st.sampled_from(self.came))
        with pytest.raises(CoverageError):
            self.stitcher.add(window, self.make_data(window),
                              np.ones(window.shape) if weighted else None)
        batch = [*self.missing[:2], window]
        with pytest.raises(CoverageError):
            self.stitcher.add_batch(batch, [self.make_data(one) for one in batch])

    @precondition(lambda self: self.state == 'open' and self.missing and self.came)
    @rule(data=st.data())
    def add_wrong(self, data):
        window = data.draw(st.sampled_from(self.missing))
        values = self.make_data(window)
        for args, error in [((values[:-1],), WindowShapeError),
                            ((values[..., :1],), BandCountError),
                            ((values, np.full(window.shape, -1)), WeightError),
                            ((values, np.full(window.shape, np.nan)), WeightError)]:
            with pytest.raises(error):
                self.stitcher.add(window, *args)

    # ---- sinks, reading, the end ---------------------------------------------

    @rule(failures=st.lists(st.booleans(), min_size=1, max_size=6))
    def break_sinks(self, failures):
        """Let some of the next writes fail, of whatever sink."""
        self.failures = failures

    @rule(data=st.data())
    def read(self, data):
        edges = [sorted(data.draw(st.lists(st.integers(0, size), min_size=2, max_size=2,
                                           unique=True))) for size in self.shape]
        (y0, y1), (x0, x1) = edges
        window = Window(y0, x0, y1, x1)
        if not self.came or self.state == 'closed':
            with pytest.raises((NothingAccumulatedError, ImageClosedError)):
                self.stitcher.read(window)
            return
        actual = self.stitcher.read(window)
        self.carries = False
        expected, _ = self.model.compute(window)
        # What was offered to a sink is no longer the stitcher's.
        for core in self.sinks[0].offered:
            part = core.intersect(window)
            if not part.is_empty:
                expected[part.within(window).slices] = np.nan
        tolerance = TOLERANCE
        if self.codec is not None:
            # Finished pixels were held as codes.
            actual, expected = (np.clip(values, *self.minmax) for values in (actual, expected))
            tolerance += self.codec.step
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)

    @rule(really=st.integers(0, 3))
    def end(self, really):
        """End the image, or try again; now and then, so that runs are not too short."""
        if really and self.missing and self.state == 'open':
            return
        if self.state == 'closed':
            with pytest.raises(ImageClosedError):
                self.stitcher.finalize()
        elif not self.came:
            with pytest.raises(NothingAccumulatedError):
                self.stitcher.finalize()
        else:
            self.finalize()

    def finalize(self):
        self.ending, failed = True, self.n_failed
        if self.missing:
            self.carries = False
        self.call(self.stitcher.finalize)
        self.state = 'closed' if self.n_failed == failed else 'sealed'
        if self.state == 'closed':
            assert all(set(sink.blocks) == self.cores for sink in self.sinks)

    # ---- the same story --------------------------------------------------------

    @invariant()
    def counts_are_right(self):
        stitcher = self.stitcher
        assert stitcher.pending == sorted(window.clip(self.shape) for window in self.missing)
        assert stitcher.is_complete == (not self.missing)
        assert stitcher.n_windows == len(self.came)
        assert stitcher.n_invalid == self.model.n_invalid
        assert stitcher.received == {window.clip(self.shape) for window in self.came}
        if self.came:
            assert stitcher.engine == ('carry' if self.carries else 'general')
        if self.state == 'closed':
            assert stitcher.nbytes == 0
        assert stitcher.peak_nbytes >= stitcher.nbytes

    @invariant()
    def final_blocks_were_sent(self):
        if not self.came:
            assert not any(sink.offered for sink in self.sinks)
            return
        for sink, following in zip(self.sinks, self.sinks[1:]):
            assert set(sink.blocks) >= following.offered >= set(following.blocks)
        if self.n_failed == 0 and self.state == 'open':
            assert all(set(sink.blocks) == self.find_final() for sink in self.sinks)

    @invariant()
    def clipped_values_are_counted(self):
        if self.state != 'closed' or self.codec is None:
            return
        mean, _ = self.model.compute(Window.from_shape(self.shape))
        beyond = np.maximum(self.minmax[0] - mean, mean - self.minmax[1]) - self.codec.step / 2
        # Rounding may move a value over the margin.
        assert (beyond > TOLERANCE).sum() <= self.stitcher.n_clipped
        assert self.stitcher.n_clipped <= (beyond > -TOLERANCE).sum()

    def teardown(self):
        if not hasattr(self, 'stitcher'):
            return
        self.failures = []
        if self.came and self.state != 'closed':
            self.finalize()
            assert self.state == 'closed'
            self.counts_are_right()
            self.clipped_values_are_counted()
        self.stitcher.close()


def test_a_stitcher_agrees_with_the_model():
    run_state_machine_as_test(SoftMachine, settings=settings(
        max_examples=100, stateful_step_count=25))
