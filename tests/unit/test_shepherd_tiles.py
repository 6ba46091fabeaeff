"""Segment tiles, how the reference recodes them, and where clusters are sampled."""
import numpy as np
import pytest

from cocoseg import ShepherdConfig, Window
from cocoseg.errors import LabelOverflowError, OptionError
from cocoseg.shepherd import recode as recode_module
from cocoseg.shepherd import sampling as sampling_module
from cocoseg.shepherd.recode import TileRecoder, find_modes
from cocoseg.shepherd.sampling import sample_raster
from cocoseg.shepherd.tiles import TilePlan

# ---- layout


def test_reference_layout_is_that_of_its_documentation():
    plan = TilePlan.make((3000, 3000), 1024, 256, is_compat=True)
    assert plan.row_spans == ((0, 1024), (768, 1792), (1536, 3000))
    assert len(plan) == 9 and plan.grid_shape == (3, 3)
    assert list(plan)[5] == Window(768, 1536, 1792, 3000)
    assert plan.locate(Window(768, 1536, 1792, 3000)) == (1, 2)


@pytest.mark.parametrize('is_compat', [False, True])
@pytest.mark.parametrize('tile', [1, 2, 7, 16, 40])
def test_tiles_cover_every_size_with_the_overlap(tile, is_compat):
    for overlap in range(0, tile, 2):
        for size in range(1, 150):
            spans = TilePlan.make((size, 9), tile, overlap, is_compat).row_spans
            assert spans[0][0] == 0 and spans[-1][1] == size
            for (_, stop), (start, last) in zip(spans, spans[1:]):
                assert stop - start == overlap and last > stop
            lengths = [stop - start for start, stop in spans]
            if is_compat:
                assert all(length == tile for length in lengths[:-1])
                if len(spans) > 1:
                    assert tile + overlap <= lengths[-1] < 2 * tile
            else:
                # No tile is larger than asked, and no plan has fewer.
                assert max(lengths) <= tile
                assert len(spans) == max(-(-(size - overlap) // (tile - overlap)), 1)


@pytest.mark.parametrize('tile_size, overlap, message', [
    (64, 64, 'below tile_size=64'), (64, 100, 'below'), (64, 7, 'odd.*6 or 8'), (64, -2, '-2'),
    (0, 0, 'tile_size'), ((8, 4), (2, 4), 'overlap=4'), (8.0, 2, 'whole'), (64, 0.3, 'whole'),
])
def test_tiles_that_cannot_be(tile_size, overlap, message):
    for is_compat in (False, True):
        with pytest.raises(OptionError, match=message):
            TilePlan.make((200, 200), tile_size, overlap, is_compat)


# ---- recoding

def modes_model(ours, theirs, chosen):
    found = {}
    for label in np.unique(ours):
        if chosen[label]:
            values, counts = np.unique(theirs[ours == label], return_counts=True)
            found[int(label)] = int(values[np.argmax(counts)])
    return found


@pytest.mark.parametrize('seed', range(10))
def test_modes_are_those_of_numpy_and_ties_the_lowest(seed):
    rng = np.random.default_rng(seed)
    ours, theirs = rng.integers(0, 5, (2, 6, 7)).astype(np.uint32)
    chosen = rng.random(5) < 0.6
    assert dict(zip(*(found.tolist() for found in find_modes(ours, theirs, chosen)))) == \
        modes_model(ours, theirs, chosen)


class ModelRecoder:
    """The rules of the reference, one segment after the other."""

    def __init__(self, plan):
        self.plan, self.max_id, self.done = plan, 0, {}

    def recode(self, window, labels):
        row, column = self.plan.locate(window)
        (rows, columns), (dy, dx) = self.plan.grid_shape, self.plan.overlap
        top, left = dy // 2 * (row > 0), dx // 2 * (column > 0)
        bottom = labels.shape[0] - dy // 2 * (row < rows - 1)
        right = labels.shape[1] - dx // 2 * (column < columns - 1)
        codes = {}
        for axis, overlap, other in ((0, dy, (row - 1, column)), (1, dx, (row, column - 1))):
            if min(other) < 0 or not overlap:
                continue
            cut = (slice(0, overlap),) if axis == 0 else (slice(None), slice(0, overlap))
            back = (slice(-overlap, None),) if axis == 0 else (slice(None), slice(-overlap, None))
            ours, theirs = labels[cut], self.done[other][back]
            for label in set(np.unique(ours)) - {0}:
                places = np.nonzero(ours == label)[axis]
                if places.min() < overlap // 2 <= places.max():
                    codes[label] = int(np.argmax(np.bincount(theirs[ours == label])))
        ids, counter = np.zeros(labels.shape, np.uint32), self.max_id
        for label in sorted(set(np.unique(labels)) - {0}):
            here = labels == label
            if label not in codes:
                y, x = np.nonzero(here)
                inside = top <= y.min() < bottom and left <= x.min() < right
                counter += inside
                codes[label] = counter if inside else 0
            ids[here] = codes[label]
        self.done[row, column] = ids
        written = ids[top:bottom, left:right]
        self.max_id = max(self.max_id, int(written.max(initial=0)))
        return Window(window.y0 + top, window.x0 + left, window.y0 + bottom,
                      window.x0 + right), written


@pytest.mark.parametrize('seed', range(25))
def test_tiles_are_recoded_as_the_rules_say(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(8, 30, 2))
    overlap = tuple(int(value) for value in rng.choice([0, 2, 4], 2))
    plan = TilePlan.make(shape, tuple(int(value) + 5 for value in rng.integers(1, 8, 2)), overlap,
                         is_compat=bool(seed % 2))
    truth = np.kron(rng.integers(0, 9, (10, 10)), np.ones((3, 3), int))[:shape[0], :shape[1]]
    recoder, model = TileRecoder(plan), ModelRecoder(plan)
    image = np.full(shape, 10 ** 6, np.uint32)
    for window in plan:
        # Ids of the tile's own, with some that the neighbor does not see so.
        labels = truth[window.slices] + (rng.random(window.shape) < 0.1) * 9
        _, labels = np.unique(np.append(0, labels), return_inverse=True)
        labels = labels[1:].reshape(window.shape).astype(np.uint32)
        labels.flags.writeable = False
        core, ids = recoder.recode(window, labels)
        expected_core, expected = model.recode(window, labels)
        assert core == expected_core and np.array_equal(ids, expected)
        assert (image[core.slices] == 10 ** 6).all()
        image[core.slices] = ids
    assert (image < 10 ** 6).all(), 'cores must cover the raster'


def test_only_strips_that_are_needed_are_kept():
    plan = TilePlan.make((20, 20), 8, 2, is_compat=True)
    recoder = TileRecoder(plan)
    for window in plan:
        recoder.recode(window, np.ones(window.shape, np.uint32))
    assert not recoder._bottoms and not recoder._rights


def test_ids_beyond_32_bits_are_an_error(monkeypatch):
    monkeypatch.setattr(recode_module, 'MAX_ID', 3)
    recoder = TileRecoder(TilePlan.make((4, 4), 4, 0))
    with pytest.raises(LabelOverflowError, match='more than 3'):
        recoder.recode(Window(0, 0, 4, 4), np.arange(16, dtype=np.uint32).reshape(4, 4))


# ---- sampling

CONFIG = ShepherdConfig(n_clusters=2, n_samples=500)


def draw(image, config=CONFIG, nodata=None, run=map):
    windows = []

    def read(window):
        windows.append(window)
        return image[window.slices]
    sample = sample_raster(read, image.shape[:2], image.shape[2], image.dtype, config, nodata, run)
    return sample, windows


def make_numbered(shape=(700, 900)):
    """Return an image whose first band is the index of the pixel."""
    index = np.arange(shape[0] * shape[1], dtype=np.int32).reshape(shape)
    return np.stack([index, -index], axis=2)


def test_exactly_so_many_distinct_pixels_are_drawn():
    image = make_numbered()
    sample, windows = draw(image)
    assert sample.pixels.shape == (500, 2) and sample.pixels.dtype == np.int32
    assert len(np.unique(sample.pixels[:, 0])) == 500
    assert np.array_equal(sample.pixels[:, 0], -sample.pixels[:, 1])
    assert sum(window.area for window in windows) <= image.shape[0] * image.shape[1]


def test_a_share_of_the_pixels_is_drawn():
    config = ShepherdConfig(n_clusters=2, sample_percent=0.5)
    assert len(draw(make_numbered(), config)[0].pixels) == round(700 * 900 / 200)


def test_the_seed_decides_and_threads_do_not():
    from concurrent.futures import ThreadPoolExecutor
    image = make_numbered()
    plain = draw(image)[0].pixels
    with ThreadPoolExecutor(4) as pool:
        assert np.array_equal(draw(image, run=pool.map)[0].pixels, plain)
    assert not np.array_equal(draw(image, CONFIG.patch(seed=1))[0].pixels, plain)


def test_a_part_of_a_large_raster_is_read_and_more_where_little_is_valid(monkeypatch):
    monkeypatch.setattr(sampling_module, '_BLOCKSIZE', 16)
    monkeypatch.setattr(sampling_module, '_MIN_BLOCKS', 8)
    image = make_numbered((400, 400))
    sample, windows = draw(image)
    assert len(windows) < 400 and sample.percent < 60
    # Nearly all is null: all blocks are read, and what is valid is found.
    sparse = np.zeros_like(image)
    sparse[7, 11], sparse[399, 399] = (5, 6), (7, 8)
    sample, windows = draw(sparse, nodata=0)
    assert len(windows) == 25 * 25 and sample.percent == 100
    assert sorted(sample.pixels.tolist()) == [[5, 6], [7, 8]]
    assert len(draw(np.zeros_like(image), nodata=0)[0].pixels) == 0


def test_all_pixels_of_the_only_valid_block_are_found(monkeypatch):
    monkeypatch.setattr(sampling_module, '_BLOCKSIZE', 16)
    monkeypatch.setattr(sampling_module, '_MIN_BLOCKS', 8)
    image = make_numbered((400, 400))
    image[:, :] = 0
    image[32:48, 64:80] = make_numbered((16, 16)) + 1000
    sample, windows = draw(image, CONFIG.patch(n_samples=300), nodata=0)
    assert sample.pixels[:, 0].tolist() == list(range(1000, 1256)) and sample.percent == 100


def reference_model(image, skip, nodata):
    """Every skip-th pixel, counted anew in blocks of 1024 px."""
    rows = [y for start in range(0, image.shape[0], 1024)
            for y in range(start, min(start + 1024, image.shape[0]), skip)]
    columns = [x for start in range(0, image.shape[1], 1024)
               for x in range(start, min(start + 1024, image.shape[1]), skip)]
    pixels = image[rows][:, columns].reshape(-1, image.shape[2])
    return pixels[(pixels != nodata).all(axis=1)]


@pytest.mark.parametrize('percent, skip', [(None, 1), (100, 1), (1, 10), (30, 2), (0.05, 45)])
def test_the_sample_of_the_reference_restarts_in_each_block(percent, skip):
    image = make_numbered((1100, 1040)) % 7
    config = ShepherdConfig(n_clusters=2, sample_percent=percent, compat='pyshepseg')
    if percent is None:
        image = image[:1000, :900]
    sample, _ = draw(image, config, nodata=3)
    assert np.array_equal(sample.pixels, reference_model(image, skip, 3))
    assert sample.percent == (100 if percent is None else percent)


def test_the_reference_takes_about_a_million_pixels_of_a_large_raster():
    image = np.broadcast_to(np.uint8([[[4, 5]]]), (3000, 3000, 2))
    config = ShepherdConfig(n_clusters=2, compat='pyshepseg')
    sample, _ = draw(image, config)
    # 1024 = 341 * 3 + 1, in two blocks of three.
    assert len(sample.pixels) == (342 + 342 + 318) ** 2
    assert sample.percent == pytest.approx(100 / 9)
