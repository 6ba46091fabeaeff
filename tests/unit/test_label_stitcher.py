"""The label stitcher: what it takes, refuses and gives."""
import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cocoseg import LabelStitcher, Window, WindowGrid
from cocoseg.errors import (CanvasError, CoverageError, ImageClosedError, LabelOverflowError,
                            NothingAccumulatedError, OptionError, WindowShapeError)
from cocoseg.protocols import FailingSink, MemorySink
from cocoseg.stitch import label as label_module

SHAPE = (24, 30)
GRID = WindowGrid(SHAPE, window=12, overlap=4)


def make_truth():
    """Return rectangles of distinct ids on background, numbered by first pixel."""
    truth = np.zeros(SHAPE, np.int64)
    for index, (y, x) in enumerate(itertools.product(range(0, 24, 6), range(0, 30, 6))):
        truth[y:y + 5, x:x + 5] = index + 1
    return truth


TRUTH = make_truth()


def add_all(stitcher, windows=GRID, **options):
    """Add crops of the truth, with ids that mean nothing elsewhere."""
    for index, window in enumerate(windows):
        tile = TRUTH[window.slices]
        stitcher.add(window, np.where(tile, 1000 * index + 7 * tile, 0), **options)
    return stitcher


def test_crops_of_an_image_give_it_back():
    stitcher = add_all(LabelStitcher(SHAPE, GRID))
    assert stitcher.is_complete and stitcher.pending == [] and stitcher.n_windows == len(GRID)
    out = stitcher.finalize()
    assert out.dtype == np.uint32 and np.array_equal(out, TRUTH)
    assert stitcher.n_labels == 20
    assert stitcher.sizes.tolist() == [0] + [25] * 20
    assert all(seam.agreement == 1 for seam in stitcher.seams)
    # Each tile meets those beside it and at its corners.
    rows, columns = GRID.grid_shape
    assert len(stitcher.seams) == (rows * (columns - 1) + columns * (rows - 1)
                                   + 2 * (rows - 1) * (columns - 1))


def test_undeclared_tiles_give_the_same():
    stitcher = add_all(LabelStitcher(SHAPE), reversed(list(GRID)))
    assert not stitcher.is_declared and not stitcher.is_complete
    assert np.array_equal(stitcher.finalize(), TRUTH)


def test_a_lone_tile_is_the_image():
    stitcher = LabelStitcher((2, 3))
    assert stitcher.add(None, np.array([[9, 0, 4], [9, 4, 4]])) == 5
    assert stitcher.finalize().tolist() == [[1, 0, 2], [1, 2, 2]]


def test_parts_of_a_label_share_an_id_unless_they_must_hang_together():
    labels = np.array([[5, 0, 5], [0, 5, 0]])
    for connectivity, expected in [(None, [[1, 0, 1], [0, 1, 0]]), (8, [[1, 0, 1], [0, 1, 0]]),
                                   (4, [[1, 0, 2], [0, 3, 0]])]:
        stitcher = LabelStitcher((2, 3), connectivity=connectivity)
        stitcher.add(None, labels)
        assert stitcher.finalize().tolist() == expected


def test_without_matching_every_tile_keeps_its_objects():
    left, right = Window(0, 0, 1, 6), Window(0, 2, 1, 8)
    stitcher = LabelStitcher((1, 8), [left, right], match='none')
    for window in (right, left):
        stitcher.add(window, np.ones(window.shape, int))
    assert stitcher.finalize().tolist() == [[1, 1, 1, 1, 2, 2, 2, 2]]
    assert stitcher.seams == []


def test_objects_that_only_brush_each_other_stay_apart():
    # Two tiles share 4 px; the object of the left covers 3 of them, the other 2.
    stitcher = LabelStitcher((1, 8), [Window(0, 0, 1, 6), Window(0, 2, 1, 8)])
    stitcher.add(Window(0, 0, 1, 6), np.array([[1, 1, 1, 1, 1, 0]]))
    stitcher.add(Window(0, 2, 1, 8), np.array([[0, 0, 0, 1, 1, 1]]))
    out = stitcher.finalize()
    assert stitcher.n_labels == 2 and out.tolist() == [[1, 1, 1, 1, 0, 2, 2, 2]]


def test_background_is_never_linked():
    stitcher = LabelStitcher((1, 8), [Window(0, 0, 1, 6), Window(0, 2, 1, 8)])
    stitcher.add(Window(0, 0, 1, 6), np.array([[1, 1, 0, 0, 0, 0]]))
    stitcher.add(Window(0, 2, 1, 8), np.array([[0, 0, 0, 0, 1, 1]]))
    assert stitcher.finalize().tolist() == [[1, 1, 0, 0, 0, 0, 2, 2]]


def test_small_labels_join_the_neighbor_that_is_most_alike():
    labels = np.array([[1, 1, 1, 2, 3, 3, 3]])
    values = np.array([[0., 0, 0, 7, 9, 9, 9]])
    stitcher = LabelStitcher((1, 7), connectivity=4, min_size=2)
    stitcher.add(None, labels, values)
    assert stitcher.finalize().tolist() == [[1, 1, 1, 2, 2, 2, 2]]
    assert stitcher.n_merged == 1
    stitcher = LabelStitcher((1, 7), connectivity=4, min_size=2, max_difference=1)
    stitcher.add(None, labels, values)
    assert stitcher.finalize().tolist() == labels.tolist()


def test_a_fragment_that_a_seam_cuts_off_joins_a_neighbor():
    # Unmatched, the cut at 5 leaves one pixel of value 8 to the left tile.
    windows = [Window(0, 0, 1, 6), Window(0, 4, 1, 10)]
    tiles = [np.array([[1, 1, 1, 1, 2, 2]]), np.array([[3, 3, 3, 4, 4, 4]])]
    values = np.array([[0, 0, 0, 0, 8, 8, 8, 9, 9, 9.]])
    found = {}
    for match, min_size in [('overlap', 0), ('overlap', 2), ('none', 0), ('none', 2)]:
        stitcher = LabelStitcher((1, 10), windows, connectivity=4, min_size=min_size, match=match)
        for window, tile in zip(windows, tiles):
            stitcher.add(window, tile, values[window.slices])
        found[match, min_size] = stitcher.finalize()[0].tolist(), stitcher.n_merged
    whole = [1, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert found == {('overlap', 0): (whole, 0), ('overlap', 2): (whole, 0),
                     ('none', 0): ([1, 1, 1, 1, 2, 3, 3, 4, 4, 4], 0),
                     ('none', 2): (whole, 1)}


def test_windows_may_overhang():
    window = Window(-2, -3, 26, 40)
    stitcher = LabelStitcher(SHAPE, [window])
    tile = np.zeros(window.shape, np.uint8)
    tile[2:26, 3:33] = TRUTH
    tile[0] = 255
    assert stitcher.add(window, tile) == np.count_nonzero(TRUTH)
    assert np.array_equal(stitcher.finalize(), TRUTH)


def test_missing_tiles_leave_background():
    windows = list(GRID)
    stitcher = add_all(LabelStitcher(SHAPE, GRID), windows[:-1])
    assert stitcher.pending == [windows[-1]]
    out = stitcher.finalize()
    assert (out[-8:, -8:] == 0).all() and np.array_equal(out[:16, :20] > 0, TRUTH[:16, :20] > 0)


def test_arguments_are_not_changed():
    labels, values = np.array([[4, 4, 0]]), np.array([[1.5, 2, 3]])
    labels.flags.writeable = values.flags.writeable = False
    for windows in (None, [Window(0, 0, 1, 3)]):
        stitcher = LabelStitcher((1, 3), windows, connectivity=4, min_size=2)
        stitcher.add(Window(0, 0, 1, 3), labels, values)
        assert stitcher.finalize().tolist() == [[1, 1, 0]]


def test_held_tiles_are_copies():
    labels = np.array([[4, 4, 0]])
    stitcher = LabelStitcher((1, 3))
    stitcher.add(None, labels)
    labels[:] = 0
    assert stitcher.finalize().tolist() == [[1, 1, 0]]


@pytest.mark.parametrize('ram_nbytes', [0, 1 << 20])
def test_a_sink_gets_the_same_from_ram_and_from_a_file(tmp_path, monkeypatch, ram_nbytes):
    monkeypatch.setattr(label_module, '_RAM_NBYTES', ram_nbytes)
    monkeypatch.setattr(label_module, '_STRIP_PIXELS', 100)
    sink = MemorySink()
    stitcher = add_all(LabelStitcher(SHAPE, GRID, sink=sink, spill_dir=tmp_path))
    assert (stitcher.nbytes == 0) == (ram_nbytes == 0)
    assert stitcher.finalize() is None
    assert np.array_equal(sink.as_array()[..., 0], TRUTH) and len(sink.blocks) > 1
    assert list(tmp_path.iterdir()) == []


def test_finalize_goes_on_after_the_sink_failed(monkeypatch):
    class Sink(MemorySink):
        failures = 1

        def write_block(self, window, block):
            if window.y0 and self.failures:
                self.failures -= 1
                raise OSError(28, 'No space left on device (simulated)')
            # Which refuses a block that it has.
            super().write_block(window, block)

    monkeypatch.setattr(label_module, '_STRIP_PIXELS', 100)
    sink = Sink()
    stitcher = add_all(LabelStitcher(SHAPE, GRID, sink=sink))
    with pytest.raises(OSError, match='simulated'):
        stitcher.finalize()
    stitcher.finalize()
    assert np.array_equal(sink.as_array()[..., 0], TRUTH)


def test_a_failing_sink_keeps_the_stitcher_sealed():
    stitcher = add_all(LabelStitcher(SHAPE, GRID, sink=FailingSink()))
    with pytest.raises(OSError):
        stitcher.finalize()
    with pytest.raises(ImageClosedError):
        stitcher.add(next(iter(GRID)), TRUTH[:12, :12])


def test_threads_give_the_same_as_one():
    tiles = [(window, TRUTH[window.slices] * (index + 1)) for index, window in enumerate(GRID)]
    for _ in range(5):
        stitcher = LabelStitcher(SHAPE, GRID, connectivity=4)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda job: stitcher.add(*job), tiles))
        assert np.array_equal(stitcher.finalize(), TRUTH)


def test_cut_tiles_can_be_pickled_and_inserted_elsewhere():
    stitcher = LabelStitcher(SHAPE, GRID)
    for window in GRID:
        tile = pickle.loads(pickle.dumps(stitcher.cut(window, TRUTH[window.slices])))
        stitcher.insert(tile)
    assert np.array_equal(stitcher.finalize(), TRUTH)


def test_strips_are_kept_for_neighbors_to_come_only():
    stitcher = LabelStitcher(SHAPE, GRID)
    canvas = 4 * SHAPE[0] * SHAPE[1]
    add_all(stitcher)
    assert stitcher.nbytes == canvas


# ---- what is refused

@pytest.mark.parametrize('options, message', [
    ({'connectivity': 6}, 'connectivity=6'), ({'match': 'best'}, "match='best'"),
    ({'min_size': 5}, 'needs connectivity'),
])
def test_options_that_cannot_be(options, message):
    with pytest.raises(OptionError, match=message):
        LabelStitcher(SHAPE, **options)


def test_small_labels_need_values():
    for windows in (None, GRID):
        stitcher = LabelStitcher(SHAPE, windows, connectivity=4, min_size=3)
        with pytest.raises(OptionError, match='needs the values'):
            stitcher.add(next(iter(GRID)), TRUTH[:12, :12])


@pytest.mark.parametrize('windows', [None, GRID], ids=['undeclared', 'declared'])
def test_shapes_must_agree(windows):
    stitcher = LabelStitcher(SHAPE, windows)
    first = next(iter(GRID))
    with pytest.raises(WindowShapeError, match=r'\(12, 11\).*\(12, 12\)'):
        stitcher.add(first, TRUTH[:12, :11])
    with pytest.raises(WindowShapeError, match='values'):
        stitcher.add(first, TRUTH[:12, :12], np.zeros((11, 12, 2)))
    with pytest.raises(OptionError, match='whole numbers'):
        stitcher.add(first, TRUTH[:12, :12] / 2)
    assert stitcher.n_windows == 0


def test_windows_that_may_not_come():
    stitcher = LabelStitcher(SHAPE, GRID)
    first = next(iter(GRID))
    with pytest.raises(CoverageError, match='not declared'):
        stitcher.add(first.shift(1, 0), TRUTH[:12, :12])
    stitcher.add(first, TRUTH[:12, :12])
    with pytest.raises(CoverageError, match='already received'):
        stitcher.add(first, TRUTH[:12, :12])
    with pytest.raises(CoverageError):
        stitcher.add(Window(100, 0, 112, 12), TRUTH[:12, :12])
    undeclared = LabelStitcher(SHAPE)
    undeclared.add(first, TRUTH[:12, :12])
    with pytest.raises(CoverageError, match='came before'):
        undeclared.add(first, TRUTH[:12, :12])
    with pytest.raises(OptionError, match='declared tiles'):
        undeclared.cut(first, TRUTH[:12, :12])
    with pytest.raises(CoverageError, match='declared twice'):
        LabelStitcher(SHAPE, [first, first])


def test_life_ends_with_finalize():
    stitcher = LabelStitcher(SHAPE, GRID)
    with pytest.raises(NothingAccumulatedError):
        stitcher.finalize()
    with pytest.raises(NothingAccumulatedError, match='finalize it first'):
        print(stitcher.n_labels)
    stitcher = add_all(LabelStitcher(SHAPE, GRID))
    stitcher.finalize()
    with pytest.raises(ImageClosedError):
        stitcher.finalize()
    stitcher.close()


@pytest.mark.parametrize('windows', [None, GRID], ids=['undeclared', 'declared'])
def test_a_full_disk_loses_no_tile(monkeypatch, windows):
    monkeypatch.setattr(label_module, '_RAM_NBYTES', 0)
    sink, stitcher = MemorySink(), None
    plain, n_failures = label_module.FileArena.take, [1]

    def take(self):
        if n_failures:
            n_failures.pop()
            raise CanvasError(28, 'No space left on device (simulated)')
        return plain(self)
    monkeypatch.setattr(label_module.FileArena, 'take', take)
    stitcher = LabelStitcher(SHAPE, windows, sink=sink)
    with pytest.raises(CanvasError, match='simulated'):
        add_all(stitcher)
        stitcher.finalize()
    if windows is not None:
        add_all(stitcher)
    stitcher.finalize()
    assert np.array_equal(sink.as_array()[..., 0], TRUTH)


def test_more_labels_than_32_bits(monkeypatch):
    monkeypatch.setattr(label_module, 'MAX_ID', 5)
    stitcher = LabelStitcher(SHAPE, GRID)
    with pytest.raises(LabelOverflowError, match='more than 5'):
        add_all(stitcher)
