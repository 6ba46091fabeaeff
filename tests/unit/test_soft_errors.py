"""The soft stitcher: every refusal, and that a refusal changes nothing."""
import numpy as np
import pytest

from cocoseg import SoftStitcher, Window, WindowGrid
from cocoseg.errors import (BandCountError, CocosegError, CoverageError, ImageClosedError,
                            NothingAccumulatedError, OptionError, WeightError,
                            WindowShapeError)
from cocoseg.protocols import FailingSink, MemorySink
from cocoseg.stitch.quantize import Quantization

# Strides of 14: a list of these windows blends as the grid does.
GRID = WindowGrid((48, 62), window=20, overlap=6)
RNG = np.random.RandomState(0)
PREDICTIONS = {window: RNG.rand(*window.shape, 2).astype('f4') for window in GRID}


@pytest.mark.parametrize('options', [
    {'shape': (4,)}, {'shape': (4, 4, 1, 1)}, {'shape': (0, 4)}, {'shape': (4, 4, 0)},
    {'shape': (4.5, 4)},
    {'dtype': 'float16'}, {'dtype': 'int32'}, {'profile': 'hann'},
    {'expected_minmax': (1, 0)}, {'expected_minmax': (0, np.nan)},
    {'expected_minmax': (0, 1), 'quantize_dtype': 'int64'},
    {'sink': MemorySink(), 'blocksize': 0}, {'sink': MemorySink(), 'blocksize': 1.5},
])
def test_wrong_options_are_refused(options):
    with pytest.raises(OptionError):
        SoftStitcher(**{'shape': (4, 4), **options})


def test_a_declared_window_outside_the_image_is_refused():
    with pytest.raises(CoverageError, match='no pixel in the image'):
        SoftStitcher((4, 4), [Window(0, 4, 4, 8)])


WINDOW = Window(2, 2, 6, 8)
DATA = np.ones((4, 6, 2))


def make_weights(value):
    weights = np.ones((4, 6))
    weights[1, 2] = value
    return weights


REFUSED = {
    'wrong height': (WINDOW, DATA[1:], None, WindowShapeError, r'\(3, 6, 2\) but .* \(4, 6, \*\)'),
    'transposed': (WINDOW, DATA.transpose(1, 0, 2), None, WindowShapeError, 'resize'),
    'channels first': (WINDOW, DATA.transpose(2, 0, 1), None, WindowShapeError, 'shape'),
    'scalar': (WINDOW, 1.0, None, WindowShapeError, 'shape'),
    'a batch': (WINDOW, DATA[None], None, WindowShapeError, 'shape'),
    'complex': (WINDOW, DATA * 1j, None, WindowShapeError, 'real numbers'),
    'objects': (WINDOW, DATA.astype(object), None, WindowShapeError, 'real numbers'),
    'other bands': (WINDOW, DATA[..., :1], None, BandCountError, '1 bands .* has 2'),
    'no bands': (WINDOW, DATA[..., :0], None, BandCountError, '0 bands'),
    'weights of another shape': (WINDOW, DATA, np.ones((6, 4)), WindowShapeError, r'\(6, 4\)'),
    'weights per band': (WINDOW, DATA, np.ones((4, 6, 2)), WindowShapeError, r'needs \(4, 6\)'),
    'separable weights': (WINDOW, DATA, np.ones(4), WindowShapeError, r'\(4,\)'),
    'negative weight': (WINDOW, DATA, make_weights(-0.1), WeightError, r'-0\.1'),
    'NaN weight': (WINDOW, DATA, make_weights(np.nan), WeightError, 'nan'),
    'infinite weight': (WINDOW, DATA, make_weights(np.inf), WeightError, 'inf'),
    'weight beyond float32': (WINDOW, DATA, make_weights(1e300), WeightError, '1e[+]300'),
    'complex weights': (WINDOW, DATA, make_weights(1) * 1j, CocosegError, 'weights'),
    'weights that are text': (WINDOW, DATA, np.full((4, 6), 'a'), CocosegError, 'weights'),
    'outside': (Window(10, 0, 14, 6), DATA, None, CoverageError, 'no pixel'),
    'before the start': (Window(-4, 0, 0, 6), DATA, None, CoverageError, 'no pixel'),
    'empty': (Window(3, 3, 3, 9), DATA[:0], None, CoverageError, 'no pixel'),
    'not a window': ('abc', DATA, None, CoverageError, 'cannot read a window'),
    'half a pixel': ((slice(0.5, 4.5), slice(0, 6)), DATA, None, CoverageError, 'whole number'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused_data_changes_nothing(name):
    window, data, weights, error, message = REFUSED[name]
    stitcher = SoftStitcher((10, 10, 2))
    with pytest.raises(error, match=message):
        stitcher.add(window, data, weights)
    assert stitcher.n_windows == 0 and stitcher.n_invalid == 0
    assert not stitcher.weights.any()
    stitcher.add(WINDOW, DATA)
    assert np.nansum(stitcher.finalize()) == DATA.sum()


def test_data_beyond_float32_is_invalid():
    stitcher = SoftStitcher((2, 2))
    with np.errstate(over='ignore'):
        assert stitcher.add(None, np.array([[1e300, 1], [-1e300, 2]])) == 2
    assert stitcher.n_invalid == 2
    assert np.isnan(stitcher.finalize()).sum() == 2


def test_bands_are_those_of_the_first_window():
    stitcher = SoftStitcher((4, 4))
    stitcher.add(None, np.ones((4, 4, 3)))
    with pytest.raises(BandCountError, match='2 bands but this image has 3'):
        stitcher.add(None, np.ones((4, 4, 2)))


def test_undeclared_and_repeated_windows_are_refused():
    weights = np.ones((20, 20))
    stitcher = SoftStitcher(GRID.shape, GRID)
    first, *_ = GRID
    stitcher.add(first, PREDICTIONS[first])
    for window in (first, Window(1, 1, 21, 21)):
        for given in (None, weights):
            with pytest.raises(CoverageError):
                stitcher.add(window, PREDICTIONS[first], given)
    assert stitcher.n_windows == 1 and len(stitcher.pending) == len(GRID) - 1


def test_without_a_declaration_windows_may_repeat():
    stitcher = SoftStitcher((4, 4))
    for value in (1, 2, 6):
        stitcher.add(None, np.full((4, 4), value))
    assert (stitcher.finalize() == 3).all()


@pytest.mark.parametrize('windows', [None, GRID])
def test_after_the_end(windows):
    stitcher = SoftStitcher(GRID.shape, windows)
    for window, data in PREDICTIONS.items():
        stitcher.add(window, data)
    assert stitcher.nbytes >= 48 * 62 * 2 * 4 and 'open' in repr(stitcher)
    stitcher.seal()
    stitcher.seal()
    assert 'sealed' in repr(stitcher)
    with pytest.raises(ImageClosedError, match='after the image was finalized'):
        stitcher.add(window, data)
    stitcher.finalize()
    assert stitcher.nbytes == 0 and 'closed' in repr(stitcher)
    with pytest.raises(ImageClosedError, match='already finalized'):
        stitcher.finalize()
    with pytest.raises(ImageClosedError):
        stitcher.add(window, data)
    stitcher.close()


def test_finalize_without_data():
    for windows in (None, GRID):
        stitcher = SoftStitcher(GRID.shape, windows)
        with pytest.raises(NothingAccumulatedError, match='no data'):
            stitcher.finalize()
        assert stitcher.nbytes == 0 and not stitcher.weights.any()
        # It is not closed by that; data may still come.
        stitcher.add(next(iter(GRID)), np.ones((20, 20)))
        assert np.isfinite(stitcher.finalize()).sum() == 400


@pytest.mark.parametrize('prepare', [lambda stitcher: None, lambda stitcher: (
    stitcher.add(None, np.ones((4, 4))), stitcher.finalize())])
def test_reading_without_data_is_refused(prepare):
    stitcher = SoftStitcher((4, 4))
    prepare(stitcher)
    for read in (stitcher.read, lambda part: stitcher.encode(Quantization(0, 1), part)):
        with pytest.raises(CocosegError):
            read(Window(0, 0, 2, 2))


def test_closing_an_unfinished_image_frees_its_memory():
    stitcher = SoftStitcher((4, 4), sink=FailingSink(99))
    stitcher.add(None, np.ones((4, 4)))
    stitcher.close()
    assert stitcher.nbytes == 0
    with pytest.raises(ImageClosedError):
        stitcher.finalize()
