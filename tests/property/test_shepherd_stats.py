"""Any labels, values and strips: segment_stats is plain numpy on the whole image."""
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cocoseg.shepherd.stats import segment_stats

from ..strategies import SEEDS
from ..unit.segment_models import (
    NAMES, SHAPES, make_segments, model_shape, model_value, model_values)

SIDES = st.tuples(st.integers(1, 12), st.integers(1, 12))


@settings(max_examples=40)
@given(SIDES, SEEDS, st.integers(1, 13), st.integers(1, 12), st.integers(0, 5),
       st.sampled_from(['uint8', 'int16', 'int32', 'float32', 'float64']))
def test_values(shape, seed, rows, n_labels, nodata, dtype):
    rng = np.random.default_rng(seed)
    segments = make_segments(rng, shape, n_labels, size=int(rng.integers(1, 6)))
    image = rng.integers(0, 6, shape).astype(dtype)
    if image.dtype.kind == 'f':
        image[rng.random(shape) < 0.2] = np.nan
    table = segment_stats(image, segments, NAMES, nodata=nodata, block_rows=rows)
    ids, expected = model_values(image, segments, NAMES, nodata)
    assert table.ids.tolist() == ids.tolist()
    for name in NAMES:
        wanted, found = expected[name], table[name].astype(float)
        if image.dtype.kind != 'f' and name not in ('mean', 'std', 'count'):
            wanted = np.where(np.isnan(wanted), -9999, wanted)
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12, err_msg=name)


@settings(max_examples=40)
@given(hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(
    -1e300, 1e300, allow_subnormal=True)), st.floats(0, 100))
def test_percentiles_of_any_floats(values, percent):
    table = segment_stats(values[:, None], np.ones((len(values), 1), int),
                          [('p', f'percentile:{percent!r}'), 'mode'], block_rows=7)
    assert table['p'][0] == model_value(values, f'p{percent!r}')
    assert table['mode'][0] == model_value(values, 'mode')


@settings(max_examples=30)
@given(SIDES, SEEDS, st.integers(1, 13), st.integers(1, 5))
def test_shapes(shape, seed, rows, n_labels):
    segments = make_segments(np.random.default_rng(seed), shape, n_labels)
    table = segment_stats(None, segments, SHAPES, block_rows=rows)
    for row, label in enumerate(table.ids):
        found = {name: float(column[row]) for name, column in table.columns.items()}
        expected = model_shape(segments, label)
        assert all(abs(found[name] - expected[name]) < 1e-9 for name in expected)
